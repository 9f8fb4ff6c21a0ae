"""Figures of a study, drawn from its analysis: the same analysis gives the same bytes. Nothing is read or saved here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib

from harness.analysis import Analysis
from harness.canvas import Canvas, Drawing
from harness.curves import curves
from harness.forest import verdicts
from harness.interactions import interactions
from harness.vitals import health

FONT: Any = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8.5, "axes.spines.top": False, "axes.spines.right": False}


def drawings(analysis: Analysis, lost: Callable[[str, Exception], None]) -> list[Drawing]:
    """All figures that a study has data for. One that cannot be drawn costs itself: `lost` hears of it."""
    found = []
    with matplotlib.rc_context(FONT):
        canvas = Canvas.of(analysis)
        for draw in (verdicts, curves, health, interactions):
            try:
                if (drawing := draw(canvas)) is not None:
                    drawing.figure.draw_without_rendering()  # the layout is found once
                    drawing.figure.set_layout_engine("none")
                    found.append(drawing)
            except Exception as error:
                lost(draw.__name__, error)
    return found
