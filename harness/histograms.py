"""Histograms of a network's weights and hidden outputs, before and after training, as numbers that a run keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BINS = 60
FILE = "histograms.json"  # among a run's artifacts


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins from `low` to `high`, the same before and after training; what is not finite is in no bin."""

    low: float
    high: float
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray) -> Histogram:
        """From the values themselves, of any shape."""
        finite = [values[np.isfinite(values)].astype(float) for values in (before, after)]
        both = np.concatenate(finite)  # in float64: of float32, a narrow range has no room for the bins
        low, high = (both.min(), both.max()) if len(both) else (0.0, 1.0)
        pad = max(0.5, 1e-3 * abs(low)) if low == high else 0.0
        edges = np.linspace(low - pad, high + pad, BINS + 1)
        first, last = (tuple(np.histogram(values, edges)[0].tolist()) for values in finite)
        return cls(float(edges[0]), float(edges[-1]), first, last)

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> Histogram:
        """From its fields. Raises TypeError or ValueError for anything else."""
        read = cls(**found)
        if not len(read.before) == len(read.after) > 0 or not read.low < read.high:
            raise ValueError("counts before and after are not of the same bins")
        return read

    @property
    def edges(self) -> np.ndarray:
        """The ends of the bins, one more than there are bins."""
        return np.linspace(self.low, self.high, len(self.before) + 1)

    @property
    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all values, before and after, the share in each bin."""
        before, after = (np.array(counts) / max(sum(counts), 1) for counts in (self.before, self.after))
        return before, after


@dataclass(frozen=True)
class Histograms:
    """Those of one run: of each linear layer's weights, and of each hidden layer's outputs on the probe batch."""

    weights: Mapping[str, Histogram]  # linear1, ...; the last is the output layer
    outputs: Mapping[str, Histogram]  # hidden1, ...

    def json_text(self) -> str:
        """As FILE has them."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, text: str) -> Histograms:
        """From that text. Raises ValueError for anything else."""
        try:
            read = json.loads(text)
            parts = [{name: Histogram.parse(fields) for name, fields in read[part].items()} for part in ("weights", "outputs")]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no histograms: {error}") from None
        return cls(*parts)
