"""Contenders side by side: rounds in turn, so that a slow minute of the machine falls on all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

NOTEBOOK, LIMIT = "notebook's loop", "limit, adam: products + update"
Epoch = Callable[[], float]  # trains one epoch; seconds of its shuffle and steps, per run


@dataclass(frozen=True)
class Contender:
    """A way to train; `start` sets it up and returns what trains an epoch. It is compared with others by their names."""

    name: str
    start: Callable[[], Epoch]
    notebook: str = ""  # the contender that trains the same network as the notebook does
    limit: str = ""  # and the least that its arithmetic takes
    runs: int = 1  # that train at once


@dataclass(frozen=True)
class Times:
    """Seconds per epoch and run, a round each, and what came before the first."""

    rounds: Sequence[float]
    start: float  # set-up and first epoch beyond a later one: compiling, allocating

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def timed(work: Callable[[], object]) -> float:
    """Wall seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def contest(contenders: Sequence[Contender], rounds: int, say: Callable[[str], None]) -> Mapping[str, Times]:
    """Each contender's times: one epoch to warm up, then `rounds` epochs, all contenders in every round."""
    epochs, warm, start, times = {}, {}, {}, {c.name: [] for c in contenders}  # type: ignore[var-annotated]
    for contender in contenders:
        began = time.perf_counter()
        epochs[contender.name] = contender.start()
        warm[contender.name] = epochs[contender.name]()
        start[contender.name] = time.perf_counter() - began
    gc.collect()
    gc.freeze()
    for turn in range(rounds):
        for name, epoch in epochs.items():
            times[name].append(epoch())
            say(f"round {turn + 1}/{rounds}  {name:<44} {times[name][-1]:8.4f} s")
    runs = {contender.name: contender.runs for contender in contenders}
    return {name: Times(found, max(start[name] - runs[name] * statistics.median(found), 0.0)) for name, found in times.items()}
