"""A short form of `python -m benchmarks.statistics`: the statistics keep their promises where the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.random import Generator

from benchmarks.statistics import Rate, coverage, false_positives, looking, significance

counts = pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])


@counts
@pytest.mark.parametrize("part", [false_positives, significance], ids=lambda part: part.__name__)
def test_false_positives_are_at_most_nominal(part: Callable[[Generator, int], list[Rate]], count: int) -> None:
    for rate in part(np.random.default_rng(1), count):
        assert not rate.bound or rate.rate - 3 * rate.error <= 0.05, rate


@counts
def test_intervals_hold_the_truth(count: int) -> None:
    for rate in coverage(np.random.default_rng(1), count):
        assert not rate.bound or rate.rate + 3 * rate.error >= 0.94, rate


@pytest.mark.parametrize("count", [200, pytest.param(2500, marks=pytest.mark.slow)])
def test_looking_again_and_again_keeps_the_error_only_when_it_is_declared(count: int) -> None:
    declared, undeclared = looking(np.random.default_rng(1), count, "equal")
    assert declared.rate - 3 * declared.error <= 0.05
    assert undeclared.rate > 0.1
