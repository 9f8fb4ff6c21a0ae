"""A run that was killed goes on to the bits of one that never was, in the same MLflow run, with nothing lost or doubled."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import harness
from harness import tracking
from harness.checkpoint import state_digest
from harness.config import RunConfig
from harness.errors import InputError
from harness.launch import RunResult, resume
from harness.results import EpochRecord

# mlflow 3.17's own: a table mapped with a strategy that sqlalchemy is going to drop, a type hint in one of its classes
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 16
CONFIG = RunConfig(
    dataset="mnist_5k",
    epochs=EPOCHS,
    max_batches=20,
    hidden_dim=16,
    optimizer="adam",
    lr=0.001,
    norm="batchnorm",
    dropout=0.3,
    validation=0.1,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a store of its own, which is also the working directory."""
    folder = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def whole(place: Path) -> RunResult:
    """The run that nobody interrupted."""
    return harness.train(CONFIG)


@pytest.fixture(scope="module")
def client(place: Path, whole: RunResult) -> MlflowClient:
    return MlflowClient(f"sqlite:///{place}/mlflow.db")


def arguments(config: RunConfig) -> list[str]:
    return [part for name, text in config.changed().items() for part in (f"--{name.replace('_', '-')}", text)]


class Process:
    """A real `python -m harness train`, whose lines are read as they come."""

    def __init__(self, *args: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "harness", "train", *args],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        self.watchdog = threading.Timer(200, self.child.kill)
        self.watchdog.start()
        self.lines: list[str] = []

    def until(self, pattern: str) -> None:
        """Read lines up to one that matches."""
        assert self.child.stdout
        for line in self.child.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                return
        raise AssertionError(f"ended before {pattern!r}: {self.lines[-5:]} {self.child.stderr and self.child.stderr.read()}")

    def end(self, how: signal.Signals | None = None) -> tuple[int, str]:
        """Send a signal, if any, wait for the end; returns the exit code and what it said on stderr."""
        if how is not None:
            self.child.send_signal(how)
        out, err = self.child.communicate(timeout=200)
        self.watchdog.cancel()
        self.lines += out.splitlines(keepends=True)
        return self.child.returncode, err


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Those that a test starts; none outlives it."""
    started: list[Process] = []
    yield started
    for process in started:
        process.watchdog.cancel()
        if process.child.poll() is None:
            process.child.kill()
        process.child.communicate(timeout=30)


def runs(client: MlflowClient) -> dict[str, Run]:
    return {run.info.run_id: run for run in client.search_runs([e.experiment_id for e in client.search_experiments()])}


def paths(client: MlflowClient, run_id: str, folder: str = "") -> set[str]:
    found = client.list_artifacts(run_id, folder)
    return {p for item in found for p in (paths(client, run_id, item.path) if item.is_dir else {item.path})}


def killed(client: MlflowClient, processes: list[Process], epoch: int, how: signal.Signals = signal.SIGKILL) -> str:
    """A run whose process was killed right after it told of an epoch; its id."""
    before = set(runs(client))
    processes.append(process := Process(*arguments(CONFIG)))
    process.until(rf"^epoch +{epoch}/{EPOCHS} ")
    code, err = process.end(how)
    assert code == (-signal.SIGKILL if how == signal.SIGKILL else 130), err
    assert "Traceback" not in err
    (run_id,) = set(runs(client)) - before
    return run_id


def assert_as_if_nothing_had_happened(client: MlflowClient, run_id: str, whole: RunResult, attempt: int) -> None:
    """The run in the store equals the one that was never interrupted, but for its id, its times and its attempts."""
    run, model = client.get_run(run_id), client.get_run(whole.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == model.info.run_name
    assert run.data.params == model.data.params
    mine, theirs = ({k: v for k, v in r.data.tags.items() if not k.startswith("mlflow.source")} for r in (run, model))
    assert mine == {**theirs, "attempt": str(attempt)}
    keys = set(model.data.metrics)
    assert set(run.data.metrics) == keys
    for key in keys:
        rows, expected = ([(m.step, m.value) for m in client.get_metric_history(i, key)] for i in (run_id, whole.run_id))
        assert [step for step, _ in rows] == [step for step, _ in expected], key
        if key != "time/epoch_seconds":
            assert rows == expected, key
    assert {p for p in paths(client, run_id) if "model" not in p} == {
        p for p in paths(client, whole.run_id) if "model" not in p
    }
    assert inputs(run) == inputs(model)
    assert table(client, run_id) == table(client, whole.run_id)
    found = client.search_logged_models([e.experiment_id for e in client.search_experiments()])
    assert [m.name for m in found if m.source_run_id == run_id] == ["model"]


def inputs(run: Run) -> list[str]:
    return sorted(item.dataset.name for item in run.inputs.dataset_inputs)


def table(client: MlflowClient, run_id: str) -> dict[str, list[str]]:
    """The columns of history.csv, without the wall time."""
    text = Path(client.download_artifacts(run_id, "history.csv")).read_text(encoding="utf-8")
    columns = zip(*(line.split(",") for line in text.splitlines()), strict=True)
    return {name: values for name, *values in columns if name != "time/epoch_seconds"}


def checkpoint_of(place: Path, run_id: str) -> Path:
    return place / "mlruns" / "harness" / run_id / "artifacts" / "checkpoints" / "last.safetensors"


# killed by force


def test_killed_run_is_resumed_to_the_same_bits(
    client: MlflowClient, whole: RunResult, place: Path, processes: list[Process]
) -> None:
    """Killed, resumed and killed again, then resumed by the command line in a third process."""
    run_id = killed(client, processes, 3)
    assert client.get_run(run_id).info.status == "RUNNING"
    processes.append(second := Process("--resume", run_id))
    second.until(rf"^epoch +(8|9|1[0-9])/{EPOCHS} ")
    assert second.end(signal.SIGKILL)[0] == -signal.SIGKILL
    processes.append(third := Process("--resume", run_id))
    code, err = third.end()
    assert (code, err) == (0, "")
    assert_as_if_nothing_had_happened(client, run_id, whole, attempt=3)
    started = re.search(rf"^resume: after epoch (\d+) of {EPOCHS}$", "".join(third.lines), re.MULTILINE)
    assert started
    assert 7 <= int(started[1]) < EPOCHS
    told = [int(found[1]) for line in third.lines if (found := re.match(r"epoch +(\d+)/", line))]
    assert told == list(range(int(started[1]) + 1, EPOCHS + 1))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_polite_kill_ends_the_run_as_killed_and_it_can_be_resumed(
    how: signal.Signals, client: MlflowClient, whole: RunResult, processes: list[Process]
) -> None:
    run_id = killed(client, processes, 2, how)
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert "error" not in run.data.tags
    result = resume(run_id)
    assert (result.run_id, result.state_digest, result.history_digest) == (run_id, whole.state_digest, whole.history_digest)
    assert result.final == whole.final
    assert_as_if_nothing_had_happened(client, run_id, whole, attempt=2)


@pytest.mark.slow
def test_run_killed_at_any_moment_is_resumed_to_the_same_bits(
    client: MlflowClient, whole: RunResult, processes: list[Process]
) -> None:
    """Twenty kills at random moments; a run that had not begun says so, every other one ends as if nothing had happened."""
    rng, resumed = random.Random(0), 0
    for _ in range(20):
        before = set(runs(client))
        processes.append(process := Process(*arguments(CONFIG)))
        if rng.random() < 0.8:
            process.until(rf"^epoch +{rng.randrange(EPOCHS)}/")
        time.sleep(rng.uniform(0, 0.6))
        process.end(signal.SIGKILL)
        for run_id in set(runs(client)) - before:
            if client.get_run(run_id).info.status == "FINISHED":
                continue
            if "config_digest" not in client.get_run(run_id).data.tags:
                with pytest.raises(InputError):
                    resume(run_id)
                continue
            resume(run_id)
            assert_as_if_nothing_had_happened(client, run_id, whole, attempt=2)
            resumed += 1
    assert resumed >= 10


# stopped at each step; in one process, by an error that ends it there


class Stop(BaseException):
    """The end of the process, as far as the run is concerned."""


def stopped_at(step: str, monkeypatch: pytest.MonkeyPatch, client: MlflowClient, config: RunConfig = CONFIG) -> str:
    """A run that stopped before the nth call of a method of RunLog, or that for a file, nothing written afterwards; its id."""
    method, which = step.split()
    before, calls = set(runs(client)), 0
    with monkeypatch.context() as patch:
        real = getattr(tracking.RunLog, method)

        def call(log: tracking.RunLog, *args: Any) -> Any:
            nonlocal calls
            calls += 1
            if which in (str(calls), args[0]):
                for name in ("tags", "text", "finish"):  # a dead process sets no status
                    patch.setattr(tracking.RunLog, name, lambda *_: None)
                raise Stop
            return real(log, *args)

        patch.setattr(tracking.RunLog, method, call)
        with pytest.raises(Stop):
            harness.train(config)
    (run_id,) = set(runs(client)) - before
    assert client.get_run(run_id).info.status == "RUNNING"
    return run_id


BEGUN = ("epoch 1", "file 4", "metrics 18", "text 3", "file plots/activations.png", "model 1")


@pytest.mark.parametrize("step", BEGUN)
def test_run_stopped_at_any_step_is_resumed_to_the_same_store(
    step: str, client: MlflowClient, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stopped_at(step, monkeypatch, client)
    result = resume(run_id, say=lambda line: None)
    assert (result.state_digest, result.history_digest) == (whole.state_digest, whole.history_digest)
    assert_as_if_nothing_had_happened(client, run_id, whole, attempt=2)


@pytest.mark.parametrize("step", ["text 1", "text 2", "params 1", "dataset 1", "dataset 2"])
def test_run_that_had_not_begun_says_to_start_afresh(
    step: str, client: MlflowClient, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stopped_at(step, monkeypatch, client)
    with pytest.raises(InputError, match="start it afresh"):
        resume(run_id)


def test_run_stopped_between_best_and_last_has_the_best_of_an_uninterrupted_one(
    client: MlflowClient, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stopped_at("file 5", monkeypatch, client)
    resume(run_id)
    best = [harness.load_model(i, "best").state_dict() for i in (run_id, whole.run_id)]
    assert state_digest(best[0]) == state_digest(best[1])


def test_history_file_of_a_resumed_run_has_its_columns_in_the_same_order(
    client: MlflowClient, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stopped_at("epoch 4", monkeypatch, client)
    resume(run_id)
    assert list(table(client, run_id)) == list(table(client, whole.run_id))


def test_run_begun_without_the_probe_is_resumed_without_it(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "train", partial(harness.train, probe=False))
    run_id = stopped_at("epoch 4", monkeypatch, client)
    result = resume(run_id, say=lambda line: None)
    assert not any(record.health for record in result.history)
    assert not any(key.startswith("health/") for key in client.get_run(run_id).data.metrics)


def test_failed_run_that_is_resumed_is_not_both_finished_and_failed(client: MlflowClient, whole: RunResult) -> None:
    before = set(runs(client))

    def report(record: EpochRecord, epochs: int) -> None:
        if record.epoch == 2:
            raise ZeroDivisionError("by hand")

    with pytest.raises(ZeroDivisionError):
        harness.train(CONFIG, report=report)
    (run_id,) = set(runs(client)) - before
    assert client.get_run(run_id).info.status == "FAILED"
    resume(run_id)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert "error" not in client.get_run(run_id).data.tags


def test_diverged_run_stopped_at_its_end_is_resumed_as_diverged(
    client: MlflowClient, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.replace(optimizer="sgd", lr=1e6, epochs=5, norm="none")
    reference = harness.train(config)
    assert reference.diverged
    run_id = stopped_at("file plots/history.png", monkeypatch, client, config)
    result = resume(run_id)
    assert result.diverged == reference.diverged
    assert_as_if_nothing_had_happened(client, run_id, reference, attempt=2)


def test_run_of_a_network_file_is_resumed_under_its_own_name_when_the_file_is_gone(
    client: MlflowClient, whole: RunResult, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place / "narrow.json"
    file.write_text('{"layers": [{"type": "linear", "size": 9}, {"type": "relu"}]}', encoding="utf-8")
    config = RunConfig(network="narrow.json", dataset="mnist_5k", epochs=2, max_batches=3)
    reference = harness.train(config)
    run_id = stopped_at("epoch 2", monkeypatch, client, config)
    file.unlink()
    result = resume(run_id)
    assert result.state_digest == reference.state_digest
    assert result.name == reference.name == client.get_run(run_id).info.run_name
    first, second = (client.get_run(i).data.tags["mlflow.note.content"].split("\n\n") for i in (reference.run_id, run_id))
    assert second[:3] == first[:3]


# damage


def test_damaged_checkpoint_means_the_beginning_and_says_so(
    client: MlflowClient, whole: RunResult, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stopped_at("epoch 9", monkeypatch, client)
    path = checkpoint_of(place, run_id)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    said: list[str] = []
    resume(run_id, say=said.append)
    assert_as_if_nothing_had_happened(client, run_id, whole, attempt=2)
    assert [line for line in said if line.startswith("resume: from the beginning: ") and "damaged" in line]


@pytest.mark.parametrize("damage", ["gone", "empty", "another run's"])
def test_checkpoint_that_is_not_there_or_of_another_run_means_the_beginning(
    damage: str, client: MlflowClient, whole: RunResult, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.replace(epochs=4)
    reference = harness.train(config)
    run_id = stopped_at("epoch 3", monkeypatch, client, config)
    path = checkpoint_of(place, run_id)
    if damage == "gone":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        shutil.copy(checkpoint_of(place, whole.run_id), path)
    said: list[str] = []
    result = resume(run_id, say=said.append)
    assert (result.state_digest, result.history_digest) == (reference.state_digest, reference.history_digest)
    assert any(line.startswith("resume: from the beginning: ") for line in said)


# what cannot be resumed


def test_run_that_is_finished_is_left_as_it_is(client: MlflowClient, whole: RunResult) -> None:
    before = client.get_run(whole.run_id)
    with pytest.raises(InputError, match="is FINISHED; there is nothing to resume"):
        resume(whole.run_id)
    assert client.get_run(whole.run_id).to_dictionary() == before.to_dictionary()


@pytest.mark.parametrize("run_id", ["0123456789abcdef0123456789abcdef", "no/such run", "x" * 300, "../../etc"])
def test_unknown_run_is_refused_with_the_store_that_was_asked(run_id: str, client: MlflowClient, place: Path) -> None:
    with pytest.raises(InputError) as caught:
        resume(run_id)
    assert f"sqlite:///{place}/mlflow.db" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_run_of_other_data_is_refused_with_both_digests(
    client: MlflowClient, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stopped_at("epoch 3", monkeypatch, client)
    digest = client.get_run(run_id).data.tags["data_digest"]
    client.set_tag(run_id, "data_digest", "f" * 64)  # as if the files here were not those that it began with
    with pytest.raises(InputError) as caught:
        resume(run_id)
    assert digest in str(caught.value)
    assert "f" * 64 in str(caught.value)
    assert client.get_run(run_id).data.tags["attempt"] == "1"
    assert client.get_run(run_id).info.status == "RUNNING"


def test_run_of_another_program_is_refused(client: MlflowClient, whole: RunResult) -> None:
    run_id = client.create_run("0").info.run_id
    with pytest.raises(InputError) as caught:
        resume(run_id)
    assert run_id in str(caught.value)
    assert client.get_run(run_id).data.tags.keys() == {"mlflow.runName"}


def test_run_that_is_being_trained_is_refused_and_goes_on_unharmed(
    client: MlflowClient, whole: RunResult, processes: list[Process]
) -> None:
    before = set(runs(client))
    processes.append(process := Process(*arguments(CONFIG)))
    process.until(rf"^epoch +1/{EPOCHS} ")
    os.kill(process.child.pid, signal.SIGSTOP)
    try:
        (run_id,) = set(runs(client)) - before
        with pytest.raises(InputError, match="being trained by another process"):
            resume(run_id)
    finally:
        os.kill(process.child.pid, signal.SIGCONT)
    code, err = process.end()
    assert (code, err) == (0, "")
    assert_as_if_nothing_had_happened(client, run_id, whole, attempt=1)


def test_run_is_refused_also_to_a_process_with_another_folder_for_temporary_files(
    client: MlflowClient, whole: RunResult, processes: list[Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock belongs to the run, not to TMPDIR: shells, services and batch jobs each have their own."""
    before = set(runs(client))
    processes.append(process := Process(*arguments(CONFIG)))
    process.until(rf"^epoch +1/{EPOCHS} ")
    os.kill(process.child.pid, signal.SIGSTOP)
    try:
        (run_id,) = set(runs(client)) - before
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(InputError, match="being trained by another process"):
            resume(run_id, report=refuse)
    finally:
        process.end(signal.SIGKILL)


def refuse(record: EpochRecord, epochs: int) -> None:
    raise AssertionError("trained beside the process that holds the run")
