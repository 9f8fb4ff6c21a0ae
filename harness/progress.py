"""How far a launch of a study or a search is, for whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Say = Callable[[str], None]


@dataclass
class Progress:
    """How far a launch is; whoever watches is shown it after each epoch of each run."""

    cells: int
    settled: int  # before this launch, and since
    epochs: int  # of all runs to be trained
    failed: int = 0
    passed: dict[str, int] = field(default_factory=dict)  # cell -> its epochs, of these
    running: dict[str, float] = field(default_factory=dict)  # cell -> test (validation) loss of its last epoch
    began: float = field(default_factory=time.monotonic)
    what: str = "cells"  # that are counted; a search counts trials
    part: str = "test"  # that the losses are of

    @property
    def epoch(self) -> int:
        """How many of the epochs are done."""
        return sum(self.passed.values())

    @property
    def seconds_left(self) -> float | None:
        """By the epochs that are done; None before the first."""
        return (time.monotonic() - self.began) * (self.epochs / self.epoch - 1) if self.epoch else None


Watch = Callable[[Progress], None]
