"""What goes on in hidden layers: their health over epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.canvas import Canvas, Sketch, legend_key, log_ticks, scaled, sheet, words

HEALTH = {
    "saturated": "saturated outputs, share",
    "dead": "dead units, share",
    "std": "std of outputs",
    "grad_norm": "gradient norm",
}


def health(canvas: Canvas) -> Sketch | None:
    """Health of each hidden layer over epochs."""
    frame = canvas.analysis.health
    frame = frame[frame.variant.isin(canvas.names)]
    if frame.empty:
        return None
    layers = list(dict.fromkeys(frame.layer))
    shown = layers if len(layers) <= 4 else [*layers[:2], *layers[-2:]]
    if len(shown) == 1:
        figure, shape = sheet(5.2), (2, 2)
    else:
        figure, shape = sheet(0.8 + 1.7 * len(HEALTH)), (len(HEALTH), len(shown))
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
            scaled(ax, positive, "loss")
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
    told = "" if canvas.few else f" Colour: final {words(canvas.analysis.study.metric)}, its mean over them."
    fewer = f" Of {len(layers)} hidden layers the first and last two." if len(shown) < len(layers) else ""
    caption = (
        f"Means over {canvas.counted}, on fixed training samples in eval mode, {', '.join(shown)}. Saturated: outputs where "
        f"the activation's slope is below 0.005; dead: units where it is for all samples.{told}{fewer}{canvas.left_out}"
    )
    return Sketch("health", "Health of hidden layers", caption, figure)


def _health_colours(canvas: Canvas) -> tuple[Mapping[str, Any], Callable[[Figure, Any], None]]:
    """Each variant's own colour; where there are too many for that, one by its result. And what draws the key."""
    means = canvas.variants.set_index("variant")["mean"].loc[canvas.names]
    if canvas.few:
        handles = [legend_key(canvas.styles[name], canvas.labels[name]) for name in canvas.names]
        return (
            {name: canvas.styles[name].colour for name in canvas.names},
            lambda figure, axes: cast(None, figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)),
        )
    low, high = float(means.min()), float(means.max())
    wide = canvas.analysis.study.metric.endswith("loss") and low > 0 and high > 5 * low
    norm = LogNorm(low, high) if wide else Normalize(low, high if high > low else low + 1)
    scale = matplotlib.cm.ScalarMappable(norm, colormaps["cividis"])

    def bar(figure: Figure, axes: Any) -> None:
        made = figure.colorbar(scale, ax=axes, label=words(canvas.analysis.study.metric), shrink=0.6, aspect=40)
        if wide:
            log_ticks(made.ax.yaxis, low, high)

    return {name: scale.to_rgba(means[name]) for name in canvas.names}, bar
