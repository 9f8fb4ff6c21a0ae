"""Losses and accuracies of variants over epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from harness.canvas import UNITS, Canvas, Sketch, legend_key, scaled, sheet, shortened
from harness.conclusions import part_name

TRAIN, SHOWN = "--", "-"
TITLE = 26  # characters of a panel's title, of which four stand side by side


def curves(canvas: Canvas) -> Sketch | None:
    """Losses and accuracies over epochs: mean, band from the lowest to the highest seed, and single seeds."""
    if not canvas.names or canvas.curves.epoch.max() < 1:
        return None
    figure = _four(canvas) if canvas.few else _many(canvas)
    shown = part_name(canvas.part)
    seeds = f"Mean over {canvas.counted}, band from the lowest to the highest, thin lines single seeds"
    what = (
        f"Train is measured while training, {shown} in eval mode at the end of each epoch"
        if canvas.few
        else f"Solid: {shown}; dashed: train" + ("" if canvas.hue else f"; black in each panel: the base's {shown}")
    )
    return Sketch("curves", "Curves over epochs", f"{seeds}. {what}.{canvas.left_out}", figure)


def _four(canvas: Canvas) -> Figure:
    """Train and test, or validation: loss and accuracy."""
    figure = sheet(6.2 + 0.22 * math.ceil(len(canvas.names) / 3))
    for ax, (what, part) in zip(
        figure.subplots(2, 2, sharex=True).flat, ((w, p) for w in UNITS for p in ("train", canvas.part)), strict=True
    ):
        for name in canvas.names:
            _line(ax, canvas, name, f"{part}/{what}")
        scaled(ax, canvas.curves[f"{part}/{what}"], what)
        ax.set(title=f"{part_name(part)} {what}", ylabel=UNITS[what])
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        if what == "accuracy":
            ax.set_xlabel("epoch")
    counts = canvas.variants.set_index("variant").n
    handles = [legend_key(canvas.styles[name], f"{canvas.labels[name]} (n = {counts[name]})") for name in canvas.names]
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
    figure = sheet(0.6 + 1.75 * rows)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax, (title, names) in zip(axes.flat, panels.items(), strict=False):
        if not canvas.hue and names != [canvas.base] and canvas.base in canvas.names:
            _mean(ax, _seeds(canvas, canvas.base, f"{canvas.part}/{what}"), color="#000000", lw=1, alpha=0.7)
        for name in names:
            _line(ax, canvas, name, f"{canvas.part}/{what}", plain=True)
            _mean(ax, _seeds(canvas, name, f"train/{what}"), color=canvas.styles[name].colour, ls=TRAIN, lw=1)
        ax.set_title(title, fontsize=8.5)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    scaled(axes[0, 0], pd.concat([canvas.curves[f"{part}/{what}"] for part in (canvas.part, "train")]), what)
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
        return shortened(canvas.labels[name], TITLE)
    return "\n".join(_pairs([_level(canvas, name, factor) for factor in canvas.analysis.study.varied if factor != canvas.hue]))


def _level(canvas: Canvas, name: str, factor: str) -> str:
    return next(row.config.label(factor) for row in canvas.analysis.study.rows if row.name == name)


def _pairs(levels: Sequence[str]) -> list[str]:
    return [", ".join(levels[at : at + 2]) for at in range(0, len(levels), 2)]


def _line(ax: Axes, canvas: Canvas, name: str, column: str, plain: bool = False) -> None:
    """One variant: mean, band and seeds."""
    style, seeds = canvas.styles[name], _seeds(canvas, name, column)
    if seeds.shape[1] > 1:
        ax.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=style.colour, alpha=0.15, lw=0)
        ax.plot(seeds.index, seeds.to_numpy(), color=style.colour, lw=0.5, alpha=0.5, zorder=style.order)
    few = len(seeds) <= 25
    look = (
        {"ls": SHOWN, "lw": 1.4} if plain else {"ls": style.line, "marker": style.marker if few else "", "ms": 3.5, "lw": 1.4}
    )
    _mean(ax, seeds, color=style.colour, zorder=style.order + 1, **look)


def _mean(ax: Axes, seeds: pd.DataFrame, **look: Any) -> None:
    mean = seeds.mean(axis=1)
    ax.plot(mean.index, mean, **look)


def _seeds(canvas: Canvas, name: str, column: str) -> pd.DataFrame:
    """A row an epoch, a column a seed; what is not finite is not there."""
    rows = canvas.curves[canvas.curves.variant == name]
    wide = rows.pivot(index="epoch", columns="run_id", values=column)
    return wide.where(np.isfinite(wide)).dropna(how="all")
