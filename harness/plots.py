"""Figures of one run. Each function returns what writes the PNG to a path."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from harness.histograms import Histogram
from harness.results import EpochRecord

Write = Callable[[Path], object]
ROW, HEAD = 3.3, 0.42  # inches: of a row of axes, and of the title of one
BELOW = 0.28  # inches: from an axis to the label below its ticks
TICKS = 5  # steps of a linear axis at most: each tick takes as long to draw as a curve
# Okabe & Ito 2008: told apart by colour-blind readers; line styles tell them apart in grey
STYLES = {"train": ("#0072B2", "-", "o"), "val": ("#E69F00", ":", "^"), "test": ("#D55E00", "--", "s")}


@style.context("default")  # whatever the reader has set: a figure is the run's alone
def history(records: Sequence[EpochRecord], title: str) -> Write:
    """Loss (log scale) and accuracy over epochs, one line for each of train, validation and test."""
    figure = _page(title, rows=1, head=0.15)
    axes = figure.subplots(1, 2)
    for ax, what, unit in zip(axes, ("loss", "accuracy"), ("cross-entropy, nats", "share of samples"), strict=True):
        for part, (colour, line, marker) in STYLES.items():
            points = [(r.epoch, value) for r in records if (value := r.curves.get(f"{part}/{what}")) is not None]
            if points:
                epochs, values = zip(*points, strict=True)
                label = "validation" if part == "val" else part
                ax.plot(epochs, values, color=colour, linestyle=line, marker=marker, markersize=4, label=label)
        _label(figure, ax, "epoch", f"{what} ({unit})")
        ax.locator_params(nbins=TICKS)
        ax.locator_params("x", integer=True)
        ax.grid(alpha=0.3)
    axes[0].legend(frameon=False)  # one for both, as it takes a tenth of the time
    losses = [value for r in records for name, value in r.curves.items() if name.endswith("/loss")]
    if all(np.isfinite(value) and value > 0 for value in losses):
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(losses) < 1000 * min(losses) else (1,)))
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_locator(NullLocator())
    return _png(figure)


@style.context("default")
def activations(outputs: Mapping[str, Histogram], title: str) -> Write:
    """Histograms of each hidden layer's outputs on the probe batch, before and after training."""
    columns = min(max(len(outputs), 1), 2)
    rows = max(-(-len(outputs) // columns), 1)
    figure = _page(title, rows, head=HEAD)
    for place, (layer, found) in enumerate(outputs.items(), 1):
        ax = figure.add_subplot(rows, columns, place)
        before, after = found.shares
        ax.stairs(before, found.edges, fill=True, color="#BBBBBB", label="before training")
        ax.stairs(after, found.edges, color="#0072B2", linewidth=1.5, label="after training")
        ax.locator_params(nbins=TICKS)
        ax.set_title(layer, y=1)  # left to matplotlib it is measured against all ticks first
        _label(figure, ax, "output of the layer", "share of outputs, a bin")
    if outputs:
        figure.axes[0].legend(framealpha=0.8, edgecolor="none")
    return _png(figure)


def _label(figure: Figure, ax: Axes, x: str, y: str) -> None:
    """Label both axes. How far below all ticks lie is known; left to matplotlib they are measured, and more than once."""
    ax.set(xlabel=x, ylabel=y)
    ax.xaxis.set_label_coords(0.5, -BELOW / (ax.get_position().height * figure.get_figheight()))


def _png(figure: Figure) -> Write:
    """How to write a figure: `savefig` would draw it twice, and to press it harder takes longer than it saves."""
    return partial(FigureCanvasAgg(figure).print_png, pil_kwargs={"compress_level": 1})


def _page(title: str, rows: int, head: float) -> Figure:
    """A figure 9 inches wide with room for two axes in each row, under its title and `head` inches for those of axes.

    Margins are given in inches: a layout engine finds them by drawing all of it once more, a third of a run's last second.
    """
    lines = textwrap.wrap(title, 90)
    height = ROW * rows + head - HEAD + 0.2 * len(lines)
    figure = Figure(figsize=(9, height), dpi=100)
    figure.subplots_adjust(
        left=0.85 / 9, right=1 - 0.15 / 9, bottom=0.5 / height, top=1 - (head + 0.2 * len(lines)) / height,
        wspace=0.25, hspace=0.9 / (ROW - 0.9),
    )  # fmt: skip
    figure.suptitle("\n".join(lines), fontsize=11, y=1 - 0.08 / height, va="top")
    return figure
