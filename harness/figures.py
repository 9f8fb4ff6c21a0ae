"""Figures of a study, drawn from its analysis: the same analysis gives the same bytes. Nothing is read or saved here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import matplotlib

from harness.analysis import Analysis
from harness.canvas import Canvas, Drawing, lay_out
from harness.curves import curves
from harness.distributions import distributions
from harness.forest import verdicts
from harness.histograms import Histograms
from harness.interactions import interactions
from harness.vitals import health

FONT: Any = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8.5, "axes.spines.top": False, "axes.spines.right": False}


FIGURES: dict[str, Callable[[Canvas, Mapping[str, Histograms]], Drawing | None]] = {
    "verdicts": lambda canvas, seen: verdicts(canvas),
    "curves": lambda canvas, seen: curves(canvas),
    "health": lambda canvas, seen: health(canvas),
    "distributions": distributions,
    "interactions": lambda canvas, seen: interactions(canvas),
}


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
        with matplotlib.rc_context(FONT):
            if (drawing := FIGURES[name](Canvas.of(analysis), seen)) is not None:
                lay_out(drawing.figure)
        return drawing or ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
