"""Figures of one run. Each function returns the figure and saves nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from harness.results import EpochRecord

# Okabe & Ito 2008: told apart by colour-blind readers; line styles tell them apart in grey
STYLES = {"train": ("#0072B2", "-", "o"), "val": ("#E69F00", ":", "^"), "test": ("#D55E00", "--", "s")}
Histogram = tuple[np.ndarray, np.ndarray]  # shares, bin edges


def history(records: Sequence[EpochRecord], title: str) -> Figure:
    """Loss (log scale) and accuracy over epochs, one line for each of train, validation and test."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, what, unit in zip(axes, ("loss", "accuracy"), ("cross-entropy, nats", "share of samples"), strict=True):
        for part, (colour, line, marker) in STYLES.items():
            points = [(r.epoch, value) for r in records if (value := r.curves.get(f"{part}/{what}")) is not None]
            if points:
                epochs, values = zip(*points, strict=True)
                label = "validation" if part == "val" else part
                ax.plot(epochs, values, color=colour, linestyle=line, marker=marker, markersize=3.5, label=label)
        ax.set(xlabel="epoch", ylabel=f"{what} ({unit})")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    losses = [value for r in records for name, value in r.curves.items() if name.endswith("/loss")]
    if all(np.isfinite(value) and value > 0 for value in losses):
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_locator(NullLocator())
    figure.suptitle(title)
    return figure


def activations(start: Mapping[str, Histogram], end: Mapping[str, Histogram], title: str) -> Figure:
    """Histograms of each hidden layer's outputs on the probe batch, before and after training, on the same axes."""
    figure = Figure(figsize=(9, 2.9 * max(len(start), 1) + 0.7), layout="constrained")
    grid = figure.subplots(max(len(start), 1), 2, squeeze=False, sharex="row", sharey="row")
    for row, layer in zip(grid, start, strict=False):
        for ax, (shares, edges), when, colour in zip(
            row, (start[layer], end[layer]), ("before training", "after training"), ("#999999", "#0072B2"), strict=True
        ):
            ax.stairs(shares, edges, fill=True, color=colour)
            ax.set(title=f"{layer}, {when}", xlabel="output of the layer", ylabel="share of outputs, a bin")
            ax.label_outer(remove_inner_ticks=False)
    figure.suptitle(title)
    return figure
