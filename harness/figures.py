"""Figures of a study, drawn from its analysis: the same analysis gives the same bytes. Nothing is read or saved here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from harness.analysis import Analysis
from harness.canvas import COLOURS, LINES, MARKERS, Canvas, Drawing, Style, shortened
from harness.frames import each

WIDTH = 9.0  # inches: a printed page with its margins, at 9 points as on the screen
TRAIN, TEST = "--", "-"
UNITS = {"loss": "loss, nats", "accuracy": "accuracy"}
HEALTH = {
    "saturated": "saturated outputs, share",
    "dead": "dead units, share",
    "std": "std of outputs",
    "grad_norm": "gradient norm",
}
FONT: Any = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8.5, "axes.spines.top": False, "axes.spines.right": False}


def drawings(analysis: Analysis, lost: Callable[[str, Exception], None]) -> list[Drawing]:
    """All figures that a study has data for. One that cannot be drawn costs itself: `lost` hears of it."""
    found = []
    with matplotlib.rc_context(FONT):
        canvas = Canvas.of(analysis)
        for draw in (verdicts, curves, health, interactions):
            try:
                if (drawing := draw(canvas)) is not None:
                    drawing.figure.draw_without_rendering()  # the layout is found once
                    drawing.figure.set_layout_engine("none")
                    found.append(drawing)
            except Exception as error:
                lost(draw.__name__, error)
    return found


# values and differences


def verdicts(canvas: Canvas) -> Drawing | None:
    """Each variant's final values, every seed drawn, beside its difference to the base with its interval."""
    analysis, table, study = canvas.analysis, canvas.variants, canvas.analysis.study
    if not canvas.names:
        return None
    rows = len(table)
    figure = _figure(0.9 + 0.27 * rows)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.1))
    places = {str(row.variant): rows - 1 - at for at, row in enumerate(each(table))}
    _values(left, canvas, places)
    _differences(right, canvas, places)
    left.set_yticks(list(places.values()), [canvas.labels[name] for name in places])
    left.set_ylim(-0.6, rows - 0.4)
    left.tick_params(axis="y", length=0)
    right.tick_params(axis="y", length=0)
    seeds, matters = len(study.seeds), study.matters
    zone = f" The grey zone is ±{matters:g}, the smallest difference that matters." if matters else ""
    level = analysis.contrasts.level.iloc[0] if len(analysis.contrasts) else math.nan
    together = (
        f" Right: mean difference to {canvas.base} over seeds, with intervals that hold together with 95% "
        f"({100 * level:.4g}% each); an arrow is an interval that goes on."
        if len(analysis.contrasts)
        else ""
    )
    caption = (
        f"Left: {_words(study.metric)} of each of {seeds} seed{'s' * (seeds > 1)} (dots), mean (bar), 95% t interval (line)."
        f"{together}{zone}{canvas.left_out}"
    )
    return Drawing("verdicts", "Final values, and differences to the base", caption, figure)


def _values(ax: Axes, canvas: Canvas, places: Mapping[str, int]) -> None:
    metric, runs = canvas.analysis.study.metric, canvas.analysis.runs.set_index("run_id")[canvas.analysis.study.metric]
    for row in each(canvas.variants):
        place, style = places[str(row.variant)], canvas.styles[str(row.variant)]
        values = runs.reindex(list(row.run_ids)).to_numpy(dtype=float)
        if row.n > 1:
            ax.plot([row.low, row.high], [place, place], color=style.colour, lw=1.2, alpha=0.8)
        if row.n:
            ax.plot([row.mean], [place], marker="|", ms=11, mew=2, color=style.colour)
            ax.plot(values, np.full(len(values), place), ls="", marker=style.marker, ms=4.5, mfc="none", mec=style.colour)
        gone = [f"{count} {what}" for what in ("diverged", "failed", "missing") if (count := getattr(row, what))]
        if gone:
            look: Any = {"ha": "right", "va": "center", "fontsize": 8, "style": "italic", "color": "#555555"}
            ax.text(0.99, place, ", ".join(gone), transform=ax.get_yaxis_transform(), **look)
    low, high = float(canvas.variants["min"].min()), float(canvas.variants["max"].max())
    if metric.endswith("loss") and low > 0 and high > 12 * low:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.5, high * 1.5)
        _log_ticks(ax.xaxis, low, high)
    else:
        pad = max(0.08 * (high - low), 1e-3 * abs(high), 1e-9)
        reach = np.nanmax([high, *canvas.variants.high.clip(upper=high + 0.3 * (high - low))])
        ax.set_xlim(np.nanmin([low, *canvas.variants.low.clip(lower=low - 0.3 * (high - low))]) - pad, reach + pad)
        ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel(_words(metric))
    ax.grid(axis="x", alpha=0.3)


def _differences(ax: Axes, canvas: Canvas, places: Mapping[str, int]) -> None:
    study, contrasts = canvas.analysis.study, canvas.analysis.contrasts
    shown = contrasts[contrasts.variant.isin(list(places)) & contrasts.difference.notna()]
    low, high = _reach(shown, study.matters or 0.0)
    if study.matters:
        ax.axvspan(-study.matters, study.matters, color="#000000", alpha=0.1, lw=0)
    ax.axvline(0, color="#000000", lw=0.8)
    at = ax.get_yaxis_transform()
    for row in each(shown):
        place, style = places[str(row.variant)], canvas.styles[str(row.variant)]
        ends = np.clip([row.low, row.high], low, high)
        ax.plot(ends, [place, place], color=style.colour, lw=1.6)
        for end, given, arrow in ((ends[0], row.low, "<"), (ends[1], row.high, ">")):
            if math.isfinite(given):
                ax.plot([end], [place], marker=arrow if end != given else "|", ms=6, mew=1.6, color=style.colour, clip_on=False)
        ax.plot([row.difference], [place], marker=style.marker, ms=5.5, color=style.colour)
    for row in each(contrasts[contrasts.variant.isin(list(places))]):
        ax.text(1.02, places[str(row.variant)], str(row.verdict), transform=at, va="center", fontsize=8.5)
    ax.text(1.02, places[canvas.base], "base", transform=at, va="center", fontsize=8.5, color="#555555")
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel(f"difference to {shortened(canvas.base, 30)}")
    ax.grid(axis="x", alpha=0.3)


def _reach(shown: pd.DataFrame, matters: float) -> tuple[float, float]:
    """Limits that hold all differences and zone, and of intervals what is not out of all proportion to them."""
    points = np.array([0.0, -matters, matters, *shown.difference])
    span = max(float(np.ptp(points)), 1e-9)
    low = min([float(points.min()), *shown.low.clip(lower=points.min() - 0.5 * span).dropna()])
    high = max([float(points.max()), *shown.high.clip(upper=points.max() + 0.5 * span).dropna()])
    return low - 0.04 * span, high + 0.04 * span


# curves


def curves(canvas: Canvas) -> Drawing | None:
    """Losses and accuracies over epochs: mean, band from the lowest to the highest seed, and single seeds."""
    if not canvas.names or canvas.curves.epoch.max() < 1:
        return None
    figure = _four(canvas) if canvas.few else _many(canvas)
    n = canvas.variants.n
    of = f"{n.max()}" if n.min() == n.max() else f"{n[n > 0].min()} to {n.max()}"
    seeds = f"mean over {of} seed{'s' * (of != '1')}, band from the lowest to the highest, thin lines single seeds"
    what = (
        "Train is measured while training, test in eval mode at the end of each epoch"
        if canvas.few
        else "Solid: test; dashed: train" + ("" if canvas.hue else "; black in each panel: the base's test")
    )
    return Drawing("curves", "Curves over epochs", f"{seeds[0].upper()}{seeds[1:]}. {what}.{canvas.left_out}", figure)


def _four(canvas: Canvas) -> Figure:
    """Train and test, loss and accuracy."""
    figure = _figure(6.2 + 0.22 * math.ceil(len(canvas.names) / 3))
    for ax, (what, part) in zip(
        figure.subplots(2, 2, sharex=True).flat, ((w, p) for w in UNITS for p in ("train", "test")), strict=True
    ):
        for name in canvas.names:
            _line(ax, canvas, name, f"{part}/{what}")
        _scale(ax, canvas.curves[f"{part}/{what}"], what)
        ax.set(title=f"{part} {what}", ylabel=UNITS[what])
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        if what == "accuracy":
            ax.set_xlabel("epoch")
    counts = canvas.variants.set_index("variant").n
    handles = [_key(canvas.styles[name], f"{canvas.labels[name]} (n = {counts[name]})") for name in canvas.names]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _many(canvas: Canvas) -> Figure:
    """A panel for each variant, beside the base; in a factorial for each setting of all factors but that of the colours."""
    _, _, metric = canvas.analysis.study.metric.partition("/")
    what = metric.partition("_")[2]
    panels: dict[str, list[str]] = {}
    for name in canvas.names:
        panels.setdefault(_panel(canvas, name), []).append(name)
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = _figure(0.6 + 1.75 * rows)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax, (title, names) in zip(axes.flat, panels.items(), strict=False):
        if not canvas.hue and names != [canvas.base] and canvas.base in canvas.names:
            _mean(ax, canvas, canvas.base, f"test/{what}", color="#000000", lw=1, alpha=0.7)
        for name in names:
            _line(ax, canvas, name, f"test/{what}", plain=True)
            _mean(ax, canvas, name, f"train/{what}", color=canvas.styles[name].colour, ls=TRAIN, lw=1)
        ax.set_title(title, fontsize=8.5)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    _scale(axes[0, 0], pd.concat([canvas.curves[f"{part}/{what}"] for part in ("test", "train")]), what)
    figure.supylabel(UNITS[what], fontsize=9)
    figure.supxlabel("epoch", fontsize=9)
    if canvas.hue:
        level = {_level(canvas, name, canvas.hue): canvas.styles[name] for name in canvas.names}
        handles = [Line2D([], [], color=style.colour, label=f"{canvas.hue}={name}") for name, style in level.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _panel(canvas: Canvas, name: str) -> str:
    """The title of the panel that a variant is drawn in."""
    if not canvas.hue:
        return canvas.labels[name]
    return "\n".join(_pairs([_level(canvas, name, factor) for factor in canvas.analysis.study.varied if factor != canvas.hue]))


def _pairs(levels: Sequence[str]) -> list[str]:
    return [", ".join(levels[at : at + 2]) for at in range(0, len(levels), 2)]


def _line(ax: Axes, canvas: Canvas, name: str, column: str, plain: bool = False) -> None:
    """One variant: mean, band and seeds."""
    style, seeds = canvas.styles[name], _seeds(canvas, name, column)
    if seeds.shape[1] > 1:
        ax.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=style.colour, alpha=0.15, lw=0)
        ax.plot(seeds.index, seeds.to_numpy(), color=style.colour, lw=0.5, alpha=0.5, zorder=style.order)
    few = len(seeds) <= 25
    look = {"ls": TEST, "lw": 1.4} if plain else {"ls": style.line, "marker": style.marker if few else "", "ms": 3.5, "lw": 1.4}
    _mean(ax, canvas, name, column, color=style.colour, zorder=style.order + 1, **look)


def _mean(ax: Axes, canvas: Canvas, name: str, column: str, **look: Any) -> None:
    mean = _seeds(canvas, name, column).mean(axis=1)
    ax.plot(mean.index, mean, **look)


def _seeds(canvas: Canvas, name: str, column: str) -> pd.DataFrame:
    """A row an epoch, a column a seed; what is not finite is not there."""
    rows = canvas.curves[canvas.curves.variant == name]
    wide = rows.pivot(index="epoch", columns="run_id", values=column)
    return wide.where(np.isfinite(wide)).dropna(how="all")


def _scale(ax: Axes, values: pd.Series, what: str) -> None:
    """A logarithmic axis for losses, whose range over a training is wide."""
    finite = values[np.isfinite(values)]
    if what == "loss" and len(finite) and (finite > 0).all():
        ax.set_yscale("log")
        _log_ticks(ax.yaxis, float(finite.min()), float(finite.max()))


def _log_ticks(axis: Any, low: float, high: float) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


# health


def health(canvas: Canvas) -> Drawing | None:
    """Health of each hidden layer over epochs."""
    frame = canvas.analysis.health
    frame = frame[frame.variant.isin(canvas.names)]
    if frame.empty:
        return None
    layers = list(dict.fromkeys(frame.layer))
    shown = layers if len(layers) <= 4 else [*layers[:2], *layers[-2:]]
    if len(shown) == 1:
        figure, shape = _figure(5.2), (2, 2)
    else:
        figure, shape = _figure(0.8 + 1.7 * len(HEALTH)), (len(HEALTH), len(shown))
    axes = figure.subplots(*shape, sharex=True, sharey="row" if len(shown) > 1 else False, squeeze=False)
    panels = [(measure, layer) for measure in HEALTH for layer in shown]
    colours, legend = _health_colours(canvas)
    for ax, (measure, layer) in zip(axes.flat, panels, strict=True):
        part = frame[frame.layer == layer]
        for name in canvas.names:
            rows = part[part.variant == name].sort_values("epoch")
            style = canvas.styles[name]
            look = {"ls": style.line, "marker": style.marker, "ms": 3} if canvas.few else {"lw": 1}
            ax.plot(rows.epoch, rows[measure], color=colours[name], zorder=style.order, **look)
        positive = part[measure][np.isfinite(part[measure])]
        if measure in ("std", "grad_norm") and len(positive) and (positive > 0).all():
            _scale(ax, positive, "loss")
        else:
            ax.set_ylim(-0.03, max(1.03 if measure in ("saturated", "dead") else 0, 0.05))
        first = ax.get_subplotspec().is_first_col()
        if first or len(shown) == 1:
            ax.set_ylabel(HEALTH[measure])
        if measure == "saturated" and len(shown) > 1:
            ax.set_title(layer)
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.grid(alpha=0.3)
    legend(figure, axes)
    told = "" if canvas.few else f" Colour: final {_words(canvas.analysis.study.metric)}, its mean over seeds."
    fewer = f" Of {len(layers)} hidden layers the first and last two." if len(shown) < len(layers) else ""
    caption = (
        f"Means over seeds, on fixed training samples in eval mode, {', '.join(shown)}. Saturated: outputs where the "
        f"activation's slope is below 0.005; dead: units where it is for all samples.{told}{fewer}{canvas.left_out} "
        "Histograms of a run's outputs are on its own page, plots/activations.png."
    )
    return Drawing("health", "Health of hidden layers", caption, figure)


def _health_colours(canvas: Canvas) -> tuple[Mapping[str, Any], Callable[[Figure, Any], None]]:
    """Each variant's own colour; where there are too many for that, one by its result. And what draws the key."""
    means = canvas.variants.set_index("variant")["mean"].loc[canvas.names]
    if canvas.few:
        handles = [_key(canvas.styles[name], canvas.labels[name]) for name in canvas.names]
        return (
            {name: canvas.styles[name].colour for name in canvas.names},
            lambda figure, axes: cast(None, figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)),
        )
    low, high = float(means.min()), float(means.max())
    wide = canvas.analysis.study.metric.endswith("loss") and low > 0 and high > 5 * low
    norm = LogNorm(low, high) if wide else Normalize(low, high if high > low else low + 1)
    scale = matplotlib.cm.ScalarMappable(norm, colormaps["cividis"])

    def bar(figure: Figure, axes: Any) -> None:
        made = figure.colorbar(scale, ax=axes, label=_words(canvas.analysis.study.metric), shrink=0.6, aspect=40)
        if wide:
            _log_ticks(made.ax.yaxis, low, high)

    return {name: scale.to_rgba(means[name]) for name in canvas.names}, bar


# interactions


def interactions(canvas: Canvas) -> Drawing | None:
    """In a factorial: for each pair of factors the mean at each setting of the two; lines that are not parallel interact."""
    study, table = canvas.analysis.study, canvas.analysis.variants
    factors = [factor for factor in study.varied if len(study.factors.get(factor, ())) > 1][:5]
    if study.design != "factorial" or len(factors) < 2 or not (table.n > 0).any():
        return None
    rows = {row.name: row for row in study.rows}
    levels = pd.DataFrame(
        {factor: [rows[name].config.label(factor) for name in table.variant] for factor in factors} | {"value": table["mean"]}
    )
    pairs = list(combinations(factors, 2))
    columns = min(3, len(pairs))
    figure = _figure(0.4 + 2.3 * math.ceil(len(pairs) / columns))
    axes = figure.subplots(math.ceil(len(pairs) / columns), columns, sharey=True, squeeze=False)
    for ax, (one, other) in zip(axes.flat, pairs, strict=False):
        if levels[one].nunique() < levels[other].nunique():
            one, other = other, one  # fewer lines, each of more points
        places = {level: at for at, level in enumerate(dict.fromkeys(levels[one]))}
        for at, (level, part) in enumerate(levels.groupby(other, sort=False)):
            colour, marker = ("#000000", *COLOURS)[at % 8], MARKERS[at % len(MARKERS)]
            means = part.groupby(one, sort=False).value.mean()
            spread = 0.12 * (at - (levels[other].nunique() - 1) / 2)
            ax.plot(part[one].map(places) + spread, part.value, ls="", marker=marker, ms=3, color=colour, alpha=0.35, mew=0)
            ax.plot(
                [places[str(name)] + spread for name in means.index], means, color=colour, ls=LINES[at % len(LINES)],
                marker=marker, ms=5, label=str(level),
            )  # fmt: skip
        ax.set_xticks(list(places.values()), list(places))
        ax.set_xlim(-0.5, len(places) - 0.5)
        ax.set_xlabel(one)
        ax.legend(title=other, title_fontsize=8.5, fontsize=8, framealpha=0.7, edgecolor="none")
        ax.grid(axis="y", alpha=0.3)
    for ax in axes.flat[len(pairs) :]:
        ax.set_axis_off()
    figure.supylabel(_words(study.metric), fontsize=9)
    without = int((table.n == 0).sum())
    gone = f" {without} conditions without a finished run are left out, which bends these means." if without else ""
    caption = f"Large: mean over all conditions with the two levels; small: each condition's mean over its seeds.{gone}"
    return Drawing("interactions", "Interactions of factors", caption, figure)


def _level(canvas: Canvas, name: str, factor: str) -> str:
    return next(row.config.label(factor) for row in canvas.analysis.study.rows if row.name == name)


def _key(style: Style, label: str) -> Line2D:
    return Line2D([], [], color=style.colour, ls=style.line, marker=style.marker, ms=4, label=label)


def _words(metric: str) -> str:
    """A metric as people say it: final/test_loss -> test loss, nats."""
    part, _, what = metric.removeprefix("final/").partition("_")
    return f"{'validation' if part == 'val' else part} {UNITS[what]}"


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=150, layout="constrained")
