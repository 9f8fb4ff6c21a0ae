"""The store goes away while runs train, and comes back: nothing waits long for it, nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import forks
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from processes import free_port
from servers import Server, served

from harness.errors import HarnessError, InputError, StoreAway, WriteError
from harness.journal import Entry, Journal
from harness.outage import IMPATIENT, is_outage, told
from harness.store import Store
from harness.tracking import RunLog

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 30  # of a third of a second and more
LONGEST = 30  # seconds from one epoch to the next, whatever the store does
TRAIN = ("train", "--dataset", "mnist_5k", "--epochs", str(EPOCHS), "--hidden-dim", "256", "--batch-size", "8", "--lr", "0.001")
TOML = f"""
name = "small"
question = "Which?"
design = "one_factor_at_a_time"
seeds = [0]
[base]
dataset = "mnist_5k"
epochs = {EPOCHS}
hidden_dim = 256
batch_size = 8
lr = 0.001
[factors]
act = ["tanh", "relu"]
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with served(tmp_path, tmp_path / "served.db") as server:
        yield server


class Harness:
    """`python -m harness` as a process of its own, each line of it with the time at which it came."""

    def __init__(self, folder: Path, uri: str, *arguments: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        self.child = forks.Fork(
            [sys.executable, "-m", "harness", *arguments],
            cwd=folder,
            env={**clean, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.watchdog = threading.Timer(280, self.kill)
        self.watchdog.start()
        self.lines: list[tuple[float, str]] = []
        self.heard = threading.Thread(target=self._hear, daemon=True)
        self.heard.start()

    def _hear(self) -> None:
        assert self.child.stdout
        with self.child.stdout as lines:
            for line in lines:
                self.lines.append((time.monotonic(), line.rstrip("\n")))

    def has(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for _, line in list(self.lines))

    def until(self, pattern: str, seconds: float = 200) -> None:
        end = time.monotonic() + seconds
        while not self.has(pattern):
            assert self.heard.is_alive(), (self.text, self.child.stderr and self.child.stderr.read())
            assert time.monotonic() < end, (pattern, self.text)
            time.sleep(0.02)

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    @property
    def run_id(self) -> str:
        (found,) = re.findall(r"^run +([0-9a-f]{32})", self.text, re.MULTILINE)
        return str(found)

    @property
    def gap(self) -> float:
        """The longest time between two epochs, in seconds."""
        times = [at for at, line in self.lines if line.startswith("epoch ")]
        longest = max(after - before for before, after in pairwise(times))
        print(f"longest gap between two epochs: {longest:.1f} s")
        return longest

    def end(self) -> tuple[int, str]:
        """Exit code and what was said on stderr."""
        assert self.child.stderr
        err = self.child.stderr.read()
        code = self.child.wait(timeout=280)
        self.kill()
        return code, err

    def kill(self) -> None:
        self.watchdog.cancel()
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait(timeout=30)
        self.heard.join()
        if self.child.stderr:
            self.child.stderr.close()


@pytest.fixture
def started() -> Iterator[list[Harness]]:
    """Those that a test starts; none outlives it."""
    found: list[Harness] = []
    yield found
    for process in found:
        process.kill()


Content = tuple[str, str, dict[str, list[tuple[int, float]]], set[str]]


def content(folder: Path, run: Run, client: MlflowClient) -> Content:
    """What a run came to: digests, rows, files. It has ended well, and each row of it is there once."""
    assert run.info.status == "FINISHED"
    tags, rows = run.data.tags, {}
    assert not {"error", "diverged"} & set(tags)
    for key in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, key)
        rows[key] = sorted((m.step, 0.0 if key.startswith("time/") else m.value) for m in history)
        assert len({m.step for m in history}) == len(history), key
    (artifacts,) = folder.rglob(f"{run.info.run_id}/artifacts")
    files = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    return tags["state_digest"], tags["history_digest"], rows, files


def contents(folder: Path, uri: str, experiment: str) -> dict[str, Content]:
    """What all runs came to that train, by their names."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found
    runs = [run for run in client.search_runs([found.experiment_id]) if "cell" in run.data.tags]
    by = {run.data.tags["cell"]: content(folder, run, client) for run in runs}
    assert len(by) == len(runs)
    return by


def only(folder: Path, uri: str) -> Content:
    (found,) = contents(folder, uri, "harness").values()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """What the run comes to with a store that is always there."""
    folder = tmp_path_factory.mktemp("whole")
    process = Harness(folder, f"sqlite:///{folder}/mlflow.db", *TRAIN)
    assert process.end() == (0, "")
    return only(folder, f"sqlite:///{folder}/mlflow.db")


def journals(folder: Path) -> list[Path]:
    """Runs that have a journal, for a server or beside a sqlite store."""
    return [path for place in (".cache/harness/journal", "mlruns/.journal") for path in (folder / place).glob("*")]


# an outage in the middle


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 35], ids=["restarted", "away for longer than the client tries"])
def test_server_that_is_killed_and_comes_back_has_the_run_as_if_it_had_been_there(
    seconds: int, server: Server, started: list[Harness], whole: Content, tmp_path: Path
) -> None:
    started.append(process := Harness(tmp_path, server.uri, *TRAIN))
    process.until("^epoch +3/")
    server.send(signal.SIGKILL)
    process.until("^kept ")
    time.sleep(seconds)
    server.start()
    code, err = process.end()
    assert (code, err) == (0, ""), process.text
    assert process.has("^back ")
    assert process.gap < LONGEST
    assert only(tmp_path, server.uri) == whole
    assert journals(tmp_path) == []


@pytest.mark.slow
def test_server_that_falls_silent_and_answers_again_has_the_run_once(
    server: Server, started: list[Harness], whole: Content, tmp_path: Path
) -> None:
    """What was sent to it in vain it takes up late: the rows come twice, at one time, and are one."""
    started.append(process := Harness(tmp_path, server.uri, *TRAIN))
    process.until("^epoch +3/")
    server.send(signal.SIGSTOP)
    process.until("^kept ", 60)
    server.send(signal.SIGCONT)
    code, err = process.end()
    assert (code, err) == (0, ""), process.text
    assert process.gap < LONGEST
    assert only(tmp_path, server.uri) == whole
    assert journals(tmp_path) == []


@pytest.mark.slow
def test_sqlite_file_that_another_process_locks_for_half_a_minute_has_the_run_as_if_it_had_been_free(
    started: list[Harness], whole: Content, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    started.append(process := Harness(tmp_path, uri, *TRAIN))
    process.until("^epoch +3/")
    code = (
        f"import sqlite3, time; file = sqlite3.connect({str(tmp_path / 'mlflow.db')!r}, timeout=10); "
        "file.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); time.sleep(30)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "locked\n"
        began = time.monotonic()
        process.until("^kept ", 40)
        assert time.monotonic() - began > 15, "sqlite was not waited for"
        assert len(journals(tmp_path)) == 1
        code_, err = process.end()
    assert (code_, err) == (0, ""), process.text
    assert process.gap < LONGEST
    assert only(tmp_path, uri) == whole
    assert journals(tmp_path) == []


# gone for good


@pytest.mark.slow
def test_run_whose_store_stays_away_ends_in_one_line_and_is_delivered_by_a_resume(
    server: Server, started: list[Harness], whole: Content, tmp_path: Path
) -> None:
    started.append(process := Harness(tmp_path, server.uri, *TRAIN))
    process.until("^epoch +3/")
    server.send(signal.SIGKILL)
    process.until(f"^epoch +{EPOCHS}/")
    began = time.monotonic()
    code, err = process.end()
    assert code == 1, process.text
    print(f"the run ended {time.monotonic() - began:.1f} s after its last epoch")
    assert time.monotonic() - began < 90
    (journal,) = journals(tmp_path)
    assert err.startswith(f"harness: error: store {server.uri} does not answer")
    assert err.count("\n") == 1
    assert f"waits in {journal}: `harness train --resume {process.run_id}` delivers it" in err
    server.start()
    started.append(again := Harness(tmp_path, server.uri, "train", "--resume", process.run_id))
    assert again.end() == (0, ""), again.text
    assert again.has("^back ")
    assert not again.has("^epoch "), "an epoch was trained again"
    assert only(tmp_path, server.uri) == whole
    assert journals(tmp_path) == []


@pytest.mark.slow
def test_run_that_is_killed_in_an_outage_goes_on_from_the_epoch_that_it_had_reached(
    server: Server, started: list[Harness], whole: Content, tmp_path: Path
) -> None:
    started.append(process := Harness(tmp_path, server.uri, *TRAIN))
    process.until("^epoch +3/")
    server.send(signal.SIGKILL)
    process.until("^epoch +10/")
    process.kill()
    server.start()
    started.append(again := Harness(tmp_path, server.uri, "train", "--resume", process.run_id))
    assert again.end() == (0, ""), again.text
    (epoch,) = re.findall(r"^resume: after epoch (\d+) of", again.text, re.MULTILINE)
    print(f"killed after epoch 10, the run went on after epoch {epoch}")
    assert int(epoch) >= 9
    assert only(tmp_path, server.uri) == whole
    assert journals(tmp_path) == []


@pytest.mark.slow
def test_study_whose_store_goes_away_goes_on_with_what_its_workers_have_trained(
    server: Server, started: list[Harness], whole: Content, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(TOML, encoding="utf-8")
    started.append(driver := Harness(tmp_path, server.uri, "study", "small.toml", "--workers", "2"))
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("served/**/checkpoints/last.safetensors"))) < 2:
        assert time.monotonic() < end, driver.text
        time.sleep(0.1)
    server.send(signal.SIGKILL)
    code, err = driver.end()
    assert code == 1, driver.text
    assert err.startswith("harness: error: store ")
    assert err.count("\n") == 1
    kept = {path.name: Journal(path) for path in journals(tmp_path)}
    assert kept
    reached = {run_id: max(row[3] for entry in journal.waiting for row in entry.metrics) for run_id, journal in kept.items()}
    assert max(reached.values()) == EPOCHS
    server.start()
    began = time.time() * 1000
    started.append(again := Harness(tmp_path, server.uri, "study", "small.toml", "--workers", "2"))
    assert again.end() == (0, ""), again.text
    for run_id, epoch in reached.items():
        history = MlflowClient(server.uri).get_metric_history(run_id, "train/loss")
        assert all(row.timestamp < began for row in history if row.step <= epoch), "an epoch was trained again"
    found = contents(tmp_path, server.uri, "small")
    assert set(found) == {"act=tanh-s0", "act=relu-s0"}
    assert found["act=tanh-s0"][:2] == whole[:2]
    assert journals(tmp_path) == []


# at the start


@pytest.mark.slow
def test_server_that_is_silent_at_the_start_is_given_up_within_thirty_seconds(started: list[Harness], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started.append(process := Harness(tmp_path, uri, *TRAIN))
        silent.settimeout(200)
        asking, _ = silent.accept()
        began = time.monotonic()
        with asking:
            code, err = process.end()
        took = time.monotonic() - began
    print(f"given up after {took:.1f} s")
    assert took < 30
    assert (code, process.text) == (2, "")
    assert err.startswith(f"harness: error: store {uri} cannot be opened")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# what is an outage


def raised_by_request(uri: str) -> Exception:
    with told(IMPATIENT), pytest.raises(MlflowException) as caught:
        MlflowClient(uri).search_experiments(max_results=1)
    return caught.value


def test_server_that_refuses_the_connection_is_an_outage() -> None:
    assert is_outage(raised_by_request(f"http://127.0.0.1:{free_port()}"))


@pytest.mark.parametrize(("answer", "is_one"), [("500", True), ("503", True), ("429", True), ("400", False), ("403", False)])
def test_server_that_answers_an_error_is_an_outage_where_to_wait_may_help(answer: str, is_one: bool) -> None:
    """A `Retry-After` of an hour is not waited for."""

    def serve(server: socket.socket) -> None:
        reply = f"HTTP/1.1 {answer} No\r\nRetry-After: 3600\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()
        with suppress(OSError):
            while True:
                with server.accept()[0] as there:
                    there.recv(65536)
                    there.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        began = time.monotonic()
        error = raised_by_request(f"http://127.0.0.1:{listening.getsockname()[1]}")
        listening.shutdown(socket.SHUT_RDWR)
    assert is_outage(error) == is_one
    assert time.monotonic() - began < 10


def test_locked_sqlite_file_is_an_outage_and_a_broken_or_missing_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"no database, but long enough to be looked at" * 100)
    with closing(sqlite3.connect(tmp_path / "locked")) as other:
        other.execute("BEGIN EXCLUSIVE")
        for name, is_one in (("locked", True), ("broken", False), ("not/there", False)):
            with pytest.raises(sqlite3.Error) as caught, closing(sqlite3.connect(tmp_path / name, timeout=0)) as file:
                file.execute("BEGIN IMMEDIATE")
            assert is_outage(caught.value) == is_one, name


# a run and its journal, in this process


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


def away(store: Store) -> None:
    """Have it known that the store did not answer long ago, so that it is asked shortly and not for 20 seconds."""
    store.outage.asked_last = time.monotonic() - 3600


def path(store: Store) -> str:
    return store.uri.removeprefix("sqlite:///")


def rows(log: RunLog, key: str) -> list[tuple[int, float]]:
    return [(row.step, row.value) for row in log.store.client.get_metric_history(log.id, key)]


def test_what_is_written_to_a_locked_store_is_kept_in_order_and_delivered_once(store: Store) -> None:
    said: list[str] = []
    store.say = said.append
    log = RunLog(store, store.create("e", "r"))
    with log.alone():
        log.metrics({"loss": 2.0}, 0)
        with closing(sqlite3.connect(path(store))) as other:
            other.execute("BEGIN EXCLUSIVE")
            away(store)
            began = time.monotonic()
            for step, value in ((1, 1.5), (2, math.inf), (3, math.nan)):
                log.metrics({"loss": value}, step)
                log.tags({"last": step})
            assert time.monotonic() - began < 9, "each write waited for itself"
            with pytest.raises(StoreAway):
                store.get(log.id)
        assert rows(log, "loss") == [(0, 2.0)]
        away(store)
        log.metrics({"loss": 0.5}, 4)
        found = rows(log, "loss")
        assert [step for step, _ in found] == [0, 1, 2, 3, 4]
        assert found[1][1] == 1.5
        assert math.isnan(found[3][1])
        times = [row.timestamp for row in store.client.get_metric_history(log.id, "loss")]
        assert times == sorted(times)
        assert times[1] < times[4] - 1500, "a row has the time at which it was written down"
        assert store.get(log.id).data.tags["last"] == "3"
    assert not store.journal_folder(log.id).exists()
    assert [line.split()[0] for line in said] == ["kept", "what", "back"]


def test_journal_of_a_process_that_is_gone_is_delivered_by_the_next_that_holds_the_run(store: Store) -> None:
    """Also when half of it had been delivered before: what the store has already is not there twice."""
    log = RunLog(store, store.create("e", "r"))
    journal = Journal(store.journal_folder(log.id))
    for step in (1, 2, 3):
        journal.add(Entry(attempt=1, metrics=(("loss", 0.1 * step, 1000 + step, step),)))
    store.client.log_metric(log.id, "loss", 0.1, 1001, 1)
    with RunLog.of(store, log.id).alone():
        assert rows(log, "loss") == [(1, 0.1), (2, 0.2), (3, 0.1 * 3)]
    assert not journal.folder.exists()


def test_journal_of_a_run_that_went_on_elsewhere_is_void(store: Store) -> None:
    log = RunLog(store, store.create("e", "r", tags={"attempt": 2}))
    Journal(store.journal_folder(log.id)).add(Entry(attempt=1, metrics=(("loss", 0.1, 1000, 1),)))
    with RunLog.of(store, log.id).alone():
        assert rows(log, "loss") == []
    assert not store.journal_folder(log.id).exists()


def test_what_finds_no_room_in_the_journal_either_is_not_said_to_be_kept(store: Store) -> None:
    said: list[str] = []
    store.say = said.append
    log = RunLog(store, store.create("e", "r"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with log.alone(), closing(sqlite3.connect(path(store))) as other:
        other.execute("BEGIN EXCLUSIVE")
        away(store)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            for step in (1, 2):
                with pytest.raises(WriteError, match=r"does not answer, and .* cannot be kept in .*: File too large"):
                    log.metrics({"loss": 1.0}, step)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said == []
    away(store)
    assert "loss" not in store.get(log.id).data.metrics


def test_refused_value_and_deleted_run_fail_at_once_and_are_not_kept(store: Store) -> None:
    log = RunLog(store, store.create("e", "r"))
    with log.alone():
        with pytest.raises(MlflowException, match="Invalid value"):
            log.metrics({"not:a(name)%": 1.0}, 0)
        store.client.delete_run(log.id)
        with pytest.raises(MlflowException, match="active"):
            log.metrics({"loss": 1.0}, 0)
    assert not store.journal_folder(log.id).exists()


def test_writer_that_does_not_hold_the_run_keeps_nothing(store: Store) -> None:
    log = RunLog(store, store.create("e", "r"))
    with closing(sqlite3.connect(path(store))) as other:
        other.execute("BEGIN EXCLUSIVE")
        away(store)
        with pytest.raises(StoreAway, match="does not answer"):
            log.tags({"edition": 1})
    assert not store.journal_folder(log.id).exists()
    assert store.outage.over(0)


def test_store_away_is_no_bad_input() -> None:
    assert StoreAway("x").exit_code == 1
    assert issubclass(StoreAway, HarnessError)
    assert not issubclass(StoreAway, InputError)


# the journal itself


def test_journal_is_read_back_as_it_was_written_without_files_that_newer_ones_replace(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    (tmp_path / "file").write_bytes(b"old")
    journal.add(Entry(attempt=1, metrics=(("a", math.inf, 1, 0), ("b", 0.1 + 0.2, 1, 0))))
    journal.add(Entry(attempt=1, artifact="checkpoints/last"), tmp_path / "file")
    journal.add(Entry(attempt=1, tags={"t": "ü"}))
    (tmp_path / "file").write_bytes(b"new")
    journal.add(Entry(attempt=1, artifact="checkpoints/last"), tmp_path / "file")
    read = Journal(tmp_path / "journal")
    assert read.waiting == journal.waiting
    assert [(entry.metrics, entry.tags, entry.artifact) for entry in read.waiting] == [
        ((("a", math.inf, 1, 0), ("b", 0.1 + 0.2, 1, 0)), {}, ""),
        ((), {"t": "ü"}, ""),
        ((), {}, "checkpoints/last"),
    ]
    assert read.content(read.waiting[2]).read_bytes() == b"new"
    assert read.content(read.waiting[2]).name == "last"
    assert [p.read_bytes() for p in tmp_path.glob("journal/*/*")] == [b"new"]
    for _ in range(3):
        assert (tmp_path / "journal").is_dir()
        read.drop()
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("folder", ["a", "b"])
def test_file_of_the_same_content_and_name_as_one_that_was_replaced_waits_on(folder: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    (tmp_path / "file").write_bytes(b"same")
    journal.add(Entry(attempt=1, artifact="a/file"), tmp_path / "file")
    journal.add(Entry(attempt=1, artifact=f"{folder}/file"), tmp_path / "file")
    if folder == "b":
        (tmp_path / "file").write_bytes(b"other")
        journal.add(Entry(attempt=1, artifact="a/file"), tmp_path / "file")
    waiting = {entry.artifact: journal.content(entry).read_bytes() for entry in journal.waiting}
    assert waiting == {"a": {"a/file": b"same"}, "b": {"b/file": b"same", "a/file": b"other"}}[folder]


def test_line_that_the_disk_has_no_room_for_is_taken_back_and_the_next_one_is_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.add(Entry(attempt=1, tags={"a": "1"}))
    size, limits = journal.file.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            journal.add(Entry(attempt=1, tags={"b": "2" * 20_000}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.file.stat().st_size == size
    assert len(journal.waiting) == 1
    journal.add(Entry(attempt=1, tags={"c": "3"}))
    assert [entry.tags for entry in Journal(tmp_path / "journal").waiting] == [{"a": "1"}, {"c": "3"}]


def test_line_that_a_kill_cut_off_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    Journal(tmp_path).add(Entry(attempt=1, tags={"a": "1"}))
    with (tmp_path / "entries.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"attempt": 1, "tags": {"b"')
    Journal(tmp_path).add(Entry(attempt=1, tags={"c": "3"}))
    assert [entry.tags for entry in Journal(tmp_path).waiting] == [{"a": "1"}, {"c": "3"}]


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"attempt": 1, "metrics": [["a", 1.0, 5]]}',
        '{"attempt": 1, "run": "other"}',
        '{"attempt": 1, "artifact": "../../other/file", "sha256": "' + "0" * 64 + '"}',
        '{"attempt": 1, "artifact": "/etc/passwd", "sha256": "' + "0" * 64 + '"}',
        '{"attempt": 1, "artifact": "file", "sha256": "../../../etc"}',
        '{"tags": {"a": "b"}}',
    ],
)
def test_journal_that_no_harness_wrote_is_refused_in_one_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "entries.jsonl").write_text(json.dumps({"attempt": 1, "tags": {"a": "b"}}) + f"\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"journal {tmp_path}/entries.jsonl, line 2: ") as caught:
        Journal(tmp_path)
    assert "\n" not in str(caught.value)


def test_file_that_was_altered_in_the_journal_is_not_delivered(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    (tmp_path / "file").write_bytes(b"weights")
    journal.add(Entry(attempt=1, artifact="checkpoints/last.safetensors"), tmp_path / "file")
    (entry,) = journal.waiting
    journal.place(entry).write_bytes(b"wrong")
    with pytest.raises(InputError, match=r"checkpoints/last\.safetensors is not what was kept"):
        journal.content(entry)
