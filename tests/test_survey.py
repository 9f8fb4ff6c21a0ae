"""Where each cell of a study stands, from runs in every state, as MLflow has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Param, Run, RunData, RunInfo, RunStatus, RunTag

from harness.store import Store
from harness.study import Cell, Study
from harness.survey import DIGESTS, SETTLED, STATES, Standing, leaders, survey
from harness.tracking import RunLog

STATUSES = [RunStatus.to_string(status) for status in RunStatus.all_status()]
NOBODY: Callable[[str], bool] = lambda run_id: False  # noqa: E731
STUDY = Study(name="x", question="q", design="factorial", seeds=[0, 1], factors={"act": ["tanh", "relu"], "lr": [0.1, 1]})
CELL = STUDY.cells[0]


def tags(cell: Cell, **other: str) -> dict[str, object]:
    """The tags that a plan gives its run."""
    digests = {"config_digest": cell.config.digest, "data_digest": "d" * 64, "code_digest": "c" * 64}
    return {"dataset": "mnist_5k", "study": cell.study, "cell": cell.name, "seed": cell.seed, **digests, **other}


def run(cell: Cell, status: str, run_id: str = "r", params: Mapping[str, str] = {}, **other: str) -> Run:
    """An MLflow run of a cell. `other` are tags in place of those wanted; `params` in place of the cell's."""
    said = [RunTag(key, str(value)) for key, value in tags(cell, **other).items()]
    asked = [Param(key, value) for key, value in {**cell.config.text(), **params}.items()]
    return Run(RunInfo(run_id, "1", "someone", status, 0, None, "active"), RunData(params=asked, tags=said))


def standing(runs: Iterable[Run], cell: Cell = CELL, held: Callable[[str], bool] = NOBODY) -> Standing:
    (found,) = survey([(cell, tags(cell))], list(runs), held)
    assert found.cell == cell
    assert found.state in STATES
    assert found.settled == (found.state in SETTLED)
    return found


# one run


def test_cell_without_a_run_is_missing() -> None:
    found = standing([])
    assert (found.state, found.reason, found.run) == ("missing", "", None)


def test_finished_run_settles_its_cell() -> None:
    mine = run(CELL, "FINISHED")
    found = standing([mine])
    assert (found.state, found.reason, found.settled) == ("finished", "", True)
    assert found.run is mine


def test_diverged_run_is_a_result_and_says_when() -> None:
    mine = run(CELL, "FINISHED", diverged="epoch 3")
    found = standing([mine])
    assert (found.state, found.reason, found.settled) == ("diverged", "in epoch 3", True)
    assert found.run is mine


def test_run_that_a_live_process_holds_is_running() -> None:
    found = standing([run(CELL, "RUNNING", "mine")], held=lambda run_id: run_id == "mine")
    assert (found.state, found.settled) == ("running", False)
    assert found.run.info.run_id == "mine"


def test_run_whose_process_is_gone_has_failed_and_is_gone_on_with() -> None:
    found = standing([run(CELL, "RUNNING", "mine")], held=lambda run_id: run_id == "other")
    assert (found.state, found.settled) == ("failed", False)
    assert "its process is gone" in found.reason
    assert found.run.info.run_id == "mine"


@pytest.mark.parametrize(
    ("status", "state", "reason", "more"),
    [
        ("KILLED", "failed", "killed", {"attempt": "1"}),
        ("KILLED", "missing", "never begun", {}),
        ("FAILED", "failed", "valueerror no such thing", {"error": "valueerror no such thing"}),
        ("FAILED", "failed", "no reason recorded", {}),
        ("SCHEDULED", "missing", "scheduled", {}),
    ],
)
def test_unfinished_run_is_gone_on_with(status: str, state: str, reason: str, more: dict[str, str]) -> None:
    mine = run(CELL, status, **more)
    found = standing([mine], held=lambda run_id: True)
    assert (found.state, found.settled) == (state, False)
    assert reason in found.reason
    assert found.run is mine


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "FINISHED"])
def test_no_status_but_finished_settles_a_cell(status: str) -> None:
    for held in (NOBODY, lambda run_id: True):
        assert not standing([run(CELL, status, diverged="epoch 3")], held=held).settled


# stale


@pytest.mark.parametrize(
    ("other", "params", "reason"),
    [
        ({"config_digest": "e" * 64}, {"lr": "0.5"}, "lr was 0.5, is 0.1"),
        ({"config_digest": "e" * 64}, {"lr": "0.5", "epochs": "2"}, "lr was 0.5, is 0.1, epochs was 2, is 10"),
        ({"config_digest": "e" * 64, "data_digest": "e" * 64, "dataset": "mnist"}, {}, "dataset was mnist, is mnist_5k"),
        ({"config_digest": "e" * 64}, {}, "the config changed"),
        ({"data_digest": "e" * 64}, {}, "the data changed"),
        ({"code_digest": "e" * 64}, {}, "the code changed"),
        ({"code_digest": "e" * 64}, {"data_dir": "/elsewhere", "dataset": "auto"}, "the code changed"),
    ],
)
def test_finished_run_of_something_else_is_stale_and_says_why(
    other: dict[str, str], params: dict[str, str], reason: str
) -> None:
    found = standing([run(CELL, "FINISHED", params=params, **other)])
    assert (found.state, found.settled, found.reason) == ("stale", False, reason)
    assert found.run is None, "nothing of it is gone on with"


def test_layer_list_longer_than_a_param_is_not_why_a_run_is_stale() -> None:
    """MLflow keeps 6,000 characters of a param."""
    layers = [{"type": "linear", "size": 9}] * 300
    study = Study(
        name="x", question="q", design="list", seeds=[0], base={"network": {"layers": layers}}, variants=[{"name": "a"}]
    )
    (cell,) = study.cells
    text = cell.config.text()["network"]
    assert len(text) > 6000
    found = standing([run(cell, "FINISHED", params={"network": text[:6000]}, code_digest="e" * 64)], cell)
    assert (found.state, found.reason) == ("stale", "the code changed")


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "FINISHED"])
@pytest.mark.parametrize("digest", DIGESTS)
def test_unfinished_run_of_something_else_is_not_gone_on_with(status: str, digest: str) -> None:
    found = standing([run(CELL, status, **{digest: "e" * 64})], held=lambda run_id: True)
    assert (found.state, found.run) == ("missing", None)


def test_run_without_digests_is_none_of_the_cells() -> None:
    """As one that `mlflow run` began and that never came to train."""
    bare = Run(RunInfo("r", "1", "someone", "RUNNING", 0, None, "active"), RunData(tags=[RunTag("cell", CELL.name)]))
    assert standing([bare]).state == "missing"


# several


def test_runs_of_other_cells_say_nothing() -> None:
    first, second = STUDY.cells[:2]
    assert [s.state for s in survey([(c, tags(c)) for c in (first, second)], [run(second, "FINISHED")], NOBODY)] == [
        "missing",
        "finished",
    ]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("newest", [True, False])
def test_finished_run_comes_before_any_other(status: str, newest: bool) -> None:
    done, other = run(CELL, "FINISHED", "done"), run(CELL, status, "other", diverged="epoch 1")
    found = standing([done, other] if newest else [other, done])
    assert found.settled
    if status != "FINISHED":
        assert found.run is done
        assert found.state == "finished"


def test_of_several_unfinished_runs_the_newest_is_gone_on_with() -> None:
    runs = [run(CELL, "KILLED", "newest", attempt="1"), run(CELL, "FAILED", "older"), run(CELL, "SCHEDULED", "oldest")]
    assert standing(runs).run.info.run_id == "newest"


def test_run_that_a_live_process_holds_is_not_passed_over_for_a_newer_one() -> None:
    """Else the cell would train twice."""
    runs = [run(CELL, "FAILED", "newer"), run(CELL, "RUNNING", "older")]
    found = standing(runs, held=lambda run_id: run_id == "older")
    assert (found.state, found.run.info.run_id) == ("running", "older")


def test_run_that_a_live_process_holds_is_not_passed_over_for_a_newer_one_whose_process_is_gone() -> None:
    found = standing([run(CELL, "RUNNING", "new"), run(CELL, "RUNNING", "old")], held=lambda run_id: run_id == "old")
    assert (found.state, found.run.info.run_id) == ("running", "old")


def test_of_cells_of_one_config_those_that_are_trained_copy_the_one_that_is_settled() -> None:
    first, second, third = (
        Standing(cell, state) for cell, state in zip(STUDY.cells, ("missing", "finished", "diverged"), strict=False)
    )
    digests = {found.cell.name: digest for found, digest in ((first, "same"), (second, "same"), (third, "other"))}
    assert leaders([first, second, third], digests) == {"same": second.cell.name, "other": third.cell.name}
    digests[third.cell.name] = "same"
    assert leaders([first, third, second], digests) == {"same": third.cell.name}, "the first of those that are"
    assert leaders([first], digests) == {"same": first.cell.name}


def test_unfinished_run_of_this_config_comes_before_a_finished_one_of_another() -> None:
    runs = [run(CELL, "FINISHED", "other", code_digest="e" * 64), run(CELL, "KILLED", "mine", attempt="1")]
    for given_ in (runs, runs[::-1]):
        found = standing(given_)
        assert (found.state, found.run.info.run_id) == ("failed", "mine")


def test_finished_run_of_this_config_comes_before_stale_ones() -> None:
    runs = [run(CELL, "FINISHED", "other", code_digest="e" * 64), run(CELL, "FINISHED", "mine")]
    for given_ in (runs, runs[::-1]):
        assert standing(given_).run.info.run_id == "mine"


def test_reason_of_a_stale_cell_is_that_of_its_newest_run() -> None:
    runs = [run(CELL, "FINISHED", code_digest="e" * 64), run(CELL, "FINISHED", params={"lr": "7"}, config_digest="e" * 64)]
    assert standing(runs).reason == "the code changed"
    assert standing(runs[::-1]).reason == "lr was 7, is 0.1"


# properties

NOISE = st.lists(
    st.tuples(
        st.sampled_from(STUDY.cells),
        st.sampled_from(STATUSES),
        st.dictionaries(st.sampled_from(DIGESTS), st.just("e" * 64)),
    ),
    max_size=12,
)


@given(NOISE, st.lists(st.sampled_from(STUDY.cells), unique=True), st.randoms(use_true_random=False), st.booleans())
def test_every_cell_stands_once_and_is_settled_just_where_a_run_of_it_finished(
    noise: list[tuple[Cell, str, dict[str, str]]], done: list[Cell], rng: Any, held: bool
) -> None:
    runs = [run(cell, status, f"n{k}", **digests) for k, (cell, status, digests) in enumerate(noise)]
    runs += [run(cell, "FINISHED", f"d{k}") for k, cell in enumerate(done)]
    rng.shuffle(runs)
    standings = survey([(cell, tags(cell)) for cell in STUDY.cells], runs, lambda run_id: held)
    assert [standing.cell for standing in standings] == list(STUDY.cells)
    settled = {*done, *(cell for cell, status, digests in noise if status == "FINISHED" and not digests)}
    assert {standing.cell for standing in standings if standing.settled} == settled
    for found in standings:
        wanted = tags(found.cell)
        assert found.run is None or all(found.run.data.tags[key] == str(wanted[key]) for key in ("cell", *DIGESTS))
        assert (found.state == "stale") <= any(
            r.info.status == "FINISHED" for r in runs if r.data.tags["cell"] == found.cell.name
        )


@given(NOISE, st.randoms(use_true_random=False))
def test_nothing_is_missing_after_all_cells_finished(noise: list[tuple[Cell, str, dict[str, str]]], rng: Any) -> None:
    runs = [run(cell, status, f"n{k}", **digests) for k, (cell, status, digests) in enumerate(noise)]
    runs += [run(cell, "FINISHED", f"d{k}") for k, cell in enumerate(STUDY.cells)]
    rng.shuffle(runs)
    assert all(standing.settled for standing in survey([(cell, tags(cell)) for cell in STUDY.cells], runs, NOBODY))


# a real store


def test_states_are_read_from_a_store_as_they_were_written(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    wanted = [(cell, tags(cell)) for cell in STUDY.cells]
    assert len(wanted) == 8

    def begun(index: int, **other: str) -> RunLog:
        cell = STUDY.cells[index]
        log = RunLog(store, store.create("x", cell.name, tags=tags(cell, **other)))
        log.params(cell.config.text())
        return log

    def states() -> list[str]:
        return [standing.state for standing in survey(wanted, store.runs("x", study="x"), store.locks.held)]

    assert states() == ["missing"] * 8
    begun(0).finish("FINISHED")
    diverged = begun(1)
    diverged.tags({"diverged": "epoch 2"})
    diverged.finish("FINISHED")
    killed, failed = begun(2), begun(3)
    killed.tags({"attempt": 1})
    killed.finish("KILLED")
    failed.tags({"error": "oserror disk full"})
    failed.finish("FAILED")
    begun(4, code_digest="e" * 64).finish("FINISHED")
    store.client.update_run(begun(5).id, status="SCHEDULED")
    gone, alive = begun(6), begun(7)
    with alive.alone():
        assert states() == ["finished", "diverged", "failed", "failed", "stale", "missing", "failed", "running"]
        found = survey(wanted, store.runs("x", study="x"), store.locks.held)
        assert [s.reason for s in found] == [
            *("", "in epoch 2", "killed; goes on from its checkpoint", "oserror disk full", "the code changed", "scheduled"),
            *("its process is gone; goes on from its checkpoint", ""),
        ]
    assert states()[7] == "failed"
    again = begun(4)
    for log in (killed, failed, gone, alive, again, RunLog.of(store, found[5].run.info.run_id)):
        log.finish("FINISHED")
    assert states() == ["finished", "diverged", *["finished"] * 6]
    store.client.delete_run(killed.id)
    assert states()[2] == "missing"
