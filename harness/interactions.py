"""Factors of a factorial study, two at a time: does the effect of one depend on the other?"""

from __future__ import annotations

import math
from itertools import combinations

import pandas as pd
from matplotlib.lines import Line2D

from harness.canvas import COLOURS, LINES, MARKERS, Canvas, Sketch, sheet, words
from harness.conclusions import plural


def interactions(canvas: Canvas) -> Sketch | None:
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
    figure = sheet(0.4 + 2.7 * math.ceil(len(pairs) / columns))
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
        lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
        ax.legend(
            [Line2D([], [], ls=""), *lines], [f"{other}:", *(str(line.get_label()) for line in lines)], loc="lower center",
            bbox_to_anchor=(0.5, 1.0), ncols=len(lines) + 1, fontsize=7.5, frameon=False, handlelength=1.6, columnspacing=0.6,
            handletextpad=0.4, borderaxespad=0.2,
        )  # fmt: skip
        ax.grid(axis="y", alpha=0.3)
    for ax in axes.flat[len(pairs) :]:
        ax.set_axis_off()
    figure.supylabel(words(study.metric), fontsize=9)
    without = int((table.n == 0).sum())
    gone = f" {without} conditions without a finished run are left out, which bends these means." if without else ""
    if partly := int(((table.n > 0) & (table.diverged + table.failed > 0)).sum()):
        gone += f" Of {plural(partly, 'condition')} some runs diverged or failed: the mean over the rest leaves out the worst."
    marks = "Large: mean over all conditions with the two levels; small" if len(study.varied) > 2 else "Points"
    caption = f"{marks}: each condition's mean over {canvas.counted}.{gone}"
    return Sketch("interactions", "Interactions of factors", caption, figure)
