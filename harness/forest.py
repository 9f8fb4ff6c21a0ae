"""The forest plot: final values of every seed, and each variant's difference to the base with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from harness.canvas import UNITS, Canvas, Sketch, log_ticks, sheet, words
from harness.conclusions import trust
from harness.frames import each


def verdicts(canvas: Canvas) -> Sketch | None:
    """Each variant's final values, every seed drawn, beside its difference to the base with its interval."""
    analysis, table, study = canvas.analysis, canvas.variants, canvas.analysis.study
    if not canvas.names:
        return None
    rows = len(table)
    figure = sheet(0.9 + 0.27 * rows)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.1))
    places = {str(row.variant): rows - 1 - at for at, row in enumerate(each(table))}
    _values(left, canvas, places)
    _differences(right, canvas, places)
    left.set_yticks(list(places.values()), [canvas.labels[name] for name in places])
    left.set_ylim(-0.6, rows - 0.4)
    left.tick_params(axis="y", length=0, pad=9)  # room for the head of an arrow
    right.tick_params(axis="y", length=0)
    seeds, matters = len(study.seeds), study.matters
    zone = f" The grey zone is ±{matters:g}, the smallest difference that matters." if matters else ""
    apart = f" Right: mean difference to {canvas.base} over seeds."
    together = f"{apart} {trust(analysis.contrasts)}." if len(analysis.contrasts) else ""
    caption = (
        f"Left: {words(study.metric)} of each of {seeds} seed{'s' * (seeds > 1)} (dots), mean (bar), 95% t interval (line)."
        f"{together}{zone} An arrow is an interval that goes on.{canvas.left_out}"
    )
    return Sketch("verdicts", "Final values, and differences to the base", caption, figure)


def _values(ax: Axes, canvas: Canvas, places: Mapping[str, int]) -> None:
    metric, runs = canvas.analysis.study.metric, canvas.analysis.runs.dropna(subset="run_id").set_index("run_id")
    for row in each(canvas.variants):
        place, style = places[str(row.variant)], canvas.styles[str(row.variant)]
        values = runs[metric].reindex(list(row.run_ids)).to_numpy(dtype=float)
        if row.n:
            ax.plot([row.mean], [place], marker="|", ms=11, mew=2, color=style.colour)
            ax.plot(values, np.full(len(values), place), ls="", marker=style.marker, ms=4.5, mfc="none", mec=style.colour)
        gone = [f"{count} {what}" for what in ("diverged", "failed", "missing") if (count := getattr(row, what))]
        if gone:
            look: Any = {"ha": "right", "va": "center", "fontsize": 8, "style": "italic", "color": "#555555", "zorder": 4}
            paper = {"facecolor": "#FFFFFF", "edgecolor": "none", "pad": 1.5}
            ax.text(0.97, place, ", ".join(gone), transform=ax.get_yaxis_transform(), bbox=paper, **look)
    low, high = float(canvas.variants["min"].min()), float(canvas.variants["max"].max())
    if metric.endswith("loss") and low > 0 and high > 12 * low:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.5, high * 1.5)
        log_ticks(ax.xaxis, low, high)
    else:
        pad = max(0.08 * (high - low), 1e-3 * abs(high), 1e-9)
        reach = np.nanmax([high, *canvas.variants.high.clip(upper=high + 0.3 * (high - low))])
        ax.set_xlim(np.nanmin([low, *canvas.variants.low.clip(lower=low - 0.3 * (high - low))]) - pad, reach + pad)
        ax.xaxis.set_major_locator(MaxNLocator(6))
    for row in each(canvas.variants[canvas.variants.n > 1]):
        name = str(row.variant)
        _interval(ax, places[name], row.low, row.high, ax.get_xlim(), color=canvas.styles[name].colour, lw=1.2)
    ax.set_xlabel(words(metric))
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
        _interval(ax, place, row.low, row.high, (low, high), "|", color=style.colour, lw=1.6)
        ax.plot([row.difference], [place], marker=style.marker, ms=5.5, color=style.colour)
    for row in each(contrasts[contrasts.variant.isin(list(places))]):
        ax.text(1.05, places[str(row.variant)], str(row.verdict), transform=at, va="center", fontsize=8.5)
    ax.text(1.05, places[canvas.base], "base", transform=at, va="center", fontsize=8.5, color="#555555")
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel(f"difference to the base, {UNITS[study.metric.partition('_')[2]]}")
    ax.grid(axis="x", alpha=0.3)


def _interval(ax: Axes, place: int, low: float, high: float, within: tuple[float, float], cap: str = "", **look: Any) -> None:
    """A line from low to high, with an arrow at the edge that it goes beyond, and this cap at an end that is seen."""
    ends = np.clip([low, high], *within)
    ax.plot(ends, [place, place], **look)
    for end, given, arrow in ((ends[0], low, "<"), (ends[1], high, ">")):
        marker = arrow if end != given else cap
        if math.isfinite(given) and marker:
            ax.plot([end], [place], marker=marker, ms=6, mew=look["lw"], color=look["color"], clip_on=False)


def _reach(shown: pd.DataFrame, matters: float) -> tuple[float, float]:
    """Limits that hold all differences and zone, and of intervals what is not out of all proportion to them."""
    points = np.array([0.0, -matters, matters, *shown.difference])
    span = max(float(np.ptp(points)), 1e-9)
    low = min([float(points.min()), *shown.low.clip(lower=points.min() - 0.5 * span).dropna()])
    high = max([float(points.max()), *shown.high.clip(upper=points.max() + 0.5 * span).dropna()])
    return low - 0.04 * span, high + 0.04 * span
