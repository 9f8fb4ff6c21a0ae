"""A run that a server's other machine took over: whoever had it, stopped and woken late, changes nothing more in it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from processes import harness_that_sends_itself
from servers import served

import harness
from harness import tracking
from harness.config import RunConfig
from harness.errors import TakenOver
from harness.launch import resume
from harness.results import EpochRecord
from harness.store import Store

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 12
CONFIG = RunConfig(dataset="mnist_5k", epochs=EPOCHS, max_batches=4, hidden_dim=8, optimizer="adam", lr=0.001)
OPTIONS = [part for name, text in CONFIG.changed().items() for part in (f"--{name.replace('_', '-')}", text)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real tracking server; its address."""
    folder = tmp_path_factory.mktemp("server")
    Store(f"sqlite:///{folder}/mlflow.db")
    with served(folder, folder / "mlflow.db") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        yield server.uri


@pytest.mark.slow
def test_stopped_process_that_wakes_after_its_run_was_taken_over_changes_nothing(server: str, tmp_path: Path) -> None:
    """Each with a folder for temporary files of its own: as on two machines, they have no lock in common."""
    client = MlflowClient(server)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    first = subprocess.Popen(
        [*harness_that_sends_itself(signal.SIGSTOP, epoch=3), "train", *OPTIONS],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(theirs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(200, first.kill)
    watchdog.start()
    try:
        state = os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert state
        assert state.si_code == os.CLD_STOPPED
        (run,) = client.search_runs(["0", *(e.experiment_id for e in client.search_experiments())])
        result = resume(run.info.run_id, say=lambda line: None)
        before = everything(client, run.info.run_id)
        os.kill(first.pid, signal.SIGCONT)
        _, err = first.communicate(timeout=100)
    finally:
        watchdog.cancel()
        first.kill()
        first.wait(timeout=30)
    assert first.returncode == 1
    taken = f"harness: error: run {run.info.run_id} was taken up by another process, as attempt 2; this one leaves it alone\n"
    assert err == taken
    assert everything(client, run.info.run_id) == before
    whole = harness.train(CONFIG, say=lambda line: None)
    assert (result.state_digest, result.history_digest) == (whole.state_digest, whole.history_digest)
    mine, wanted = (rows(client, run_id) for run_id in (run.info.run_id, whole.run_id))
    assert mine == wanted


@pytest.mark.slow
@pytest.mark.parametrize("waits", [False, True], ids=["rows sent", "rows that wait"])
@pytest.mark.parametrize("error", [None, ValueError("mine alone"), KeyboardInterrupt()], ids=["late", "broken", "interrupted"])
@pytest.mark.parametrize("epoch", [2, EPOCHS], ids=["between two epochs", "before its end"])
def test_run_that_is_taken_over_meanwhile_is_left_as_it_is(
    epoch: int, error: BaseException | None, waits: bool, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither failed nor killed by whoever had it, whatever happened to it there; and no row comes late."""
    monkeypatch.setattr(tracking, "PAUSE", 3600.0 if waits else 0.0)
    client = MlflowClient(server)
    run_ids: list[str] = []

    def report(record: EpochRecord, epochs: int) -> None:
        if record.epoch == epoch:
            client.set_tag(run_ids[0], "attempt", "2")
            if error:
                raise error

    def say(line: str) -> None:
        if line.startswith("run "):
            run_ids.append(line.split()[1])

    with pytest.raises(type(error) if error else TakenOver):
        harness.train(CONFIG, report=report, say=say)
    run = client.get_run(run_ids[0])
    assert run.info.status == "RUNNING"
    assert not {"error", "state_digest"} & set(run.data.tags)
    assert not [key for key in run.data.metrics if key.startswith("final/")]
    assert [step for step, _ in rows(client, run_ids[0])["test/loss"]] == ([0] if waits else [*range(epoch + 1)])
    assert "traceback.txt" not in {file.path for file in client.list_artifacts(run_ids[0])}


def rows(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All metric rows of a run, but for the wall times' values."""
    keys = sorted(client.get_run(run_id).data.metrics)
    history = {key: client.get_metric_history(run_id, key) for key in keys}
    return {key: [(m.step, 0.0 if key.startswith("time/") else m.value) for m in found] for key, found in history.items()}


def everything(client: MlflowClient, run_id: str) -> object:
    """All that the store says of a run, every row and the content of every small file."""
    run = client.get_run(run_id)
    history = {key: [m.to_dictionary() for m in client.get_metric_history(run_id, key)] for key in sorted(run.data.metrics)}
    files = {name: Path(client.download_artifacts(run_id, name)).read_bytes() for name in FILES}
    return run.to_dictionary(), history, files


FILES = ("config.json", "history.csv", "record.json", "checkpoints/last.safetensors", "checkpoints/best.safetensors")
