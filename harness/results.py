"""What training yields: plain records of plain numbers, and their digest."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CURVES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "test/loss", "test/accuracy")
DIVERGED = 1e4  # times the loss of guessing


@dataclass(frozen=True)
class EpochRecord:
    """One lane after one epoch; epoch 0 is before training.

    `curves` has the metrics of CURVES that exist: losses are mean cross-entropy in nats, accuracies lie in [0, 1].
    `train/...` is the mean over the epoch's samples as they were trained, the others are measured in eval mode.
    """

    epoch: int
    curves: Mapping[str, float]
    lane: int = 0
    health: Mapping[str, float] = field(default_factory=dict)  # "hidden1/mean": ...
    seconds: float | None = None  # wall time of shuffle, steps and their means, divided by the lanes that shared them
    diverged: bool = False  # and so this lane's last record
    state_digest: str = ""  # of weights and buffers then, once somebody has taken it

    def metrics(self) -> dict[str, float]:
        """All of it under the metric names of the store."""
        health = {f"health/{name}": value for name, value in self.health.items()}
        seconds = {} if self.seconds is None else {"time/epoch_seconds": self.seconds}
        return {**self.curves, **health, **seconds}

    def to_json(self) -> dict[str, Any]:
        """A JSON object without the lane, which is no part of a run."""
        return {name: value for name, value in vars(self).items() if name != "lane"}


def has_diverged(curves: Mapping[str, float], start: Mapping[str, float], num_classes: int) -> bool:
    """Whether the losses of an epoch left the numbers that mean anything, given those of epoch 0.

    A loss that is not finite has; so has a test or validation loss above 10,000 times that of guessing, unless it began
    above: deep networks from N(0, 1) start at 1e5 nats and may still learn. The bound is for saturating networks: with tanh
    and lr=1e6 the weights reach 1e7 and the loss 1e7 nats, and float32 holds both for ever.
    """
    losses = {name: value for name, value in curves.items() if name.endswith("/loss")}
    if not all(math.isfinite(value) for value in losses.values()):
        return True
    guessing = DIVERGED * math.log(max(num_classes, 2))
    before = {name: value for name, value in start.items() if math.isfinite(value)}
    return any(value > max(guessing, before.get(name, 0)) for name, value in losses.items() if name != "train/loss")


def history_digest(records: Iterable[EpochRecord]) -> str:
    """SHA-256 of all losses and accuracies to the last bit; health and times are left out."""
    lines = (
        f"{record.epoch} {name} {record.curves[name].hex()}\n" for record in records for name in CURVES if name in record.curves
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def history_csv(records: Sequence[EpochRecord]) -> str:
    """One row an epoch, one column a metric, in the store's names; numbers to their last bit."""
    rows = [{"epoch": record.epoch, **record.metrics()} for record in records]
    columns = dict.fromkeys(
        ["epoch", *(name for name in CURVES for row in rows if name in row), *(n for row in rows for n in row)]
    )
    out = io.StringIO()
    writer = csv.DictWriter(out, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def same(a: float, b: float) -> bool:
    """Whether two numbers have the same bits; NaN is NaN."""
    return struct.pack("<d", a) == struct.pack("<d", b) or (a != a and b != b)


def ulps(a: float, b: float) -> int:
    """How many double-precision numbers lie between two, the first one counted."""

    def place(value: float) -> int:
        bits = struct.unpack("<q", struct.pack("<d", value))[0]
        return int(bits if bits >= 0 else -(bits & 0x7FFF_FFFF_FFFF_FFFF))

    return abs(place(a) - place(b))
