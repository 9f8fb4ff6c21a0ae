"""A study that grows by seeds: its looks, where it stops, and that it can be started again."""

from __future__ import annotations

import pytest

from harness import frames
from harness.cells import StudyResult
from harness.driver import run_study, until_decided
from harness.errors import InputError
from harness.launched import Launched
from harness.limits import MOST_CELLS
from harness.sequential import grown, looks
from harness.study import Study

SMALL = {"dataset": "mnist_5k", "init": "kaiming", "epochs": 1, "max_batches": 40}

pytestmark = pytest.mark.usefixtures("own_store")


def study(name: str, levels: list[float], **changed: object) -> Study:
    return Study(**{
        "name": name, "question": "Which?", "design": "one_factor_at_a_time", "seeds": [0, 1], "matters": 0.02,
        "base": {**SMALL, "lr": levels[0]}, "factors": {"lr": levels}, **changed,
    })  # fmt: skip


def grow(wanted: Study, most: int) -> tuple[StudyResult, list[str]]:
    lines: list[str] = []

    def launch(now: Study, planned: int) -> StudyResult:
        return run_study(now, workers=0, probe=False, looks=planned, say=lambda line: None)

    return until_decided(wanted, looks(wanted, most), launch, lines.append), lines


def test_looks_double_up_to_the_most() -> None:
    wanted = study("doubling", [0.01, 0.1])
    assert looks(wanted, 30) == [2, 4, 8, 16, 30]
    assert looks(wanted, 3) == [2, 3]


def test_looks_end_where_the_cells_of_a_study_do() -> None:
    wanted = study("large", [0.01, 0.1])
    assert looks(wanted, MOST_CELLS // 2)[-1] == MOST_CELLS // 2
    with pytest.raises(InputError, match=f"at most {MOST_CELLS} cells in all"):
        looks(wanted, MOST_CELLS // 2 + 1)


def test_new_seeds_follow_the_highest_of_the_studys_own() -> None:
    assert grown(study("growing", [0.01, 0.1], seeds=[7, 3]), 4).seeds == (7, 3, 8, 9)
    assert grown(study("growing", [0.01, 0.1]), 2).seeds == (0, 1)


@pytest.mark.parametrize(
    ("wanted", "most", "message"),
    [
        (study("few", [0.01, 0.1]), 2, "above 2"),
        (study("many", [0.01, 0.1]), 10**9, "cells in all"),
        (study("alone", [0.01]), 30, "one variant"),
        (study("last", [0.01, 0.1], seeds=[2**63 - 2]), 4, "seeds="),
    ],
)
def test_what_could_not_be_decided_is_refused(wanted: Study, most: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        looks(wanted, most)


def test_a_study_grows_until_all_is_decided_and_its_intervals_are_as_wide_as_all_looks_need() -> None:
    wanted = study("grows", [0.01, 0.1])
    result, lines = grow(wanted, 30)
    seeds = len(result.study.seeds)
    assert 2 <= seeds < 30
    assert result.trained == 2 * seeds, "at all looks"
    assert lines[-1].endswith("0 of 1 contrasts are undecided")
    (contrast,) = frames.compare("grows").itertuples()
    assert contrast.verdict == "better"
    assert contrast.level == pytest.approx(1 - 0.05 / 5)
    assert "5 looks at growing data" in Launched.last("grows").report.fetch("report.md", "").read_text()
    again, repeated = grow(wanted, 30)
    assert (again.trained, repeated) == (0, lines)
    assert run_study(grown(wanted, seeds), workers=0, say=lambda line: None).trained == 0
    assert frames.compare("grows").level.to_list() == [contrast.level], "launched plainly it has been looked at no less often"


def test_a_study_stops_at_the_most_seeds_with_what_is_still_undecided() -> None:
    result, lines = grow(study("on-the-edge", [0.01, 0.011], matters=0.0439), 3)
    assert len(result.study.seeds) == 3
    assert len(lines) == 2
    assert lines[-1].endswith("1 of 1 contrasts are undecided")


def test_no_seed_is_spent_on_a_contrast_that_diverged() -> None:
    hopeless = study("hopeless", [0.1, 1e30], base={**SMALL, "lr": 0.1, "act": "relu"})
    result, lines = grow(hopeless, 30)
    assert result.table.diverged.sum() == 2
    assert len(lines) == 1


def test_no_seed_is_spent_on_a_contrast_of_equal_runs() -> None:
    """adamw without weight decay is adam, to the bit."""
    equal = study("equal", [0.01], factors={"optimizer": ["adam", "adamw"]}, base={**SMALL, "lr": 0.01, "optimizer": "adam"})
    result, lines = grow(equal, 30)
    assert (result.trained, len(lines)) == (4, 1)
    assert lines[0].endswith("1 of 1 contrasts are undecided")
