"""Figures of a study, drawn from its analysis: the same analysis gives the same bytes. Nothing is read or saved here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def drawings(analysis: Analysis, seen: Mapping[str, Histograms], lost: Callable[[str, Exception], None]) -> list[Drawing]:
    """All figures that a study has data for; `seen` has the histograms of runs by their id.

    One that cannot be drawn costs itself: `lost` hears of it.
    """
    found = []
    with matplotlib.rc_context(FONT):
        canvas = Canvas.of(analysis)
        draws: dict[str, Callable[[Canvas], Drawing | None]] = {
            "verdicts": verdicts,
            "curves": curves,
            "health": health,
            "distributions": partial(distributions, seen=seen),
            "interactions": interactions,
        }
        for name, draw in draws.items():
            try:
                if (drawing := draw(canvas)) is not None:
                    lay_out(drawing.figure)
                    found.append(drawing)
            except Exception as error:
                lost(name, error)
    return found
