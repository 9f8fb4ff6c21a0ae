"""Killed anywhere and started again, alone or twice at once, here or on a cluster: the store of an uninterrupted study."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import forks
import psutil
import pytest
from distributed import Client
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.file_utils import local_file_uri_to_path
from processes import children, column, free_port, is_fork, runs_held, stop

import harness
from harness.study import Study

ROOT = Path(__file__).resolve().parent.parent
STUDY = Study(
    name="small",
    question="Which?",
    design="one_factor_at_a_time",
    seeds=[0, 1],
    base={"dataset": "mnist_5k", "epochs": 30, "max_batches": 10, "hidden_dim": 8, "lr": 0.001},
    factors={"act": ["tanh", "relu"]},
)
TOML = """
name = "small"
question = "Which?"
design = "one_factor_at_a_time"
seeds = [0, 1]
[base]
dataset = "mnist_5k"
epochs = 30
max_batches = 10
hidden_dim = 8
lr = 0.001
[factors]
act = ["tanh", "relu"]
"""
CELLS = 4
ROUNDS = int(os.environ.get("HARNESS_ROUNDS", "3"))  # of random kills, and of two drivers; 20 take a quarter of an hour
Content = dict[str, tuple[str, str, dict[str, list[tuple[int, float]]]]]  # cell -> digests and metric rows


@dataclass
class Place:
    """A folder with a store and the study's file."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "small.toml").write_text(TOML, encoding="utf-8")
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        self.environment = {**clean, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": self.uri}

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def states(self) -> list[str]:
        """The states of all runs, also while others write."""
        return self.ask("select status from runs where lifecycle_stage = 'active'")

    def training(self) -> set[str]:
        """The runs that train: they are RUNNING and have an epoch."""
        return set(self.ask("select r.run_uuid from runs r join metrics using (run_uuid) where status = 'RUNNING'"))

    def trains(self, pid: int) -> bool:
        """Whether a process trains; to hold a run is less, which may not have begun."""
        return bool(self.training() & runs_held(pid))

    def ask(self, query: str) -> list[str]:
        return column(self.folder / "mlflow.db", query)

    def runs(self) -> list[Run]:
        experiment = self.client.get_experiment_by_name("small")
        return list(self.client.search_runs([experiment.experiment_id])) if experiment else []

    def cells(self) -> dict[str, Run]:
        """The run of every cell; none has two."""
        runs = [run for run in self.runs() if "cell" in run.data.tags]
        by = {run.data.tags["cell"]: run for run in runs}
        assert len(by) == len(runs)
        return by

    def content(self) -> Content:
        """What the study came to. Each run of the store has ended well, each row of it is there once."""
        assert set(self.states()) == {"FINISHED"}
        assert len(self.runs()) == CELLS + 1
        content: Content = {}
        for name, run in self.cells().items():
            rows = {}
            for key in run.data.metrics:
                found = self.client.get_metric_history(run.info.run_id, key)
                rows[key] = [(m.step, 0.0 if key.startswith("time/") else m.value) for m in found]
                assert len({step for step, _ in rows[key]}) == len(rows[key]), (name, key)
            tags = run.data.tags
            assert "error" not in tags
            content[name] = (tags["state_digest"], tags["history_digest"], rows)
        return content

    def attempts(self) -> list[int]:
        return [int(run.data.tags["attempt"]) for run in self.cells().values()]

    def finish(self) -> None:
        """Go on with the study in this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.uri)
            result = harness.run_study(STUDY, workers=0, probe=False, say=lambda line: None)
        assert (result.settled, result.failed, result.agree) == (CELLS, {}, True)


SHORT_LEASE = "from harness import cli, engine; engine.SILENCE = {}; cli.run()"  # seconds that a worker may be silent
SLACK = 60 * 2**20  # bytes that one which is starved has left
STARVED = f"""
import pathlib, psutil, resource
from harness import engine
class Starved(engine.Newborn):
    def setup(self, worker):
        super().setup(worker)
        if self.starves():
            limit = psutil.Process().memory_info().vms + {SLACK}
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    def starves(self):
        return True
engine.Newborn = Starved
"""
ONE_STARVED = f"""{STARVED}
engine.PARTING = 5  # seconds that a worker goes on in which a run failed
class First(Starved):
    def starves(self):
        try:
            pathlib.Path("starves").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
engine.Newborn = First
"""


class Driver:
    """`python -m harness study` (or search) as a process of its own, in a process group of its own as under a terminal."""

    def __init__(self, place: Place, *arguments: str, code: str = "", command: str = "study") -> None:
        self.place = place
        program = ["-c", code] if code else ["-m", "harness"]
        health = ["--no-health"] if command == "study" else []
        self.child = forks.Fork(
            [sys.executable, *program, command, "small.toml", *health, *arguments],
            cwd=place.folder,
            env=place.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.watchdog = threading.Timer(200, self.gone)
        self.watchdog.start()

    @property
    def workers(self) -> list[psutil.Process]:
        """Forks of the process that the driver has for that; a fork's own children, before they are what they run, are none."""
        return [fork for child in children(self.child.pid) if is_fork(child) for fork in children(child.pid) if is_fork(fork)]

    def until(self, reached: Callable[[], bool], seconds: float = 90) -> bool:
        """Wait for something; false when the driver ended before."""
        end = time.monotonic() + seconds
        while not reached():
            if self.child.poll() is not None:
                return False
            assert time.monotonic() < end, self.place.states()
            time.sleep(0.02)
        return True

    def training(self) -> bool:
        """Whether a cell trains, or one did whose worker was killed."""
        return bool(self.place.training())

    def trains(self) -> bool:
        """Whether a cell trains in one of its own workers."""
        return any(self.place.trains(worker.pid) for worker in self.workers)

    def end(self, seconds: float = 200) -> tuple[int, str, str]:
        out, err = self.child.communicate(timeout=seconds)
        self.watchdog.cancel()
        return self.child.returncode, out, err

    def gone(self) -> None:
        self.watchdog.cancel()
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        with suppress(ValueError):
            self.child.communicate(timeout=30)


@pytest.fixture
def drivers() -> Iterator[list[Driver]]:
    """Those that a test starts; none outlives it."""
    started: list[Driver] = []
    yield started
    for driver in started:
        driver.gone()


@pytest.fixture
def place(tmp_path: Path, empty_store: Path) -> Place:
    """A place where the store is made already."""
    found = Place(tmp_path / "study")
    shutil.copy(empty_store, found.folder)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """What the study comes to when nobody interrupts it, in one process."""
    place = Place(tmp_path_factory.mktemp("whole"))
    place.finish()
    assert place.attempts() == [1] * CELLS
    return place.content()


def all_gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether they end within some seconds."""
    return not psutil.wait_procs(processes, timeout=seconds)[1]


# interrupted


def interrupted(place: Place, whole: Content, drivers: list[Driver], send: Callable[[int, int], None], how: int) -> None:
    """A study that is stopped politely in the middle ends in seconds, with all runs accounted for, and can be gone on with."""
    drivers.append(driver := Driver(place, "--workers", "2"))
    assert driver.until(driver.training)
    driver.until(lambda: any((place.folder / "mlruns" / "small").glob("*/artifacts/checkpoints/last.safetensors")))
    workers, began = driver.workers, time.monotonic()
    assert len(workers) == 2
    send(driver.child.pid, how)
    code, out, err = driver.end()
    assert time.monotonic() - began < 20
    assert (code, err) == (130, "\ninterrupted\n"), err
    assert all_gone(workers, 15)
    states = place.states()
    assert not {"RUNNING", "SCHEDULED"} & set(states), states
    killed = [run for run in place.runs() if run.info.status == "KILLED" and "cell" in run.data.tags]
    assert killed
    told = f"{len(killed)} cells are left; the same command goes on from there, and from their checkpoints"
    assert re.search(rf"^killed +{told}$", out, re.MULTILINE)
    for run in killed:
        kept = Path(local_file_uri_to_path(run.info.artifact_uri)) / "checkpoints" / "last.safetensors"
        steps = {m.step for m in place.client.get_metric_history(run.info.run_id, "test/loss")}
        assert kept.is_file() or not steps - {0, 1}, (run.info.run_name, steps)
        assert "error" not in run.data.tags
    before = {name: run.info.run_id for name, run in place.cells().items()}
    place.finish()
    assert {name: run.info.run_id for name, run in place.cells().items()} == before
    assert place.content() == whole
    assert max(place.attempts()) == 2


@pytest.mark.slow
def test_ctrl_c_stops_a_study_in_seconds_and_the_same_command_goes_on(
    place: Place, whole: Content, drivers: list[Driver]
) -> None:
    """To the whole process group, workers too, as a terminal does."""
    interrupted(place, whole, drivers, os.killpg, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_polite_kill_of_the_driver_alone_stops_its_workers(
    how: signal.Signals, place: Place, whole: Content, drivers: list[Driver]
) -> None:
    interrupted(place, whole, drivers, os.kill, how)


@pytest.mark.slow
def test_terminated_study_in_one_process_leaves_no_run_running(place: Place, whole: Content, drivers: list[Driver]) -> None:
    drivers.append(driver := Driver(place, "--workers", "0"))
    assert driver.until(driver.training)
    began = time.monotonic()
    driver.child.send_signal(signal.SIGTERM)
    code, out, err = driver.end()
    assert time.monotonic() - began < 20
    assert (code, err) == (130, "\ninterrupted\n"), err
    assert "the same command goes on from there" in out
    assert "KILLED" in place.states()
    assert not {"RUNNING", "SCHEDULED"} & set(place.states())
    place.finish()
    assert place.content() == whole


# killed by force


@dataclass
class Kills:
    """How many of what were killed, and how many of them in the middle of training."""

    workers: int = 0
    drivers: int = 0
    midway: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0), repr=False)


def stop_one_that_trains(driver: Driver, pids: Callable[[], list[int]]) -> int:
    """SIGSTOP one of some processes in the middle of a run; returns its number."""
    stopped: list[int] = []

    def found() -> bool:
        for pid in filter(driver.place.trains, pids()):
            with suppress(ProcessLookupError):
                stop(pid, driver.place.folder / "mlflow.db")
                if driver.place.trains(pid):  # its run did not end meanwhile
                    stopped.append(pid)
                    return True
                os.kill(pid, signal.SIGCONT)
        return False

    assert driver.until(found), "no process was seen to train"
    return stopped[0]


def kill(driver: Driver, target: str, kills: Kills) -> bool:
    """SIGKILL the driver, or one of its workers, rather one that trains; false when there is none any more."""
    workers = driver.workers
    training = [worker for worker in workers if driver.place.trains(worker.pid)]
    if target == "driver":
        if driver.child.poll() is not None:
            return False
        os.kill(driver.child.pid, signal.SIGKILL)
        driver.end()
        assert all_gone(workers, 15), "workers outlive their driver"
        kills.drivers += 1
        kills.midway += bool(training)
        return True
    if not workers:
        return False
    with suppress(psutil.NoSuchProcess):
        kills.rng.choice(training or workers).kill()
        kills.workers += 1
        kills.midway += bool(training)
        return True
    return False


def test_study_whose_worker_and_then_its_driver_are_killed_goes_on_to_the_same_store(
    place: Place, whole: Content, drivers: list[Driver]
) -> None:
    kills = Kills()
    drivers.append(driver := Driver(place, "--workers", "2"))
    assert driver.until(driver.training)
    assert kill(driver, "worker", kills)
    assert driver.until(lambda: len(driver.workers) == 2 and driver.trains())
    assert kill(driver, "driver", kills)
    assert (kills.workers, kills.drivers) == (1, 1)
    assert kills.midway
    place.finish()
    assert place.content() == whole
    assert max(place.attempts()) > 1


@pytest.mark.slow
def test_study_killed_at_any_moment_and_started_again_has_the_store_of_an_uninterrupted_one(
    tmp_path: Path, whole: Content, drivers: list[Driver]
) -> None:
    """In rounds: a worker or the driver, once or twice, mostly while cells train, at times before the store is made."""
    kills, again, retried = Kills(), 0, 0
    rng = kills.rng
    for number in range(ROUNDS):
        place = Place(tmp_path / str(number))
        for attempt in range(6):
            drivers.append(driver := Driver(place, "--workers", "2"))
            if attempt < rng.choice((1, 1, 2)):
                if rng.random() < 0.8:
                    driver.until(driver.trains)
                    time.sleep(rng.uniform(0, 2.5))
                else:
                    time.sleep(rng.uniform(0.5, 9))
                kill(driver, rng.choice(("worker", "driver")), kills)
            code, _, err = driver.end()
            if code == 0:
                break
            assert code == -signal.SIGKILL, (number, code, err)
            again += 1
        assert code == 0, number
        assert place.content() == whole, number
        retried += max(place.attempts()) > 1
        print(f"round {number}: {kills}, {again} started again, {retried} rounds with a second attempt", flush=True)
    assert min(kills.workers, kills.drivers) >= ROUNDS // 4
    assert kills.midway >= ROUNDS // 2
    assert retried >= ROUNDS // 3


# short of memory


HUNGRY = """
name = "small"
question = "Which?"
design = "one_factor_at_a_time"
seeds = [0]
[base]
dataset = "mnist_5k"
epochs = 1
max_batches = 1
[factors]
hidden_dim = [30003, 30002, 30001, 30000, 8]
"""  # but for the last, each takes some hundreds of megabytes


def starving(place: Place, starved: str, *arguments: str) -> Driver:
    """A driver whose workers, or the first of them, starve from birth."""
    (place.folder / "starved.py").write_text(starved, encoding="utf-8")  # workers import it by this name
    return Driver(place, *arguments, code="import starved; from harness import cli; cli.run()")


@pytest.mark.slow
def test_worker_without_memory_costs_the_study_no_other_run(tmp_path: Path, drivers: list[Driver]) -> None:
    """What fails in it fails with its reason, or goes on elsewhere; a fresh process takes its place and all other runs."""
    place = Place(tmp_path)
    (place.folder / "small.toml").write_text(HUNGRY, encoding="utf-8")
    drivers.append(driver := starving(place, ONE_STARVED, "--workers", "1"))
    code, out, _ = driver.end()
    cells = place.cells()
    failed = {name: run for name, run in cells.items() if run.info.status != "FINISHED"}
    assert len(cells) == 5
    assert len(failed) <= 1, out
    assert code == bool(failed)
    for name, run in failed.items():
        assert run.info.status == "FAILED"
        assert run.data.tags["error"]
        assert f"{name}: " in out
    assert failed or max(place.attempts()) > 1, "it had memory enough"
    before = {name: run.data.tags.get("state_digest") for name, run in cells.items() if name not in failed}
    drivers.append(driver := Driver(place, "--workers", "1"))
    code, out, err = driver.end()
    assert (code, err) == (0, ""), err
    after = {name: run.data.tags["state_digest"] for name, run in place.cells().items()}
    assert len(after) == 5
    assert after.items() >= before.items()
    assert f"5 of 5 cells, {len(failed)} now" in out


@pytest.mark.slow
def test_failure_in_a_worker_stops_all_where_that_is_asked_for_and_the_same_command_goes_on(
    tmp_path: Path, drivers: list[Driver]
) -> None:
    place = Place(tmp_path)
    (place.folder / "small.toml").write_text(HUNGRY, encoding="utf-8")
    drivers.append(driver := starving(place, STARVED, "--workers", "2", "--fail-fast"))
    code, out, err = driver.end()
    assert (code, err) == (1, ""), err
    before = place.cells()
    states = [run.info.status for run in before.values()]
    assert set(states) == {"FAILED", "KILLED"}, states
    assert out.count("  failed: ") == 1  # the other worker may fail one as well before it is stopped, which the store tells
    assert f"killed   {len(states) - 1} cells are left" in out
    drivers.append(driver := Driver(place, "--workers", "1"))
    code, _, err = driver.end()
    assert (code, err) == (0, ""), err
    after = place.cells()
    assert {name: run.info.run_id for name, run in after.items()} == {name: run.info.run_id for name, run in before.items()}
    assert {run.info.status for run in after.values()} == {"FINISHED"}


# stopped, and woken again


@pytest.mark.slow
def test_worker_that_is_stopped_is_replaced_and_never_writes_again(place: Place, whole: Content, drivers: list[Driver]) -> None:
    drivers.append(driver := Driver(place, "--workers", "2", code=SHORT_LEASE.format(5)))
    stopped = psutil.Process(stop_one_that_trains(driver, lambda: [worker.pid for worker in driver.workers]))
    code, out, err = driver.end()
    assert (code, err) == (0, ""), err
    assert f"done     {CELLS} of {CELLS} cells" in out
    assert not stopped.is_running()
    assert place.content() == whole
    assert max(place.attempts()) == 2


@pytest.mark.slow
def test_study_that_is_stopped_as_a_whole_and_woken_has_the_store_of_an_uninterrupted_one(
    place: Place, whole: Content, drivers: list[Driver]
) -> None:
    """Ctrl-Z and fg, for longer than a worker may be silent."""
    drivers.append(driver := Driver(place, "--workers", "2", code=SHORT_LEASE.format(5)))
    assert driver.until(driver.training)
    os.killpg(driver.child.pid, signal.SIGSTOP)
    time.sleep(12)
    os.killpg(driver.child.pid, signal.SIGCONT)
    code, out, err = driver.end()
    assert (code, err) == (0, ""), err
    assert f"done     {CELLS} of {CELLS} cells" in out
    assert place.content() == whole


@pytest.mark.slow
@pytest.mark.parametrize("wake", [signal.SIGCONT, signal.SIGKILL])
def test_second_driver_names_the_stopped_one_that_it_waits_for_and_neither_doubles_a_run(
    wake: signal.Signals, place: Place, whole: Content, drivers: list[Driver]
) -> None:
    """A process that is stopped holds what it held: the study. Woken it goes on; killed, the second takes over."""
    drivers.append(first := Driver(place, "--workers", "2", code=SHORT_LEASE.format(5)))
    assert first.until(first.training)
    os.kill(first.child.pid, signal.SIGSTOP)
    drivers.append(second := Driver(place, "--workers", "2", code=SHORT_LEASE.format(5)))
    assert second.child.stdout
    assert second.child.stdout.readline() == f"waiting  process {first.child.pid} works on small\n"
    time.sleep(8)
    assert second.child.poll() is None
    os.kill(first.child.pid, wake)
    code, out, err = second.end()
    assert (code, err) == (0, ""), err
    assert f"done     {CELLS} of {CELLS} cells" in out
    code, _, err = first.end()
    assert code == (0 if wake == signal.SIGCONT else -signal.SIGKILL), err
    assert place.content() == whole


# two at once


def two_at_once(place: Place, workers: str, whole: Content, drivers: list[Driver]) -> None:
    pair = [Driver(place, "--workers", workers), Driver(place, "--workers", workers)]
    drivers += pair
    for driver in pair:
        code, out, err = driver.end()
        assert (code, err) == (0, ""), err
        assert f"done     {CELLS} of {CELLS} cells" in out
    assert place.attempts() == [1] * CELLS
    assert place.content() == whole


@pytest.mark.slow
def test_two_drivers_at_once_train_each_cell_once(tmp_path: Path, whole: Content, drivers: list[Driver]) -> None:
    """In rounds, on a store that neither finds: both would create it."""
    for number in range(ROUNDS):
        two_at_once(Place(tmp_path / str(number)), "2" if number % 2 else "0", whole, drivers)


@pytest.mark.slow
def test_second_driver_takes_over_when_the_first_is_killed(place: Place, whole: Content, drivers: list[Driver]) -> None:
    drivers.append(first := Driver(place, "--workers", "2"))
    assert first.until(first.training)
    drivers.append(second := Driver(place, "--workers", "0"))
    time.sleep(1)
    os.kill(first.child.pid, signal.SIGKILL)
    code, out, err = second.end()
    assert (code, err) == (0, ""), err
    assert f"done     {CELLS} of {CELLS} cells" in out
    assert place.content() == whole


# a cluster that is there


# without site-packages' .pth files an editable install of harness is not found, and every other package is
BARE, PACKAGES = ("-S", "-P"), os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))


class Cluster:
    """`dask scheduler` and its workers, each a process of its own."""

    def __init__(self, folder: Path, options: tuple[str, ...] = (), **env: str) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        where = ("--host", "127.0.0.1", "--port", str(self.port))
        self.scheduler = self.start("dask_scheduler", *where, "--no-dashboard", options=options, **env)
        for _ in range(300):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.1)
        raise AssertionError("the scheduler does not listen")

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self, command: str, *arguments: str, options: tuple[str, ...] = (), **env: str) -> subprocess.Popen[bytes]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PYTHON"))}
        process = subprocess.Popen(
            [sys.executable, *options, "-m", f"distributed.cli.{command}", *arguments],
            cwd=self.folder,
            env={**clean, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def worker(self, options: tuple[str, ...] = (), **env: str) -> subprocess.Popen[bytes]:
        arguments = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self.folder))
        return self.start("dask_worker", self.address, *arguments, options=options, **env)

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path / "cluster", PYTHONPATH=str(ROOT))
    yield running
    running.close()


@pytest.mark.slow
def test_cluster_that_loses_a_worker_leaves_the_store_of_this_machine(
    place: Place, cluster: Cluster, whole: Content, drivers: list[Driver]
) -> None:
    workers = [cluster.worker(PYTHONPATH=str(ROOT)) for _ in range(2)]
    drivers.append(driver := Driver(place, "--scheduler", cluster.address))
    holder = stop_one_that_trains(driver, lambda: [worker.pid for worker in workers])
    os.killpg(holder, signal.SIGKILL)
    code, out, err = driver.end()
    assert (code, err) == (0, ""), err
    assert f"done     {CELLS} of {CELLS} cells" in out
    assert not driver.workers
    assert place.content() == whole
    assert max(place.attempts()) == 2
    assert [worker.poll() is None for worker in workers] == [worker.pid != holder for worker in workers]


@pytest.mark.slow
def test_interrupted_study_on_a_cluster_leaves_the_cluster_and_no_run_running(
    place: Place, cluster: Cluster, whole: Content, drivers: list[Driver]
) -> None:
    workers = [cluster.worker(PYTHONPATH=str(ROOT)) for _ in range(2)]
    drivers.append(driver := Driver(place, "--scheduler", cluster.address))
    assert driver.until(driver.training)
    began = time.monotonic()
    driver.child.send_signal(signal.SIGINT)
    code, out, err = driver.end()
    assert time.monotonic() - began < 25
    assert (code, err) == (130, "\ninterrupted\n"), err
    assert "the same command goes on from there" in out
    assert [worker.poll() for worker in workers] == [None, None]
    for _ in range(100):  # a worker looks up at the end of an epoch
        if not {"RUNNING", "SCHEDULED"} & set(place.states()):
            break
        time.sleep(0.1)
    assert not {"RUNNING", "SCHEDULED"} & set(place.states())
    drivers.append(driver := Driver(place, "--scheduler", cluster.address))
    code, _, err = driver.end()
    assert (code, err) == (0, ""), err
    assert place.content() == whole


@pytest.mark.slow
def test_driver_of_a_cluster_that_is_killed_is_followed_by_another(
    place: Place, cluster: Cluster, whole: Content, drivers: list[Driver]
) -> None:
    """The workers live on; what they still train, the next driver takes up when they have let go of it."""
    for _ in range(2):
        cluster.worker(PYTHONPATH=str(ROOT))
    drivers.append(driver := Driver(place, "--scheduler", cluster.address))
    assert driver.until(driver.training)
    os.kill(driver.child.pid, signal.SIGKILL)
    drivers.append(driver := Driver(place, "--scheduler", cluster.address))
    code, _, err = driver.end()
    assert (code, err) == (0, ""), err
    assert place.content() == whole


SOON = 60  # seconds: ten of them waiting, the rest to start on a machine that is busy


def refused(place: Place, driver: Driver, *words: str) -> float:
    """One line, exit code 2, nothing written; returns the seconds it took."""
    began = time.monotonic()
    code, out, err = driver.end(120)
    assert code == 2, (out, err)
    assert out == ""
    assert err.startswith("harness: error: scheduler tcp://127.0.0.1:")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert [path.name for path in place.folder.iterdir()] == ["small.toml"]
    return time.monotonic() - began


@pytest.mark.slow
def test_cluster_whose_scheduler_lacks_the_package_is_refused(tmp_path: Path, drivers: list[Driver]) -> None:
    """It takes tasks apart: found out before the store hears of a run, not by every run of it."""
    cluster = Cluster(tmp_path / "cluster", BARE, PYTHONPATH=PACKAGES)
    try:
        cluster.worker(PYTHONPATH=str(ROOT))
        place = Place(tmp_path / "study")
        drivers.append(driver := Driver(place, "--scheduler", cluster.address))
        refused(place, driver, "harness")
    finally:
        cluster.close()


@pytest.mark.slow
def test_cluster_whose_worker_lacks_the_package_is_refused(tmp_path: Path, cluster: Cluster, drivers: list[Driver]) -> None:
    place = Place(tmp_path / "study")
    cluster.worker(BARE, PYTHONPATH=PACKAGES)
    drivers.append(driver := Driver(place, "--scheduler", cluster.address))
    refused(place, driver, "harness")


@pytest.mark.slow
def test_cluster_whose_worker_has_other_code_is_refused(tmp_path: Path, cluster: Cluster, drivers: list[Driver]) -> None:
    shutil.copytree(ROOT / "harness", tmp_path / "other" / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "other" / "harness" / "training.py"
    source.write_text(source.read_text(encoding="utf-8").replace("EVALUATION_BATCH = 1000", "EVALUATION_BATCH = 999"))
    place = Place(tmp_path / "study")
    cluster.worker(PYTHONPATH=str(ROOT))
    cluster.worker(PYTHONPATH=str(tmp_path / "other"))
    with Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    drivers.append(driver := Driver(place, "--scheduler", cluster.address))
    refused(place, driver, "other code")


@pytest.mark.slow
def test_scheduler_without_workers_is_refused_in_ten_seconds(tmp_path: Path, cluster: Cluster, drivers: list[Driver]) -> None:
    place = Place(tmp_path / "study")
    drivers.append(driver := Driver(place, "--scheduler", cluster.address))
    assert refused(place, driver, "no worker within 10 s") < SOON


@pytest.mark.slow
@pytest.mark.parametrize("listens", [False, True], ids=["nobody there", "there but silent"])
def test_scheduler_that_does_not_answer_is_refused_in_ten_seconds(listens: bool, tmp_path: Path, drivers: list[Driver]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        place = Place(tmp_path / "study")
        drivers.append(driver := Driver(place, "--scheduler", address))
        if listens:
            silent.settimeout(90)
            asking = silent.accept()[0]  # its clock starts here
            with asking:
                assert refused(place, driver, address, "does not answer within 10 s") < 30
        else:
            refused(place, driver, address, "does not answer within 10 s")


def test_the_file_and_the_study_of_these_tests_are_one(tmp_path: Path) -> None:
    read = Study.read(Place(tmp_path).folder / "small.toml")
    assert json.loads(read.json_text()) == json.loads(STUDY.json_text())
