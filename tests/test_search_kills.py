"""A search whose processes are killed, or on a cluster: the trials and the store of one to which nothing happened."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import forks
import psutil
import pytest
from processes import runs_held
from test_kills import ROOT, Cluster, Driver, Place, all_gone, stop_one_that_trains

TOML = """
name = "small"
question = "Which?"
seeds = [0, 1]
[base]
dataset = "mnist_5k"
epochs = 12
max_batches = 20
hidden_dim = 8
validation = 0.2
[search]
trials = 10
batch = 4
pruner = "median"
final_seeds = [7]
[space.lr]
low = 1e-3
high = 10.0
log = true
[space.optimizer]
choices = ["sgd", "adam"]
"""
RUNS = 10 * 2 + 2  # of the trials, and of the comparison
Content = tuple[str, dict[str, str]]  # the table of trials, and the digest of each run's weights


class Searched(Place):
    """A folder with a store and the search's file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        (self.folder / "small.toml").write_text(TOML, encoding="utf-8")

    def content(self) -> Content:  # type: ignore[override]
        """What the search came to. Each run of the store has ended well and is there once; none has a row twice."""
        command = [sys.executable, "-m", "harness", "results", "small", "--format", "csv"]
        table = forks.run(command, cwd=self.folder, env=self.environment, timeout=100, check=True)
        runs = self.client.search_runs([e.experiment_id for e in self.client.search_experiments() if "small" in e.name])
        assert {run.info.status for run in runs} == {"FINISHED"}
        cells = {f"{r.data.tags['study']} {r.data.tags['cell']}": r for r in runs if "cell" in r.data.tags}
        assert len(cells) == RUNS
        assert len(runs) == RUNS + 2, "two reports"
        for run in cells.values():
            found = self.client.get_metric_history(run.info.run_id, "val/loss")
            assert [m.step for m in found] == sorted({m.step for m in found})
        return table.stdout, {name: run.data.tags["state_digest"] for name, run in cells.items()}

    def most_attempts(self) -> int:
        return max(int(value) for value in self.ask("select value from tags where key = 'attempt'"))


@pytest.fixture
def drivers() -> Iterator[list[Driver]]:
    """Those that a test starts; none outlives it."""
    started: list[Driver] = []
    yield started
    for driver in started:
        driver.gone()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """What the search comes to when nobody interrupts it, in one process."""
    place = Searched(tmp_path_factory.mktemp("whole"))
    code, _, err = Driver(place, "--workers", "0", command="search").end()
    assert (code, err) == (0, ""), err
    assert place.most_attempts() == 1
    return place.content()


@pytest.mark.slow
def test_search_killed_three_times_at_random_ends_with_the_same_trials(
    tmp_path: Path, whole: Content, drivers: list[Driver]
) -> None:
    place, rng, midway = Searched(tmp_path / "search"), random.Random(7), 0
    for _ in range(3):
        drivers.append(driver := Driver(place, "--workers", "2", command="search"))
        assert driver.until(driver.trains)
        time.sleep(rng.uniform(0, 0.7))
        assert driver.child.poll() is None, "it was over before it was killed"
        workers = driver.workers
        midway += driver.trains()
        os.kill(driver.child.pid, signal.SIGKILL)
        driver.end()
        assert all_gone(workers, 15), "workers outlive their driver"
    assert midway
    drivers.append(driver := Driver(place, "--workers", "2", command="search"))
    code, _, err = driver.end()
    assert (code, err) == (0, ""), err
    assert place.content() == whole
    assert place.most_attempts() > 1


@pytest.mark.slow
def test_trial_whose_workers_are_killed_again_and_again_fails_and_is_tried_again(
    tmp_path: Path, whole: Content, drivers: list[Driver]
) -> None:
    place = Searched(tmp_path / "search")
    # of one trial: each death costs a birth, and there are twelve of them
    drivers.append(driver := Driver(place, "--workers", "1", "--trials", "1", command="search"))
    while driver.child.poll() is None:
        for worker in driver.workers:
            if runs_held(worker.pid):
                try:
                    worker.kill()
                except psutil.NoSuchProcess:
                    continue
        time.sleep(0.01)
    code, out, _ = driver.end()
    assert code == 1
    assert "four worker processes died training it: out of memory, or killed; the same command tries again" in out
    assert "compare  " not in out
    drivers.append(driver := Driver(place, "--workers", "2", command="search"))
    code, _, err = driver.end()
    assert (code, err) == (0, ""), err
    assert place.content() == whole


@pytest.mark.slow
def test_search_on_a_cluster_that_loses_a_worker_has_the_trials_of_this_machine(
    tmp_path: Path, whole: Content, drivers: list[Driver]
) -> None:
    place, cluster = Searched(tmp_path / "search"), Cluster(tmp_path / "cluster", PYTHONPATH=str(ROOT))
    try:
        workers = [cluster.worker(PYTHONPATH=str(ROOT)) for _ in range(2)]
        drivers.append(driver := Driver(place, "--scheduler", cluster.address, command="search"))
        holder = stop_one_that_trains(driver, lambda: [worker.pid for worker in workers])
        os.killpg(holder, signal.SIGKILL)
        code, _, err = driver.end()
        assert (code, err) == (0, ""), err
        assert not driver.workers, "the cluster trains, not this machine"
        assert place.content() == whole
        assert [worker.poll() is None for worker in workers] == [worker.pid != holder for worker in workers]
    finally:
        cluster.close()
