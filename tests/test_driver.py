"""A study is desired state: a launch trains what is missing, failed or stale, leaves the rest alone and says what came."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

import harness
from harness import launch as harness_launch
from harness import report, tracking, worker
from harness.cells import StudyResult
from harness.cli import main
from harness.components.inits import INITS, Init
from harness.config import RunConfig, slug
from harness.errors import InputError
from harness.journal import Entry
from harness.outlook import preview
from harness.plan import prepare, prepare_all
from harness.progress import Progress
from harness.results import EpochRecord
from harness.store import Store, store_uri
from harness.study import Study
from harness.tracking import RunLog

ROOT = Path(__file__).resolve().parent.parent
TINY = {"dataset": "mnist_5k", "epochs": 2, "max_batches": 4, "hidden_dim": 8}
DIGESTS = ("state_digest", "history_digest")


def ofat(name: str, seeds: Sequence[int] = (0,), base: Mapping[str, Any] = {}, **factors: list[str]) -> Study:
    values = {"name": name, "question": "Which?", "design": "one_factor_at_a_time", "seeds": list(seeds)}
    return Study(**values, base={**TINY, **base}, factors=factors or {"act": ["tanh", "relu"]})


def launch(study: Study, **options: Any) -> StudyResult:
    """In this process, without the probe, in silence."""
    return harness.run_study(study, **{"workers": 0, "probe": False, "say": lambda line: None, **options})


@pytest.fixture(scope="module")
def whole(place: Path) -> StudyResult:
    """Six cells that nobody interrupted."""
    return launch(ofat("whole", (0, 1), act=["tanh", "relu"], norm=["layernorm"]), probe=True)


def found(client: MlflowClient, study: str) -> list[Run]:
    """All runs of the experiment that are not deleted."""
    experiment = client.get_experiment_by_name(study)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def cells(client: MlflowClient, study: str) -> dict[str, Run]:
    """The run of every cell; no cell has two."""
    runs = [run for run in found(client, study) if "cell" in run.data.tags]
    by = {run.data.tags["cell"]: run for run in runs}
    assert len(by) == len(runs), sorted(run.data.tags["cell"] for run in runs)
    return by


def reports(client: MlflowClient, study: str) -> list[Run]:
    return [run for run in found(client, study) if "report" in run.data.tags]


def rows(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    """All metric rows of a run, but for the wall times' values."""
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {key: sorted((m.step, 0.0 if key.startswith("time/") else m.value) for m in found) for key, found in history.items()}


def digests(run: Run) -> tuple[str, ...]:
    return tuple(run.data.tags[name] for name in DIGESTS)


def digests_of(client: MlflowClient, study: str) -> dict[str, tuple[str, ...]]:
    """Of each cell; all are finished."""
    by = cells(client, study)
    assert {run.info.status for run in by.values()} == {"FINISHED"}
    return {name: digests(run) for name, run in by.items()}


def snapshot(client: MlflowClient, study: str) -> dict[str, dict[str, Any]]:
    """All that the store says of a study's cells."""
    return {name: run.to_dictionary() for name, run in cells(client, study).items()}


def folder(run: Run) -> Path:
    return Path(local_file_uri_to_path(run.info.artifact_uri))


# what a launch leaves


def test_every_cell_has_one_finished_flat_run_named_after_it(client: MlflowClient, whole: StudyResult) -> None:
    by = cells(client, "whole")
    assert sorted(by) == sorted(cell.name for cell in whole.study.cells)
    for name, run in by.items():
        assert (run.info.status, run.info.run_name) == ("FINISHED", name)
        assert "mlflow.parentRunId" not in run.data.tags
    assert len(found(client, "whole")) == len(by) + 1
    assert (whole.trained, whole.settled, whole.failed, whole.copies, whole.agree) == (6, 6, {}, "", True)


def test_runs_are_tagged_with_what_they_are(client: MlflowClient, whole: StudyResult) -> None:
    by = cells(client, "whole")
    editions = {run.data.tags["edition"] for run in by.values()}
    assert len(editions) == 1
    for cell in whole.study.cells:
        tags, row = by[cell.name].data.tags, cell.variant
        expected = {"study": "whole", "variant": row.name, "cell": cell.name, "seed": str(cell.seed), "dataset": "mnist_5k"}
        expected |= {"factor": row.factor, "level": row.level, "condition": row.condition, "attempt": "1"}
        assert {name: tags.get(name) for name in expected} == expected
        for name in (*DIGESTS, "config_digest", "data_digest", "code_digest"):
            assert re.fullmatch(r"[0-9a-f]{64}", tags[name]), name
        assert not {"error", "shared_with", "report", "diverged"} & set(tags)
        assert all(re.fullmatch(r"[a-z0-9 ._=-]+", value) for name, value in tags.items() if "." not in name)
        assert by[cell.name].data.params["seed"] == str(cell.seed)


def test_every_metric_of_every_step_is_there_once(client: MlflowClient, whole: StudyResult) -> None:
    for run in cells(client, "whole").values():
        for key, found in rows(client, run).items():
            start = 1 if key.startswith(("train/", "time/")) else 0
            once = key.startswith(("final/", "best/"))
            steps = [step for step, _ in found]
            assert steps == ([2] if once else list(range(start, 3))), key
        assert {"test/loss", "train/accuracy", "final/test_loss", "best/test_accuracy"} <= set(run.data.metrics)


def test_study_has_one_report_run_that_is_none_of_its_cells(client: MlflowClient, whole: StudyResult) -> None:
    (report,) = reports(client, "whole")
    assert (report.info.run_id, report.info.status) == (whole.report_run_id, "FINISHED")
    assert report.data.tags["report"] == "whole"
    assert not {"study", "variant", "cell", "seed", "mlflow.parentRunId"} & set(report.data.tags)
    assert "Which?" in report.data.tags["mlflow.note.content"]
    table = pd.read_csv(folder(report) / "summary.csv")
    assert list(table.variant) == [row.name for row in whole.study.rows]
    assert list(table.n) == [2, 2, 2]
    assert table.test_loss_mean.notna().all()
    content = json.loads((folder(report) / "study.json").read_text(encoding="utf-8"))
    assert Study(**content["study"]) == whole.study
    assert set(content["cells"]) == {cell.name for cell in whole.study.cells}


def test_cell_trained_alone_has_the_bits_of_the_study(client: MlflowClient, whole: StudyResult) -> None:
    expected = digests_of(client, "whole")
    for cell in whole.study.cells:
        alone = harness.train(cell.config, probe=False, say=lambda line: None)
        assert (alone.state_digest, alone.history_digest) == expected[cell.name], cell.name


def test_worker_processes_leave_the_store_that_this_process_leaves(client: MlflowClient, whole: StudyResult) -> None:
    heard: list[tuple[int, float]] = []

    def watch(now: Progress) -> None:
        heard.append((now.epoch, max(now.running.values(), default=0.0)))

    before = dict(os.environ)
    result = launch(whole.study.model_copy(update={"name": "workers"}), workers=2, probe=True, watch=watch)
    assert (result.trained, result.settled, result.failed) == (6, 6, {})
    assert dict(os.environ) == before
    assert digests_of(client, "workers") == digests_of(client, "whole")
    mine, theirs = cells(client, "workers"), cells(client, "whole")
    for name in theirs:
        assert rows(client, mine[name]) == rows(client, theirs[name])
        assert mine[name].data.params == theirs[name].data.params
        assert mine[name].data.tags["attempt"] == "1"
    assert max(epoch for epoch, _ in heard) == 12
    assert max(loss for _, loss in heard) > 0
    place = folder(client.get_run(result.report_run_id))
    theirs_drew = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*.*")}
    for name, mine_drew in report.write("workers").files.items():
        assert theirs_drew[name] == mine_drew, name


# desired state


def test_second_launch_trains_nothing_and_touches_no_run(client: MlflowClient, whole: StudyResult) -> None:
    before = snapshot(client, "whole")
    again = launch(whole.study)
    assert (again.trained, again.settled, again.failed) == (0, 6, {})
    assert again.report_run_id == whole.report_run_id
    assert snapshot(client, "whole") == before
    assert len(found(client, "whole")) == 7


def test_only_a_deleted_run_is_trained_again(client: MlflowClient, whole: StudyResult) -> None:
    expected, before = digests_of(client, "whole"), snapshot(client, "whole")
    name = "act=relu-s1"
    client.delete_run(cells(client, "whole")[name].info.run_id)
    again = launch(whole.study)
    assert (again.trained, again.settled) == (1, 6)
    assert digests_of(client, "whole") == expected
    after = snapshot(client, "whole")
    assert [cell for cell in before if after[cell] != before[cell]] == [name]
    assert after[name]["info"]["run_id"] != before[name]["info"]["run_id"]


@pytest.fixture
def interrupted(client: MlflowClient) -> tuple[Study, dict[str, Run]]:
    """Four cells with three epochs that an interrupt stopped in the middle of the first two, and their runs."""
    study = ofat("interrupted", (0, 1), {"epochs": 3})

    def watch(now: Progress) -> None:
        if now.epoch == 3:
            raise KeyboardInterrupt

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        launch(study, watch=watch, say=said.append)
    assert any("the same command goes on" in line for line in said), said
    runs = cells(client, "interrupted")
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    assert [run.info.status for run in reports(client, "interrupted")] == ["KILLED"]
    return study, runs


def test_runs_that_did_not_end_are_taken_over_in_place(client: MlflowClient, interrupted: tuple[Study, dict[str, Run]]) -> None:
    """Killed, failed, orphaned as RUNNING, and scheduled but never begun: each goes on in its own run."""
    study, before = interrupted
    begun = [name for name, run in before.items() if run.data.metrics]
    never = [name for name, run in before.items() if not run.data.metrics]
    assert (len(begun), len(never)) == (2, 2)
    client.update_run(before[begun[0]].info.run_id, status="FAILED")
    client.set_tag(before[begun[0]].info.run_id, "error", "zerodivisionerror by hand")
    (folder(before[begun[0]]) / "checkpoints" / "last.safetensors").unlink()  # its rows are there, its epochs are not
    client.update_run(before[begun[1]].info.run_id, status="RUNNING")
    client.update_run(before[never[0]].info.run_id, status="SCHEDULED")
    result = launch(study)
    assert (result.trained, result.settled, result.failed) == (4, 4, {})
    after = cells(client, "interrupted")
    launch(study.model_copy(update={"name": "uninterrupted"}))
    assert digests_of(client, "interrupted") == digests_of(client, "uninterrupted")
    for name, model in cells(client, "uninterrupted").items():
        assert after[name].info.run_id == before[name].info.run_id
        assert rows(client, after[name]) == rows(client, model), name
        assert "error" not in after[name].data.tags
        assert after[name].data.params == model.data.params
    assert {after[name].data.tags["attempt"] for name in begun} == {"2"}
    assert [run.info.status for run in reports(client, "interrupted")] == ["FINISHED"]


def test_cell_whose_last_checkpoint_is_refused_goes_on_from_the_one_before_and_its_stack_with_it(
    client: MlflowClient, whole: StudyResult, caplog: pytest.LogCaptureFixture
) -> None:
    """Three lanes of one stack: one has another's checkpoint, one has no whole one at all."""
    study = ofat("damaged", (0, 1, 2), {"epochs": 4}, act=["tanh"])

    def watch(now: Progress) -> None:
        if now.epoch == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(study, watch=watch)
    places = [folder(run) / "checkpoints" for _, run in sorted(cells(client, "damaged").items())]
    shutil.copy(places[2] / "last.safetensors", places[0] / "last.safetensors")
    for name in ("last", "previous"):
        (places[1] / f"{name}.safetensors").write_bytes(b"")
    result = launch(study)
    assert (result.trained, result.settled, result.failed) == (3, 3, {})
    launch(study.model_copy(update={"name": "undamaged"}))
    assert digests_of(client, "damaged") == digests_of(client, "undamaged")
    for name, model in cells(client, "undamaged").items():
        assert rows(client, cells(client, "damaged")[name]) == rows(client, model), name
    told = {
        record.getMessage().split(" of run ")[0]: record.getMessage() for record in caplog.records if "goes on" in record.msg
    }
    assert sorted(told) == ["act=tanh-s0", "act=tanh-s1"]
    assert "after epoch 2, by checkpoints/previous.safetensors: " in told["act=tanh-s0"]
    assert "belongs to another config" in told["act=tanh-s0"]
    assert "from the beginning: " in told["act=tanh-s1"]
    assert [path.name for place in places for path in place.iterdir() if path.name == "previous.safetensors"] == []


def test_more_seeds_train_only_the_new_ones(client: MlflowClient, whole: StudyResult) -> None:
    study = ofat("seeds")
    assert launch(study).trained == 2
    before = snapshot(client, "seeds")
    more = launch(study.override(seeds=[0, 2]))
    assert (more.trained, more.settled) == (2, 4)
    after = snapshot(client, "seeds")
    assert {name: after[name] for name in before} == before
    assert len(reports(client, "seeds")) == 1


def test_other_epochs_are_another_edition_and_going_back_trains_nothing(client: MlflowClient, whole: StudyResult) -> None:
    study = ofat("editions")
    launch(study)
    before = {run.info.run_id: run.to_dictionary() for run in found(client, "editions") if "cell" in run.data.tags}
    longer = launch(study.override(epochs=3))
    assert longer.trained == 2
    back = launch(study)
    assert (back.trained, back.settled) == (0, 2)
    now = {run.info.run_id: run for run in found(client, "editions") if "cell" in run.data.tags}
    assert len(now) == 4
    assert {run_id: now[run_id].to_dictionary() for run_id in before} == before
    assert len({run.data.tags["edition"] for run in now.values()}) == 2
    assert len(reports(client, "editions")) == 2
    frame = harness.runs("editions")
    assert set(frame.run_id) == set(before)


@pytest.mark.parametrize("tag", ["code_digest", "data_digest"])
def test_stale_run_is_kept_but_trained_again_in_a_new_one(tag: str, client: MlflowClient, whole: StudyResult) -> None:
    study = ofat(f"stale-{tag[:4]}", act=["tanh"])
    launch(study)
    (old,) = (run for run in found(client, study.name) if "cell" in run.data.tags)
    client.set_tag(old.info.run_id, tag, "f" * 64)
    assert "stale" in set(harness.runs(study.name).state)
    assert launch(study).trained == 1
    runs = {run.info.run_id: run for run in found(client, study.name) if "cell" in run.data.tags}
    kept = runs.pop(old.info.run_id)
    (new,) = runs.values()
    assert kept.info.status == "FINISHED"
    assert kept.data.tags["edition"] != old.data.tags["edition"] == new.data.tags["edition"]
    assert rows(client, kept) == rows(client, new)
    assert digests(kept) == digests(new)
    assert launch(study).trained == 0
    assert list(harness.runs(study.name).run_id) == [new.info.run_id]


# the base stands in several rows


BASE_ONLY = {"init": ["normal"], "act": ["tanh"], "norm": ["none"], "optimizer": ["sgd"]}


@pytest.fixture(scope="module")
def copies(client: MlflowClient) -> StudyResult:
    """The base in four rows with three seeds, each cell trained."""
    return launch(ofat("copies", (0, 1, 2), {"epochs": 1}, **BASE_ONLY))


def test_copies_of_the_base_are_trained_apart_and_agree_bit_for_bit(client: MlflowClient, copies: StudyResult) -> None:
    assert copies.trained == 12
    assert copies.copies.startswith("12 runs, 3 distinct digests")
    assert copies.agree
    (report,) = reports(client, "copies")
    assert report.data.tags["copies"] == slug(copies.copies)
    assert copies.copies in report.data.tags["mlflow.note.content"]
    assert len(set(digests_of(client, "copies").values())) == 3


def test_cells_that_no_other_cell_copies_are_not_counted(whole: StudyResult, client: MlflowClient) -> None:
    result = launch(ofat("some", base={"epochs": 1}, act=["tanh", "relu"], norm=["none"]))
    assert result.copies.startswith("2 runs, 1 distinct digests")


@pytest.mark.parametrize("tag", DIGESTS)
def test_copy_with_other_bits_fails_the_study(
    tag: str, client: MlflowClient, copies: StudyResult, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "norm=none-s1"
    run = cells(client, "copies")[name]
    client.set_tag(run.info.run_id, tag, "0" * 64)
    try:
        again = launch(copies.study)
        assert not again.agree
        assert (again.trained, again.settled) == (0, 12)
        assert again.copies.startswith("12 runs, 4 distinct digests")
        assert "DISAGREE" in again.copies
        assert [report.info.status for report in reports(client, "copies")] == ["FAILED"]
        assert says(["study", str(written(copies.study, tmp_path)), "--workers", "0"]) == 1
        assert "DISAGREE" in capsys.readouterr().out
    finally:
        client.set_tag(run.info.run_id, tag, run.data.tags[tag])
    assert launch(copies.study).agree
    assert [report.info.status for report in reports(client, "copies")] == ["FINISHED"]


def test_shared_cells_are_trained_once_and_copied(client: MlflowClient, copies: StudyResult) -> None:
    result = launch(ofat("shared", (0, 1, 2), {"epochs": 1}, **BASE_ONLY), share=True)
    assert (result.trained, result.settled, result.copies, result.agree) == (3, 12, "", True)
    assert digests_of(client, "shared") == digests_of(client, "copies")
    by, model = cells(client, "shared"), cells(client, "copies")
    leaders = {run.info.run_id: run for run in by.values() if "shared_with" not in run.data.tags}
    assert len(leaders) == 3
    for name, run in by.items():
        assert run.data.tags["variant"] == model[name].data.tags["variant"]
        assert run.data.params == model[name].data.params
        assert rows(client, run) == rows(client, model[name]), name
        if run.info.run_id not in leaders:
            other = leaders[run.data.tags["shared_with"]]
            assert other.data.tags["config_digest"] == run.data.tags["config_digest"]
            assert run.data.metrics == other.data.metrics
            assert (folder(run) / "history.csv").read_bytes() == (folder(other) / "history.csv").read_bytes()
    assert launch(ofat("shared", (0, 1, 2), {"epochs": 1}, **BASE_ONLY), share=True).trained == 0


def test_a_cell_is_copied_from_a_run_that_lost_its_figure(client: MlflowClient, whole: StudyResult) -> None:
    launch(ofat("figureless", act=["tanh"]))
    (leader,) = cells(client, "figureless").values()
    (folder(leader) / "plots" / "history.png").unlink()
    wanted = ofat("figureless", act=["tanh"], norm=["none"])
    assert "1 of 2 cells to train" in preview(wanted, 0, None, False, print)
    assert "none of 2 cells to train" in preview(wanted, 0, None, True, print)
    result = launch(wanted, share=True)
    assert (result.trained, result.failed) == (0, {})
    twin = cells(client, "figureless")["norm=none-s0"]
    assert (twin.info.status, twin.data.tags["shared_with"]) == ("FINISHED", leader.info.run_id)
    assert digests(twin) == digests(leader)


def test_copy_into_a_run_that_was_half_trained_has_every_row_once(client: MlflowClient, whole: StudyResult) -> None:
    """Stopped while the base's copies trained apart, gone on with as shared: the rows that were there are not doubled."""
    study = ofat("half", base={"epochs": 3}, act=["tanh"], norm=["none"])

    def watch(now: Progress) -> None:
        if now.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(study, watch=watch)
    assert all(run.data.metrics for run in cells(client, "half").values())
    for run in cells(client, "half").values():
        client.set_terminated(run.info.run_id, "FAILED")
        client.set_tag(run.info.run_id, "error", "by hand")
    assert launch(study, share=True).trained == 1
    first, second = cells(client, "half").values()
    assert rows(client, first) == rows(client, second)
    assert digests(first) == digests(second)
    assert all(len(found) == len(set(found)) for run in (first, second) for found in rows(client, run).values())
    assert not any("error" in run.data.tags for run in (first, second))


# what fails


def broken(out: int, fan_in: int, rng: object) -> Any:
    raise ZeroDivisionError("this init is broken")


@pytest.fixture
def broken_init(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One row of the table of inits raises whenever it is drawn from; the code digest is that of the file."""
    monkeypatch.setitem(INITS, "lecun", Init(broken))  # type: ignore[misc]
    return monkeypatch


def test_failing_cell_does_not_stop_the_others_and_is_trained_when_it_can_be(
    client: MlflowClient, broken_init: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It shares a stack with others: they go on without it."""
    study = ofat("failing", (0, 1), init=["normal", "lecun"], act=["relu"])
    said: list[str] = []
    result = launch(study, say=said.append)
    assert (result.trained, result.settled) == (4, 4)
    assert set(result.failed) == {"init=lecun-s0", "init=lecun-s1"}
    assert all(why == "ZeroDivisionError: this init is broken" for why in result.failed.values())
    before = cells(client, "failing")
    for name, run in before.items():
        assert run.info.status == ("FAILED" if name in result.failed else "FINISHED")
        assert ("error" in run.data.tags) == (name in result.failed)
        assert any(name in line and ("failed" in line) == (name in result.failed) for line in said), said
        if name in result.failed:
            assert "this init is broken" in run.data.tags["error"]
            assert "ZeroDivisionError" in (folder(run) / "traceback.txt").read_text(encoding="utf-8")
            assert "state_digest" not in run.data.tags
    (report,) = reports(client, "failing")
    assert report.info.status == "FAILED"
    assert "init=lecun-s1" in report.data.tags["mlflow.note.content"]

    file = written(study, tmp_path)
    assert says(["study", str(file), "--workers", "0", "--no-health"]) == 1
    assert "init=lecun-s0: ZeroDivisionError: this init is broken" in capsys.readouterr().out

    broken_init.undo()
    again = launch(study)
    assert (again.trained, again.settled, again.failed) == (2, 6, {})
    after = cells(client, "failing")
    assert {name: run.info.run_id for name, run in after.items()} == {name: run.info.run_id for name, run in before.items()}
    for name in result.failed:
        alone = harness.train(study.cells[2 + int(name[-1])].config, probe=False, say=lambda line: None)
        assert digests(after[name]) == (alone.state_digest, alone.history_digest)
        assert "error" not in after[name].data.tags
        assert [step for step, _ in rows(client, after[name])["test/loss"]] == [0, 1, 2]
    assert [report.info.status for report in reports(client, "failing")] == ["FINISHED"]


def test_fail_fast_stops_at_the_first_failure_and_marks_the_rest_killed(
    client: MlflowClient, whole: StudyResult, broken_init: pytest.MonkeyPatch
) -> None:
    study = ofat("fast", (0, 1), init=["lecun"], act=["relu"], norm=["layernorm"])
    said: list[str] = []
    result = launch(study, fail_fast=True, say=said.append)
    by = cells(client, "fast")
    states = {name: run.info.status for name, run in by.items()}
    assert set(result.failed) == {name for name, state in states.items() if state == "FAILED"} >= {"init=lecun-s0"}
    killed = [name for name, state in states.items() if state == "KILLED"]
    assert killed, states
    assert not {"RUNNING", "SCHEDULED"} & set(states.values())
    assert any(line.startswith("killed") for line in said)
    assert result.settled + len(result.failed) + len(killed) == 6
    broken_init.undo()
    again = launch(study)
    assert (again.trained, again.settled, again.failed) == (6 - result.settled, 6, {})
    after = cells(client, "fast")
    assert {name: run.info.run_id for name, run in after.items()} == {name: run.info.run_id for name, run in by.items()}


@pytest.mark.slow
def test_a_worker_does_not_wait_until_the_driver_has_looked_at_what_it_has_done(
    client: MlflowClient, whole: StudyResult
) -> None:
    study = ofat("handed", base={"act": "relu"}, hidden_dim=["8", "12"])
    states: list[set[str]] = []

    def say(line: str) -> None:
        if not line.startswith("1/2"):
            return
        end = time.monotonic() + 30
        while "SCHEDULED" in (now := {run.info.status for run in cells(client, "handed").values()}) and time.monotonic() < end:
            time.sleep(0.1)
        states.append(now)

    assert launch(study, workers=1, say=say).trained == 2
    assert states in ([{"FINISHED", "RUNNING"}], [{"FINISHED"}])


def test_run_whose_files_cannot_be_written_fails_alone_and_is_repaired(client: MlflowClient, whole: StudyResult) -> None:
    """A file lies where a folder of the run should be: the disk's own error, in the middle of a stack."""
    study = ofat("blocked", (0, 1, 2), act=["tanh"])

    def watch(now: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(study, watch=watch)
    run = cells(client, "blocked")["act=tanh-s1"]
    place = folder(run) / "checkpoints"
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("in the way", encoding="utf-8")
    result = launch(study)
    assert set(result.failed) == {"act=tanh-s1"}
    assert "checkpoints" in result.failed["act=tanh-s1"]
    assert result.settled == 2
    failed = cells(client, "blocked")["act=tanh-s1"]
    assert failed.info.status == "FAILED"
    assert (folder(failed) / "traceback.txt").is_file()
    place.unlink()
    assert launch(study).settled == 3
    alone = harness.train(study.cells[1].config, probe=False, say=lambda line: None)
    assert digests(cells(client, "blocked")["act=tanh-s1"]) == (alone.state_digest, alone.history_digest)
    assert len(rows(client, cells(client, "blocked")["act=tanh-s1"])["test/loss"]) == 3


def test_diverging_cell_is_a_result(client: MlflowClient, whole: StudyResult) -> None:
    study = Study(
        name="diverging",
        question="Too fast?",
        design="list",
        seeds=[0, 1],
        base=TINY,
        variants=[{"name": "slow"}, {"name": "fast", "lr": 1e9}],
    )
    result = launch(study)
    assert (result.trained, result.settled, result.failed) == (4, 4, {})
    by = cells(client, "diverging")
    for name, run in by.items():
        assert run.info.status == "FINISHED"
        assert ("diverged" in run.data.tags) == name.startswith("fast")
        assert {"error", "traceback"}.isdisjoint(run.data.tags)
    assert [report.info.status for report in reports(client, "diverging")] == ["FINISHED"]
    table = harness.summary("diverging").set_index("variant")
    assert (table.n["fast"], table.diverged["fast"], table.n["slow"], table.diverged["slow"]) == (0, 2, 2, 0)
    assert launch(study).trained == 0


# what is refused


@pytest.mark.parametrize("workers", [-1, -7])
def test_number_of_workers_that_cannot_be_is_refused_before_anything_is_written(
    workers: int, client: MlflowClient, whole: StudyResult
) -> None:
    with pytest.raises(InputError, match=f"workers={workers}"):
        launch(ofat("refused"), workers=workers)
    assert client.get_experiment_by_name("refused") is None


# the command line, in worker processes


SABOTAGE = """
def _lecun(out, fan_in, rng):
    from pathlib import Path
    if Path(__file__).with_name("broken").exists() and out == 8:
        raise ZeroDivisionError("this init is broken")
    return _normal(out, fan_in, rng) * np.float32((1 / fan_in) ** 0.5)


@dataclass(frozen=True)
class Init:
"""


@pytest.mark.slow
def test_cell_that_fails_in_a_worker_process_is_told_with_its_reason(
    client: MlflowClient, whole: StudyResult, tmp_path: Path
) -> None:
    """In a copy of the package, one of whose inits is broken as long as a file lies beside it."""
    shutil.copytree(ROOT / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "harness" / "components" / "inits.py"
    text = source.read_text(encoding="utf-8").replace("\n@dataclass(frozen=True)\nclass Init:\n", SABOTAGE)
    text = re.sub(r'"lecun": Init\(.*\),\n', '"lecun": Init(_lecun),\n', text)
    assert text.count("_lecun") == 2
    source.write_text(text, encoding="utf-8")
    source.with_name("broken").touch()
    study = ofat("sabotaged", init=["normal", "lecun"])
    command = [sys.executable, "-m", "harness", "study", str(written(study, tmp_path)), "--workers", "2", "--no-health"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "failed   init=lecun-s0: ZeroDivisionError: this init is broken" in done.stdout
    by = cells(client, "sabotaged")
    assert {name: run.info.status for name, run in by.items()} == {"init=normal-s0": "FINISHED", "init=lecun-s0": "FAILED"}
    assert "in _lecun" in (folder(by["init=lecun-s0"]) / "traceback.txt").read_text(encoding="utf-8")


def written(study: Study, folder: Path) -> Path:
    """The study as a TOML file."""
    lines = [f"{key} = {json.dumps(getattr(study, key))}" for key in ("name", "question", "design")]
    lines += [f"seeds = {list(study.seeds)}", "[base]", *(f"{key} = {json.dumps(value)}" for key, value in study.base.items())]
    lines += ["[factors]", *(f"{key} = {json.dumps(list(levels))}" for key, levels in study.factors.items())]
    path = folder / f"{study.name}.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def says(arguments: list[str]) -> int:
    """The command line in this process; its exit code. The process's signal handlers stay what they are."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return int(ended.value.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# what one could not see coming


def test_run_that_another_process_trains_is_left_to_it(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `harness train --resume` beside a study: whoever holds the run writes how it ends."""
    monkeypatch.setattr(worker, "PATIENCE", 0.3)
    study = ofat("held", (0,), {"epochs": 3})

    def watch(now: Progress) -> None:
        if now.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(study, watch=watch)
    mine = cells(client, "held")["act=tanh-s0"]
    with RunLog.of(Store(), mine.info.run_id).alone():
        client.update_run(mine.info.run_id, status="RUNNING")
        result = launch(study)
        assert result.failed == {"act=tanh-s0": f"run {mine.info.run_id} is being trained by another process"}
        assert cells(client, "held")["act=tanh-s0"].info.status == "RUNNING"
    assert launch(study).failed == {}
    assert "error" not in cells(client, "held")["act=tanh-s0"].data.tags


def test_run_begun_with_other_code_is_not_resumed(client: MlflowClient, whole: StudyResult) -> None:
    """Half a run by old code and half by new would stand under one digest."""
    launch(ofat("older"))
    run_id = cells(client, "older")["act=tanh-s0"].info.run_id
    client.update_run(run_id, status="KILLED")
    client.set_tag(run_id, "code_digest", "0" * 64)
    with pytest.raises(InputError, match="other code"):
        harness_launch.resume(run_id, say=lambda line: None)
    assert client.get_run(run_id).info.status == "KILLED"


def test_worker_with_other_code_trains_nothing(client: MlflowClient) -> None:
    plan = prepare(RunConfig(**TINY), lambda line: None)
    run_id = Store().create("other code", plan.cell.name, tags=plan.tags).info.run_id
    lane = worker.Lane(run_id, plan.cell, plan.config, plan.data.digest, "0" * 64)
    assert "code here is not the driver's" in worker.work(worker.Work(Store().uri, (lane,)), lambda run_id, done: None)[run_id]
    assert client.get_run(run_id).data.metrics == {}


@pytest.mark.parametrize("case", ["alone", "its driver has ended them", "rows of one are refused"])
def test_interrupted_worker_leaves_its_runs_killed_with_the_rows_that_waited(
    case: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PAUSE", 3600.0)
    store, lanes, send = Store(), list[worker.Lane](), Store.send
    for seed in (0, 1):
        plan = prepare(RunConfig(**{**TINY, "epochs": 4, "seed": seed}), lambda line: None)
        run_id = store.create(f"interrupted worker {case}", plan.cell.name, tags=plan.tags).info.run_id
        lanes.append(worker.Lane(run_id, plan.cell, plan.config, plan.data.digest, plan.tags["code_digest"]))

    def picky(its: Store, run_id: str, entry: Entry, content: Path | None = None) -> None:
        if run_id == lanes[0].run_id and max((step for *_, step in entry.metrics), default=0):
            raise MlflowException("refused by hand")
        send(its, run_id, entry, content)

    def tell(run_id: str, done: EpochRecord) -> None:
        if done.epoch == 2:
            for lane in lanes if case == "its driver has ended them" else []:
                store.end(lane.run_id, "KILLED")
            raise KeyboardInterrupt

    if case == "rows of one are refused":
        monkeypatch.setattr(Store, "send", picky)
    with pytest.raises(KeyboardInterrupt):
        worker.work(worker.Work(store.uri, tuple(lanes)), tell)
    assert [client.get_run(lane.run_id).info.status for lane in lanes] == ["KILLED"] * 2
    last = [max(row.step for row in client.get_metric_history(lane.run_id, "test/loss")) for lane in lanes]
    assert last == [0 if case == "rows of one are refused" else 2, 1]


def test_worker_without_the_store_says_so_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shared disk"):
        worker.work(worker.Work(f"sqlite:///{tmp_path}/mlflow.db", ()), lambda run_id, done: None)
    assert list(tmp_path.iterdir()) == []


def test_run_id_of_another_run_is_refused_before_anything_trains(client: MlflowClient, whole: StudyResult) -> None:
    with pytest.raises(InputError, match="MLFLOW_RUN_ID"):
        launch(ofat("launcher"), launcher=whole.report_run_id)
    assert client.get_experiment_by_name("launcher") is None


def test_experiment_that_was_deleted_is_named_with_the_way_to_restore_it(client: MlflowClient, whole: StudyResult) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(InputError, match="deleted; restore it: mlflow experiments restore"):
        launch(ofat("gone"))


def test_run_deleted_in_the_middle_does_not_hide_an_interrupt(client: MlflowClient, whole: StudyResult) -> None:
    study = ofat("deleted", (0, 1), {"epochs": 3})

    def watch(now: Progress) -> None:
        if now.epoch == 3:
            client.delete_run(cells(client, "deleted")["act=relu-s1"].info.run_id)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(study, watch=watch)
    assert {run.info.status for run in cells(client, "deleted").values()} == {"KILLED"}
    assert [run.info.status for run in reports(client, "deleted")] == ["KILLED"]


def test_a_level_that_left_the_study_is_not_compared_with_its_copies(client: MlflowClient, whole: StudyResult) -> None:
    wide = ofat("left", (0,), act=["tanh", "relu"], norm=["none", "layernorm"])
    assert launch(wide).copies.startswith("2 runs, 1 distinct")
    dropped = cells(client, "left")["norm=none-s0"]
    client.set_tag(dropped.info.run_id, "state_digest", "0" * 64)
    narrow = launch(ofat("left", (0,), act=["tanh", "relu"], norm=["layernorm"]))
    assert (narrow.copies, narrow.agree, narrow.trained) == ("", True, 0)


def test_one_store_has_one_name_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names would be two locks, and two drivers that do not see each other."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = set()
    for where, path in (("a", "mlflow.db"), ("a/b", "../mlflow.db"), ("link", "mlflow.db")):
        monkeypatch.chdir(tmp_path / where)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        found.add(store_uri())
    assert found == {f"sqlite:///{tmp_path.resolve()}/a/mlflow.db"}


def test_plans_of_a_study_share_their_data() -> None:
    """A dataset of its own for each of a hundred plans would be a hundred times 200 MB."""
    study = Study(
        name="x", question="q", design="factorial", seeds=[0], base=TINY,
        factors={"normalize": ["unit", "standard"], "act": ["tanh", "relu"]},
    )  # fmt: skip
    plans = prepare_all(study.cells, lambda line: None)
    assert len({id(plan.data) for plan in plans}) == 2


def test_grouped_summary_counts_seeds_and_averages_conditions_within_them(client: MlflowClient, whole: StudyResult) -> None:
    """Two inits of one seed are no two samples: they share their batches, and n is what an interval rests on."""
    study = Study(
        name="grouped", question="q", design="factorial", seeds=[0, 1], base=TINY,
        factors={"init": ["normal", "kaiming"], "norm": ["none", "layernorm"]},
    )  # fmt: skip
    launch(study)
    runs, by = harness.runs("grouped"), harness.summary("grouped", by="norm").set_index("norm")
    for norm in ("none", "layernorm"):
        seeds = runs[runs.norm == norm].groupby("seed")["final/test_loss"].mean()
        row = by.loc[norm]
        assert (row.n, row.conditions) == (2, 2)
        assert row.test_loss_mean == pytest.approx(seeds.mean(), rel=1e-12)
        assert row.test_loss_std == pytest.approx(seeds.std(), rel=1e-12)
        assert row.test_loss_high - row.test_loss_mean == pytest.approx(12.706204736 * seeds.std() / 2**0.5, rel=1e-6)
    with pytest.raises(InputError, match="by='seed'"):
        harness.summary("grouped", by="seed")


def test_setting_that_finished_under_the_names_of_several_copies_counts(client: MlflowClient, whole: StudyResult) -> None:
    """Of the base, which three variants are, each seed finished under another name."""
    study = Study(
        name="copied", question="q", design="one_factor_at_a_time", seeds=[0, 1], base=TINY,
        factors={"init": ["normal", "kaiming"], "norm": ["none", "layernorm"]},
    )  # fmt: skip
    launch(study)
    before = harness.summary("copied", by="norm").set_index("norm")
    for row in harness.runs("copied").itertuples():
        if (row.variant, row.seed) in (("init=normal", 1), ("norm=none", 0)):
            client.set_terminated(row.run_id, "FAILED")
    after = harness.summary("copied", by="norm").set_index("norm")
    assert dict(after.conditions) == dict(before.conditions) == {"none": 2, "layernorm": 1}
    assert dict(after.test_loss_mean) == dict(before.test_loss_mean)


def test_study_that_was_not_launched_like_this_is_not_read_as_if_it_were(whole: StudyResult) -> None:
    assert len(harness.runs(whole.study)) == len(whole.study.cells)
    with pytest.raises(InputError, match="last launched with other"):
        harness.runs(whole.study.override(seeds=[7]))


@pytest.mark.slow
def test_script_that_forgets_its_guard_ends_with_a_line_that_says_so(tmp_path: Path) -> None:
    """Workers import the script, which would launch the study again and wait for the parent that waits for them."""
    script = (
        "import harness\n"
        "study = harness.Study(name='x', question='q', design='factorial', seeds=[0, 1], "
        f"base={TINY!r}, factors={{'norm': ['none', 'rmsnorm']}})\n"
        "harness.run_study(study, workers=2)\n"
    )
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.strip().splitlines()[-1]
    states = {run.info.status for run in MlflowClient(env["MLFLOW_TRACKING_URI"]).search_runs(["1"])}
    assert not states & {"RUNNING", "SCHEDULED"}


def test_workers_that_log_the_same_new_dataset_at_once_all_do(client: MlflowClient, whole: StudyResult) -> None:
    """MLflow looks for a dataset and then makes it; two at once, and one of them breaks on the other's row."""
    stores = [Store() for _ in range(4)]
    logs = [RunLog(store, store.create("datasets", f"r{k}")) for k, store in enumerate(stores)]
    together = threading.Barrier(len(logs))

    def log(mine: RunLog) -> None:
        for k in range(12):
            together.wait(60)
            mine.datasets(f"d{k}", dict.fromkeys(("training", "validation", "testing"), 1), "0" * 64, {})

    with ThreadPoolExecutor(len(logs)) as pool:
        list(pool.map(log, logs))
    for mine in logs:
        assert len(client.get_run(mine.id).inputs.dataset_inputs) == 36
