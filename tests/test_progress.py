"""How far a launch is."""

from __future__ import annotations

import time

import pytest

from harness.progress import Progress


def test_time_that_is_left_is_what_the_epochs_so_far_took() -> None:
    """Five of twenty in a minute: fifteen take three more."""
    now = Progress(cells=4, settled=0, epochs=20, began=time.monotonic() - 60)
    assert now.seconds_left is None
    now.passed |= {"base-s0": 3, "wide-s0": 2}
    assert now.epoch == 5
    assert now.seconds_left == pytest.approx(180, rel=0.05)
    now.passed |= {"base-s0": 10, "wide-s0": 10}
    assert now.seconds_left == 0
