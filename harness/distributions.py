"""Where weights and hidden outputs lie before and after training: what tells a healthy condition from another at a glance."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from harness.canvas import FEW, Canvas, Sketch, sheet
from harness.histograms import Histogram, Histograms

BEST = 4  # of more variants than fit: the base, so many of the best, and the worst


def distributions(canvas: Canvas) -> Sketch | None:
    """A row for each variant: one run's weights and outputs of hidden layers, the first and the last, and output weights."""
    runs, seen = canvas.variants.set_index("variant").run_ids, canvas.seen
    first = {name: next((run for run in runs[name] if run in seen), "") for name in _shown(canvas)}
    found = {name: seen[run] for name, run in first.items() if run}
    if not found:
        return None
    places = (
        ["first hidden layer", "last hidden layer"] if any(len(run.outputs) > 1 for run in found.values()) else ["hidden layer"]
    )
    heads = [*(f"{place}:\n{what}" for place in places for what in ("weights", "outputs")), "output layer:\nweights"]
    figure = sheet(0.55 + 0.78 * len(found))
    axes = figure.subplots(len(found), len(heads), squeeze=False)
    for row, (name, run) in zip(axes, found.items(), strict=True):
        for ax, histogram in zip(row, _panels(run, len(places)), strict=True):
            _stairs(ax, histogram, canvas.styles[name].colour)
        row[0].set_ylabel(canvas.labels[name].replace(" ", "\n"), rotation=0, ha="right", va="center", fontsize=8)
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head, fontsize=8.5)
    keys = [Patch(color="#BBBBBB", label="before training"), Line2D([], [], color="#000000", label="after training")]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False)
    fewer = f" Of {len(canvas.names)} variants the base, the {BEST} best and the {FEW - 1 - BEST} worst."
    caption = (
        "Of each variant one run, that of its first seed; outputs on fixed training samples in eval mode. Height: share of the "
        "values. Each panel has axes of its own. The base stands first, then the best."
        f"{fewer if len(canvas.names) > FEW else ''}"
    )
    return Sketch("distributions", "Weights and activations, before and after training", caption, figure)


def _shown(canvas: Canvas) -> list[str]:
    """The base first, then the others from the best to the worst; of too many those at both ends."""
    sign = 1 if canvas.analysis.study.metric.endswith("loss") else -1
    means = canvas.variants.set_index("variant")["mean"].loc[canvas.names] * sign
    others = [str(name) for name in means.drop(canvas.base, errors="ignore").sort_values(kind="stable").index]
    if len(canvas.names) > FEW:
        others = [*others[:BEST], *others[-(FEW - 1 - BEST) :]]
    return [*(name for name in canvas.names if name == canvas.base), *others]


def _panels(run: Histograms, places: int) -> list[Histogram | None]:
    """In the order of the heads; None where a network has no such hidden layer."""
    weights, outputs = list(run.weights.values()), list(run.outputs.values())
    hidden: list[Histogram | None] = [weights[0], outputs[0]] if outputs else [None, None]
    if places > 1:
        hidden += [weights[len(outputs) - 1], outputs[-1]] if len(outputs) > 1 else [None, None]
    return [*hidden, weights[-1]]


def _stairs(ax: Axes, histogram: Histogram | None, colour: str) -> None:
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if histogram is None:
        ax.set_axis_off()
        return
    before, after = histogram.shares
    ax.stairs(before, histogram.edges, fill=True, color="#BBBBBB")
    ax.stairs(after, histogram.edges, color=colour, lw=1.2)
    ax.set_ylim(0, 1.08 * max(float(before.max()), float(after.max()), math.ulp(1.0)))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(axis="x", labelsize=7, pad=1.5, length=2)
