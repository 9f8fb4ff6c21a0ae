"""What the figures of a study share: who is drawn, under which label, in which style; and the bytes of a drawn figure."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from harness.analysis import Analysis
from harness.conclusions import part_name, plural
from harness.config import RunConfig
from harness.drawing import Drawing
from harness.frames import each
from harness.histograms import Histograms

WIDTH = 9.0  # inches: a printed page with its margins, at 9 points as on the screen
UNITS = {"loss": "loss, nats", "accuracy": "accuracy"}
FEW = 8  # variants that one pair of axes can hold, each with its band
MOST = 48  # variants that a figure shows
# Okabe & Ito 2008: told apart by colour-blind readers; yellow is left out, which white paper swallows. Black is the base's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))  # these and markers tell them apart in grey
MARKERS = "osD^vPX<>"
FONT: Any = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8.5, "axes.spines.top": False, "axes.spines.right": False}
FIXED: Any = {
    "svg.hashsalt": "harness",
    "svg.fonttype": "path",
}  # ids of an SVG are random without it; fonts are not the reader's


@dataclass(frozen=True)
class Style:
    """How a variant is drawn, in every figure."""

    colour: str
    line: Any
    marker: str
    order: int = 2


@dataclass(frozen=True)
class Sketch:
    """A figure that is to be drawn, and what a reader needs to know of it."""

    name: str  # of its files
    title: str
    caption: str
    figure: Figure

    def drawing(self) -> Drawing:
        """Draw it, as SVG without a date, for the page, and as PNG, 150 dots an inch.

        Its layout is found once: each of the two would find it again.
        """
        figure, svg, png = self.figure, io.BytesIO(), io.BytesIO()
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
        figure.set_layout_engine("none")
        with matplotlib.rc_context(FIXED):
            FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
        figure.set_dpi(150)  # an SVG leaves it at 72
        FigureCanvasAgg(figure).print_png(png, pil_kwargs={"compress_level": 6})
        return Drawing(self.name, self.title, self.caption, svg.getvalue(), png.getvalue())


@dataclass(frozen=True)
class Canvas:
    """What the figures of one study share: who is drawn, in which order, under which label and in which style."""

    analysis: Analysis
    variants: pd.DataFrame  # those that are drawn, the base first
    curves: pd.DataFrame  # history of their finished runs, by the distinct variant
    styles: Mapping[str, Style]
    labels: Mapping[str, str]
    hue: str  # the factor that colours tell, in a factorial of more than a few variants
    seen: Mapping[str, Histograms]  # of runs by their id

    @classmethod
    def of(cls, analysis: Analysis, seen: Mapping[str, Histograms] = {}) -> Canvas:
        """The base and the best of the others, up to MOST."""
        table = analysis.variants.sort_values("is_base", ascending=False, kind="stable")
        if len(table) > MOST:
            best = table["mean"] * (1 if analysis.study.metric.endswith("loss") else -1)
            kept = best.mask(table.is_base, -math.inf).nsmallest(MOST).index
            table = table.loc[table.index.isin(kept)]
        owner = {run: row.variant for row in each(table) for run in row.run_ids}
        history = analysis.history
        curves = history[history.run_id.isin(list(owner))]
        curves = curves.assign(variant=curves.run_id.map(owner))
        hue = _hue(analysis) if len(table) > FEW else ""
        return cls(analysis, table, curves, _styles(analysis, table, hue), _labels(analysis, table), hue, seen)

    @property
    def few(self) -> bool:
        """Whether all variants fit into one pair of axes."""
        return len(self.variants) <= FEW

    @property
    def names(self) -> list[str]:
        """The variants that have a finished run."""
        return [str(row.variant) for row in each(self.variants) if row.n]

    @property
    def counted(self) -> str:
        """How many seeds a number of the drawn variants rests on: `3 seeds`, `2 to 3 seeds`."""
        n = self.variants.n[self.variants.n > 0]
        return f"{n.min()} to {n.max()} seeds" if n.min() < n.max() else plural(int(n.max()), "seed")

    @property
    def left_out(self) -> str:
        """A sentence on what is not drawn; empty where all is."""
        whole, drawn = len(self.analysis.variants), len(self.variants)
        none = drawn - len(self.names)
        parts = [
            f" Of {whole} variants the {drawn} with the best mean are shown." if whole > drawn else "",
            f" {none} variant{'s have' if none > 1 else ' has'} no finished run and so no line." if none else "",
        ]
        return "".join(parts)

    @property
    def part(self) -> str:
        """Whose curves are shown beside training's."""
        return self.analysis.study.shown

    @property
    def base(self) -> str:
        """The variant that the others are compared with."""
        return self.analysis.study.reference


def _styles(analysis: Analysis, table: pd.DataFrame, hue: str) -> dict[str, Style]:
    if hue:
        rows = {row.name: row for row in analysis.study.rows}
        levels = {name: rows[name].config.label(hue) for name in table.variant}
        order = {level: at for at, level in enumerate(dict.fromkeys(row.config.label(hue) for row in analysis.study.rows))}
        looks = ("#000000", *COLOURS)
        return {name: Style(looks[order[level] % 8], "-", MARKERS[order[level] % 9]) for name, level in levels.items()}
    base = analysis.study.reference
    others = [name for name in table.variant if name != base]
    found = {
        name: Style(COLOURS[at % len(COLOURS)], LINES[(at + 1) % len(LINES)], MARKERS[(at + 1) % len(MARKERS)])
        for at, name in enumerate(others)
    }
    return {base: Style("#000000", "-", "o", 3), **found}


def _hue(analysis: Analysis) -> str:
    """The factor with the most levels that colours can tell apart; of several the last."""
    study = analysis.study
    if study.design != "factorial" or len(study.varied) < 2:
        return ""
    sizes = {factor: len(study.factors[factor]) for factor in study.varied if len(study.factors[factor]) <= len(COLOURS)}
    return max(reversed(list(sizes)), key=lambda factor: sizes[factor]) if sizes else ""


def _labels(analysis: Analysis, table: pd.DataFrame) -> dict[str, str]:
    """Short names: of a factorial's condition the levels alone, but for numbers, which do not say of what."""
    if analysis.study.design != "factorial":
        return {name: shortened(name, 34) for name in table.variant}
    configs = {row.name: row.config for row in analysis.study.rows}

    def level(config: RunConfig, factor: str) -> str:
        return f"{factor}=" * isinstance(getattr(config, factor), int | float) + config.label(factor)

    return {
        name: shortened(" ".join(level(configs[name], factor) for factor in analysis.study.varied), 44)
        for name in table.variant
    }


def shortened(name: str, width: int) -> str:
    """A long name without its middle, so that those with one beginning stay apart."""
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[:half]}…{name[-half:]}"


def sheet(height: float) -> Figure:
    """An empty figure as wide as a page, `height` inches high."""
    return Figure(figsize=(WIDTH, height), dpi=150, layout="constrained")


def words(metric: str) -> str:
    """A metric as people say it: final/test_loss -> test loss, nats."""
    part, _, what = metric.removeprefix("final/").partition("_")
    return f"{part_name(part)} {UNITS[what]}"


def legend_key(style: Style, label: str) -> Line2D:
    """A variant's line and marker, for a legend."""
    return Line2D([], [], color=style.colour, ls=style.line, marker=style.marker, ms=4, label=label)


def scaled(ax: Axes, values: pd.Series, what: str) -> None:
    """Make the y axis of a loss, whose range over a training is wide, logarithmic."""
    finite = values[np.isfinite(values)]
    if what == "loss" and len(finite) and (finite > 0).all():
        ax.set_yscale("log")
        log_ticks(ax.yaxis, float(finite.min()), float(finite.max()))


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
