"""A run that was killed goes on to the bits of one that never was, in the same MLflow run, with nothing lost or doubled."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import forks
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from processes import harness_that_sends_itself, stop

import harness
from harness import nursery, tracking
from harness.checkpoint import Checkpoint, state_digest
from harness.cli import main
from harness.config import RunConfig
from harness.errors import InputError
from harness.launch import RunResult, resume
from harness.plan import prepare
from harness.recorder import Recorder
from harness.results import EpochRecord
from harness.store import Store

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 16
KILLS = int(os.environ.get("HARNESS_KILLS", "10"))  # of single runs; 200 take ten minutes
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
def whole(place: Path) -> RunResult:
    """The run that nobody interrupted."""
    return harness.train(CONFIG)


def arguments(config: RunConfig) -> list[str]:
    return [part for name, text in config.changed().items() for part in (f"--{name.replace('_', '-')}", text)]


class Process:
    """`python -m harness train` as a process of its own, whose lines are read as they come."""

    def __init__(self, *args: str, harness: Sequence[str] = (sys.executable, "-m", "harness")) -> None:
        self.child = forks.Fork(
            [*harness, "train", *args],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
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
    processes.append(second := Process("--resume", run_id, harness=harness_that_sends_itself(signal.SIGKILL, epoch=8)))
    assert second.end()[0] == -signal.SIGKILL
    processes.append(third := Process("--resume", run_id))
    code, err = third.end()
    assert (code, err) == (0, "")
    assert_as_if_nothing_had_happened(client, run_id, whole, attempt=3)
    started = re.search(rf"^resume: after epoch (\d+) of {EPOCHS}$", "".join(third.lines), re.MULTILINE)
    assert started
    assert int(started[1]) == 8
    told = [int(found[1]) for line in third.lines if (found := re.match(r"epoch +(\d+)/", line))]
    assert told == list(range(int(started[1]) + 1, EPOCHS + 1))


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
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


def train_until(uri: str, arguments: list[str], operation: int) -> None:
    """The command line, killed before its nth operation on a folder of checkpoints; 0: never."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    os.environ.pop("MLFLOW_RUN_ID", None)
    done = 0

    def hear(event: str, told: tuple[Any, ...]) -> None:
        nonlocal done
        if event in ("open", "os.link", "os.rename", "os.remove") and "checkpoints" in str(told[0]):
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    if operation:
        sys.addaudithook(hear)
    main(["train", *arguments])


@pytest.fixture
def forked(place: Path) -> Iterator[Callable[..., int]]:
    """Runs the command line in a process of its own, killed after some seconds or at an operation; returns its exit code.

    The process is a fork of one that has imported what it needs, so that two hundred take minutes and not half an hour.
    """
    nursery.begin()
    children: list[BaseProcess] = []

    def run(arguments: list[str], seconds: float = 200, operation: int = 0) -> int:
        given = (os.environ["MLFLOW_TRACKING_URI"], arguments, operation)
        child: BaseProcess = multiprocessing.get_context(nursery.METHOD).Process(target=train_until, args=given)
        children.append(child)
        child.start()
        child.join(seconds)
        child.kill()
        child.join(30)
        assert child.exitcode is not None
        return child.exitcode

    yield run
    for child in children:
        child.kill()
    nursery.end()


@pytest.mark.slow
def test_run_killed_at_any_moment_is_resumed_to_the_same_bits(
    client: MlflowClient, whole: RunResult, forked: Callable[..., int]
) -> None:
    """SIGKILL at random moments, and before random operations on checkpoints; most runs are killed several times.

    A run that had not begun says so, every other one ends as if nothing had happened.
    """
    seed = time.time_ns()
    print(f"seed {seed}")
    rng, kills, resumed = random.Random(seed), 0, 0
    assert forked(["--help"]) == 0  # once the imports are done
    began = time.monotonic()
    assert forked(arguments(CONFIG)) == 0
    seconds = time.monotonic() - began
    while kills < KILLS:
        before, given, taken = set(runs(client)), arguments(CONFIG), 0
        while True:
            how = {"operation": rng.randrange(1, 10 * EPOCHS)} if rng.random() < 0.5 else {"seconds": rng.uniform(0, seconds)}
            code = forked(given, **how)
            assert code in (0, -signal.SIGKILL)
            kills, taken = kills + (code != 0), taken + 1
            run = next((run for run_id, run in runs(client).items() if run_id not in before), None)
            if run is None or "config_digest" not in run.data.tags or run.info.status == "FINISHED" or rng.random() < 0.2:
                break
            given = ["--resume", run.info.run_id]
        if run is None:
            continue
        if "config_digest" not in run.data.tags:
            with pytest.raises(InputError, match="start it afresh"):
                resume(run.info.run_id)
            continue
        if run.info.status != "FINISHED":
            resume(run.info.run_id, say=lambda line: None)
        attempt = int(client.get_run(run.info.run_id).data.tags["attempt"])
        assert 1 <= attempt <= taken + 1
        assert_as_if_nothing_had_happened(client, run.info.run_id, whole, attempt)
        resumed += attempt > 1
        print(f"{kills} kills, {resumed} runs resumed")
    assert resumed >= KILLS / 20


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
            if which in (str(calls), *args[:1]):
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


BEGUN = ("epoch 1", "file 4", "epoch 17", "flush 1", "text 3", "file plots/activations.png", "model 1")


@pytest.mark.parametrize("step", BEGUN)
def test_run_stopped_at_any_step_is_resumed_to_the_same_store(
    step: str, client: MlflowClient, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stopped_at(step, monkeypatch, client)
    result = resume(run_id, say=lambda line: None)
    assert (result.state_digest, result.history_digest) == (whole.state_digest, whole.history_digest)
    assert_as_if_nothing_had_happened(client, run_id, whole, attempt=2)


@pytest.mark.parametrize("step", ["text 1", "text 2", "params 1", "datasets 1"])
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


SHORT = CONFIG.replace(epochs=4)


@pytest.fixture(scope="module")
def short(place: Path, whole: RunResult) -> RunResult:
    """A shorter run that nobody interrupted."""
    return harness.train(SHORT, say=lambda line: None)


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def with_a_nan(content: bytes, folder: Path) -> bytes:
    """A checkpoint with a right digest that holds a weight which is none."""
    (folder / "x").write_bytes(content)
    found = Checkpoint.load(folder / "x")
    found.state["linear2.weight"][1, 2] = float("nan")
    found.save(folder / "x")
    return (folder / "x").read_bytes()


DAMAGES: dict[str, str] = {
    "one bit": "damaged or altered",
    "torn": "torn or no safetensors file",
    "empty": "torn or no safetensors file",
    "gone": "has no artifact",
    "another run's": "belongs to another config",
    "no numbers": "weights or moments that are no numbers",
}


def damage(how: str, path: Path, other: Path, folder: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(
            {
                "one bit": flipped(content, len(content) * 8 - 800),
                "torn": content[: len(content) // 2],
                "empty": b"",
                "another run's": other.read_bytes(),
                "no numbers": with_a_nan(content, folder),
            }[how]
        )


@pytest.mark.parametrize("how", DAMAGES)
def test_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(
    how: str,
    client: MlflowClient,
    whole: RunResult,
    short: RunResult,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run_id = stopped_at("epoch 5", monkeypatch, client, SHORT)  # after epoch 3
    damage(how, checkpoint_of(place, run_id), checkpoint_of(place, whole.run_id), tmp_path)
    said: list[str] = []
    resume(run_id, say=said.append)
    (line,) = (line for line in said if line.startswith("resume: "))
    assert line.startswith("resume: after epoch 2 of 4, by checkpoints/previous.safetensors: ")
    assert DAMAGES[how] in line
    assert_as_if_nothing_had_happened(client, run_id, short, attempt=2)


def test_run_with_neither_checkpoint_whole_starts_from_the_beginning_and_says_why(
    client: MlflowClient, short: RunResult, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stopped_at("epoch 5", monkeypatch, client, SHORT)
    last = checkpoint_of(place, run_id)
    last.write_bytes(b"")
    last.with_name(".last.safetensors.1.tmp").write_bytes(b"half")  # of a process that was killed, and is not to stay
    last.with_name("previous.safetensors").write_bytes(flipped(last.with_name("best.safetensors").read_bytes(), 90_000))
    said: list[str] = []
    resume(run_id, say=said.append)
    (line,) = (line for line in said if line.startswith("resume: "))
    assert re.fullmatch(r"resume: from the beginning: .*last\.safetensors is torn .*previous\.safetensors has SHA-256 .*", line)
    assert_as_if_nothing_had_happened(client, run_id, short, attempt=2)


def test_every_one_of_six_hundred_damages_is_refused_and_the_checkpoint_before_is_taken_up_in_its_place(
    client: MlflowClient, short: RunResult, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 flipped bits and 100 cuts, anywhere in the file of a real run."""
    run_id = stopped_at("epoch 5", monkeypatch, client, SHORT)
    last = checkpoint_of(place, run_id)
    before = last.with_name("previous.safetensors")
    content, whole_one, rng = last.read_bytes(), before.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    bits = [*rng.sample(range(8 * header), 250), *rng.sample(range(8 * header, 8 * len(content)), 250)]
    lengths = [0, 1, 7, 8, header - 1, header, len(content) - 1, *rng.sample(range(len(content)), 93)]
    recorder = Recorder(tracking.RunLog.of(Store(), run_id), prepare(SHORT, lambda line: None))
    for damaged in [*(flipped(content, bit) for bit in bits), *(content[:length] for length in lengths)]:
        last.write_bytes(damaged)
        before.write_bytes(whole_one)
        found, why = recorder.last()
        assert found
        assert found.epoch == 2
        assert str(last) in why
        assert last.read_bytes() == whole_one  # and so whoever is killed now has it still
        assert not before.exists()
    last.write_bytes(content)
    found, why = recorder.last()
    assert found
    assert (found.epoch, why) == (3, "")


def test_checkpoint_of_no_numbers_is_that_of_a_run_that_diverged(
    client: MlflowClient, short: RunResult, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it is a result, and nothing to be refused."""
    config = SHORT.replace(optimizer="sgd", lr=1e30, norm="none", act="relu")
    run_id = stopped_at("file plots/history.png", monkeypatch, client, config)
    found = Checkpoint.load(checkpoint_of(place, run_id))
    assert any(tensor.isnan().any() for tensor in found.state.values())
    said: list[str] = []
    assert resume(run_id, say=said.append).diverged == found.epoch
    assert f"resume: after epoch {found.epoch} of 4" in said


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
    client: MlflowClient, whole: RunResult, place: Path, processes: list[Process]
) -> None:
    before = set(runs(client))
    processes.append(process := Process(*arguments(CONFIG)))
    process.until(rf"^epoch +1/{EPOCHS} ")
    stop(process.child.pid, place / "mlflow.db")
    try:
        (run_id,) = set(runs(client)) - before
        with pytest.raises(InputError, match="being trained by another process"):
            resume(run_id)
    finally:
        os.kill(process.child.pid, signal.SIGCONT)
    code, err = process.end()
    assert (code, err) == (0, "")
    assert_as_if_nothing_had_happened(client, run_id, whole, attempt=1)


@pytest.mark.slow
def test_run_is_refused_also_to_a_process_with_another_folder_for_temporary_files(
    client: MlflowClient,
    whole: RunResult,
    place: Path,
    processes: list[Process],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lock belongs to the run, not to TMPDIR: shells, services and batch jobs each have their own."""
    before = set(runs(client))
    processes.append(process := Process(*arguments(CONFIG)))
    process.until(rf"^epoch +1/{EPOCHS} ")
    stop(process.child.pid, place / "mlflow.db")
    try:
        (run_id,) = set(runs(client)) - before
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(InputError, match="being trained by another process"):
            resume(run_id, report=refuse)
    finally:
        process.end(signal.SIGKILL)


def refuse(record: EpochRecord, epochs: int) -> None:
    raise AssertionError("trained beside the process that holds the run")
