"""Figures of a study, drawn from its analysis: the same analysis gives the same bytes. Nothing is read or saved here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from harness.analysis import Analysis
from harness.drawing import Drawing
from harness.histograms import Histograms

FIGURES = ("verdicts", "curves", "health", "distributions", "interactions")


def drawings(
    analysis: Analysis,
    seen: Mapping[str, Histograms],
    lost: Callable[[str], None],
    spread: Callable[..., Iterable[Any]] = map,
) -> list[Drawing]:
    """All figures that a study has data for; `seen` has the histograms of runs by their id.

    One that cannot be drawn costs itself: `lost` hears of it. The last ones take longest, so `spread` begins with them.
    """
    names = list(reversed(FIGURES))
    found = []
    for name, drawn in reversed(list(zip(names, spread(partial(_drawn, analysis, seen), names), strict=True))):
        if isinstance(drawn, Drawing):
            found.append(drawn)
        elif drawn:
            lost(f"{name}: {drawn}")
    return found


def _drawn(analysis: Analysis, seen: Mapping[str, Histograms], name: str) -> Drawing | str:
    """A figure, or why it cannot be drawn; nothing where there is no data for it."""
    try:
        # a second of imports, for which those who have others draw need not wait
        from matplotlib import rc_context, style

        from harness import canvas, curves, distributions, forest, interactions, vitals

        draw: Callable[[canvas.Canvas], canvas.Sketch | None] = {
            "verdicts": forest.verdicts,
            "curves": curves.curves,
            "health": vitals.health,
            "distributions": distributions.distributions,
            "interactions": interactions.interactions,
        }[name]
        with style.context("default"), rc_context(canvas.FONT):  # whatever the reader has set
            sketch = draw(canvas.Canvas.of(analysis, seen))
            return sketch.drawing() if sketch else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
