"""Histograms that a run keeps: every finite value in one bin, and back from their text as they were."""

from __future__ import annotations

import json

import numpy as np
import pytest

from harness.histograms import BINS, Histogram, Histograms

BEFORE, AFTER = np.linspace(-1, 1, 1000).reshape(10, 100), np.linspace(-3, 0.5, 200)


def test_every_value_is_in_one_bin_and_both_share_the_bins() -> None:
    found = Histogram.of(BEFORE, AFTER)
    assert (sum(found.before), sum(found.after)) == (1000, 200)
    assert (found.low, found.high) == (-3, 1)
    assert len(found.edges) == BINS + 1
    assert found.after == tuple(np.histogram(AFTER, found.edges)[0])
    assert [shares.sum() for shares in found.shares] == pytest.approx([1, 1])


def test_values_that_are_not_finite_are_in_no_bin() -> None:
    found = Histogram.of(BEFORE, np.array([np.nan, np.inf, -np.inf, 0.5]))
    assert (found.low, found.high, sum(found.after)) == (-1, 1, 1)
    nothing = Histogram.of(np.array([np.nan]), np.array([np.inf]))
    assert [float(shares.sum()) for shares in nothing.shares] == [0, 0]


def test_values_that_are_all_the_same_have_a_bin() -> None:
    assert sum(Histogram.of(np.zeros(5), np.zeros(7)).before) == 5


def test_text_comes_back_equal() -> None:
    one = Histogram.of(BEFORE, AFTER)
    found = Histograms.parse(Histograms({"linear1": one}, {"hidden1": one}).json_text())
    assert np.array_equal(found.weights["linear1"].edges, one.edges)
    assert tuple(found.outputs["hidden1"].after) == one.after


GOOD = {"low": 0, "high": 1, "before": [1, 2], "after": [3, 4]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"weights": {}}',
        json.dumps({"weights": {"linear1": 3}, "outputs": {}}),
        json.dumps({"weights": {"linear1": {**GOOD, "after": [3]}}, "outputs": {}}),
        json.dumps({"weights": {"linear1": {**GOOD, "high": 0}}, "outputs": {}}),
        json.dumps({"weights": {"linear1": {**GOOD, "more": 0}}, "outputs": {}}),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 json's own among them
        Histograms.parse(text)


@pytest.mark.parametrize("values", [[1 - 6e-8, 1.0], [1e20] * 3, [-3e38, 3e38]], ids=["narrow", "large and the same", "widest"])
def test_any_float32_values_have_bins(values: list[float]) -> None:
    found = Histogram.of(np.array(values, np.float32), np.array(values, np.float32))
    assert sum(found.before) == len(values)
    assert found.low < found.high
