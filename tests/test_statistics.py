"""A short form of `python -m benchmarks.statistics`: the statistics keep their promises where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.statistics import Rate, coverage, false_positives, looking, significance

COUNT = 2000


@pytest.mark.parametrize("part", [false_positives, significance], ids=lambda part: part.__name__)
def test_false_positives_are_at_most_nominal(part: object) -> None:
    rates: list[Rate] = part(np.random.default_rng(1), COUNT)  # type: ignore[operator]
    for rate in rates:
        assert not rate.bound or rate.rate - 3 * rate.error <= 0.05, rate


def test_intervals_hold_the_truth() -> None:
    for rate in coverage(np.random.default_rng(1), COUNT):
        assert not rate.bound or rate.rate + 3 * rate.error >= 0.94, rate


def test_looking_again_and_again_keeps_the_error_only_when_it_is_declared() -> None:
    declared, undeclared = looking(np.random.default_rng(1), 500, "equal")
    assert declared.rate - 3 * declared.error <= 0.05
    assert undeclared.rate > 0.1
