"""Records of epochs: what their digest sees, and when a run has diverged."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import results
from harness.results import CURVES, EpochRecord, has_diverged, history_digest

ROOT = Path(results.__file__).resolve().parents[1]
NAN, INF = float("nan"), float("inf")


def history() -> list[EpochRecord]:
    """Three epochs with every curve and something of all the rest."""
    return [
        EpochRecord(
            epoch,
            {name: (0.1 + i / 3) / (epoch + 1) for i, name in enumerate(CURVES)},
            lane=2,
            health={"hidden1/mean": 0.5 + epoch},
            seconds=1.5,
        )
        for epoch in range(3)
    ]


def change(records: list[EpochRecord], at: int, /, **values: object) -> list[EpochRecord]:
    return [dataclasses.replace(record, **values) if record.epoch == at else record for record in records]  # type: ignore[arg-type]


VALUES = st.floats(allow_nan=False, allow_infinity=False)
HISTORIES = st.lists(
    st.builds(
        EpochRecord,
        epoch=st.integers(0, 50),
        curves=st.dictionaries(st.sampled_from(CURVES), VALUES, min_size=1),
        lane=st.integers(0, 9),
        health=st.dictionaries(st.sampled_from(["a/mean", "a/dead"]), VALUES),
        seconds=st.none() | VALUES,
    ),
    min_size=1,
    max_size=4,
)


# digest


@pytest.mark.parametrize(
    "ignored", [{"health": {}}, {"health": {"hidden1/mean": NAN}}, {"seconds": None}, {"seconds": 9.0}, {"lane": 0}]
)
def test_digest_ignores_health_times_and_lane(ignored: dict[str, object]) -> None:
    assert history_digest(change(history(), 1, **ignored)) == history_digest(history())


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("towards", [-INF, INF])
def test_digest_sees_one_ulp_of_any_loss_or_accuracy(name: str, epoch: int, towards: float) -> None:
    curves = history()[epoch].curves
    moved = change(history(), epoch, curves={**curves, name: math.nextafter(curves[name], towards)})
    assert history_digest(moved) != history_digest(history())


@given(HISTORIES, st.data())
def test_digest_sees_one_ulp_anywhere(records: list[EpochRecord], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(records) - 1))
    name = data.draw(st.sampled_from(sorted(records[i].curves)))
    value = records[i].curves[name]
    moved = list(records)
    moved[i] = dataclasses.replace(records[i], curves={**records[i].curves, name: math.nextafter(value, INF)})
    assert history_digest(moved) != history_digest(records)


@pytest.mark.parametrize(
    "other",
    [
        [],
        history()[:2],
        history()[1:],
        history()[::-1],
        [*history(), history()[-1]],
        change(history(), 2, epoch=3),
        change(history(), 2, curves={name: value for name, value in history()[2].curves.items() if name != "test/loss"}),
        change(history(), 2, curves=dict(zip(CURVES, reversed(history()[2].curves.values()), strict=True))),
        change(history(), 2, curves=dict.fromkeys(CURVES, NAN)),
        change(history(), 2, curves=dict.fromkeys(CURVES, INF)),
    ],
    ids=["empty", "shorter", "late", "reversed", "longer", "epoch", "missing", "swapped", "nan", "inf"],
)
def test_digest_sees_epochs_and_names(other: list[EpochRecord]) -> None:
    assert history_digest(other) != history_digest(history())


def test_digest_sees_which_curve_a_number_belongs_to() -> None:
    assert len({history_digest([EpochRecord(1, {name: 0.5})]) for name in CURVES}) == len(CURVES)


def test_digest_tells_infinities_and_nan_apart() -> None:
    assert len({history_digest([EpochRecord(1, {"test/loss": value})]) for value in (NAN, INF, -INF, 0.0, 1e308)}) == 5


def test_digest_does_not_depend_on_the_order_of_the_mapping_or_the_kind_of_iterable() -> None:
    turned = [dataclasses.replace(record, curves=dict(reversed(record.curves.items()))) for record in history()]
    assert history_digest(turned) == history_digest(history())
    assert history_digest(iter(history())) == history_digest(tuple(history())) == history_digest(history())


def test_digest_is_the_one_on_record() -> None:
    """The store holds digests: another spelling would turn every verified run into a difference."""
    records = [EpochRecord(0, {"test/loss": 2.5, "test/accuracy": 0.1}), EpochRecord(1, {"train/loss": 0.1})]
    assert history_digest(records) == "ca4398ac3db7482788d101b4a0b04c5c532fbe6f73b137e615bcf015a5ebb4b7"


def test_digest_is_the_same_in_another_process() -> None:
    code = (
        "from harness.results import CURVES, EpochRecord, has_diverged, history_digest\n"
        "print(history_digest([EpochRecord(1, {name: 0.1 * i for i, name in enumerate(CURVES)})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == history_digest([EpochRecord(1, {name: 0.1 * i for i, name in enumerate(CURVES)})])


# divergence

GUESSING = math.log(10)


START = {"val/loss": 12.0, "test/loss": 12.0, "test/accuracy": 0.1}


@pytest.mark.parametrize("name", ["train/loss", "val/loss", "test/loss"])
@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_has_diverged(name: str, loss: float) -> None:
    assert has_diverged({"train/loss": 0.5, "val/loss": 0.5, "test/loss": 0.5, name: loss}, START, 10)
    assert has_diverged({name: loss}, {}, 10)


@pytest.mark.parametrize("name", ["val/loss", "test/loss"])
def test_a_loss_ten_thousand_times_that_of_guessing_has_diverged(name: str) -> None:
    assert has_diverged({name: GUESSING * 1.0001e4}, START, 10)
    assert not has_diverged({name: GUESSING * 0.9999e4}, START, 10)
    assert not has_diverged({name: GUESSING * 1.0001e4}, START, 100)


def test_a_run_that_comes_down_from_a_high_start_has_not_diverged() -> None:
    """Five layers of relu from N(0, 1) start at 4e5 nats, and learn."""
    assert not has_diverged({"train/loss": 3e5, "test/loss": 3e5}, {"test/loss": 4e5}, 10)
    assert has_diverged({"train/loss": 3e5, "test/loss": 5e5}, {"test/loss": 4e5}, 10)
    assert not has_diverged({"train/loss": 3e5, "test/loss": 8e3}, START, 10)  # the mean over an epoch's first steps too


@pytest.mark.parametrize("start", [NAN, INF])
def test_a_start_that_means_nothing_excuses_nothing(start: float) -> None:
    assert has_diverged({"test/loss": 1e30}, {"test/loss": start}, 10)


def test_accuracy_makes_nothing_diverge() -> None:
    assert not has_diverged({"test/loss": 1.0, "test/accuracy": NAN}, START, 10)
    assert not has_diverged({"test/loss": 1.0}, {}, 1)
