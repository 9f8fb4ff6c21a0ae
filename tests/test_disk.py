"""Disks that are full, read-only or limited: the run fails with its reason, its checkpoint stays whole, and it can go on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forks
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import harness
from harness import screen
from harness.checkpoint import Checkpoint
from harness.config import RunConfig
from harness.launch import RunResult, resume
from harness.results import EpochRecord
from harness.store import Store

ROOT = Path(__file__).resolve().parent.parent
CONFIG = RunConfig(
    dataset="mnist_5k", epochs=5, max_batches=8, hidden_dim=64, optimizer="adam", lr=0.001, norm="batchnorm", dropout=0.3
)


class Disk:
    """A tmpfs of some KiB, at a folder of a mount namespace of its own: who is not root may mount there, too.

    Files are seen through `path`, programs run by `harness`; a full disk answers as any other does, with ENOSPC.
    """

    def __init__(self, folder: Path, kib: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        mounted = f"mount -t tmpfs -o size={kib}k tmpfs '{folder}' && echo ready && exec sleep 600"
        self.folder = folder
        self.holder = subprocess.Popen(["unshare", "-rm", "sh", "-c", mounted], stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout
        if self.holder.stdout.readline() != "ready\n":
            self.holder.communicate()
            pytest.fail("this test needs unprivileged user namespaces; CONTRIBUTING.md says where they may be missing")

    @property
    def path(self) -> Path:
        """The folder as a process outside finds it."""
        return Path(f"/proc/{self.holder.pid}/root{self.folder}")

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        entered = ["nsenter", "-t", str(self.holder.pid), "-U", "-m", "--preserve-credentials"]
        return subprocess.run([*entered, "sh", "-c", command], capture_output=True, text=True, timeout=200)

    def harness(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line with that disk, here."""
        enter = f"""
import ctypes, os
from harness import cli
for kind in ("user", "mnt"):
    with open(f"/proc/{self.holder.pid}/ns/{{kind}}") as place:
        assert ctypes.CDLL(None).setns(place.fileno(), 0) == 0, kind
os.chdir({os.getcwd()!r})
cli.run()
"""
        return forks.run([sys.executable, "-c", enter, *arguments], env=environment(), timeout=200)

    def resize(self, kib: int) -> None:
        done = self.shell(f"mount -o remount,size={kib}k '{self.folder}'")
        assert (done.returncode, done.stderr) == (0, "")

    def gone(self) -> None:
        self.holder.kill()
        self.holder.communicate(timeout=30)


def environment() -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    return {**clean, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def whole(place: Path) -> RunResult:
    """The run to which nothing happened."""
    return harness.train(CONFIG, say=lambda line: None)


@pytest.fixture
def disk() -> Iterator[Callable[[Path, int], Disk]]:
    """Makes disks; none outlives the test."""
    made: list[Disk] = []

    def make(folder: Path, kib: int) -> Disk:
        made.append(Disk(folder, kib))
        return made[-1]

    yield make
    for one in made:
        one.gone()


def options(config: RunConfig = CONFIG) -> list[str]:
    return [part for name, text in config.changed().items() for part in (f"--{name.replace('_', '-')}", text)]


def artifacts(place: Path, run_id: str) -> Path:
    return place / "mlruns" / "harness" / run_id / "artifacts"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "model" not in path.parts}


def stopped(place: Path, epoch: int, config: RunConfig = CONFIG) -> str:
    """A run that an interrupt ended after an epoch; its id."""
    begun: list[str] = []

    def report(record: EpochRecord, epochs: int) -> None:
        if record.epoch == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harness.train(config, report=report, say=begun.append)
    return begun[0].split()[1]


def failed(done: subprocess.CompletedProcess[str], why: str) -> str:
    """The one line of a process that ended as a failed run does."""
    assert done.returncode == 1, done
    assert re.fullmatch(rf"harness: error: .*{why}.*\n", done.stderr), done.stderr
    return done.stderr


def assert_failed(run: Run, why: str) -> None:
    assert run.info.status == "FAILED"
    assert re.search(why, run.data.tags["error"])
    assert "state_digest" not in run.data.tags


def assert_same(run_id: str, client: MlflowClient, whole: RunResult) -> None:
    """A finished run with the bits of the one to which nothing happened, each step of each metric once."""
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    assert (run.data.tags["state_digest"], run.data.tags["history_digest"]) == (whole.state_digest, whole.history_digest)
    keys = {key for record in whole.history for key in record.metrics()}
    steps = {key: [record.epoch for record in whole.history if key in record.metrics()] for key in keys}
    steps |= {key: [whole.history[-1].epoch] for key in whole.final}
    assert {key: [row.step for row in client.get_metric_history(run_id, key)] for key in run.data.metrics} == steps


# a disk that is full


def kib_until(epoch: int, place: Path, whole: RunResult) -> int:
    """The size of a disk that has room for the checkpoints of an epoch, with what is kept of the epoch before, and no more."""
    folder = artifacts(place, whole.run_id) / "checkpoints"
    best, last = ((folder / f"{name}.safetensors").stat().st_size // 1024 for name in ("best", "last"))
    return best + min(epoch, 2) * last + 40


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_run_on_a_full_disk_fails_with_its_checkpoint_whole_and_goes_on_when_there_is_space(
    epoch: int,
    place: Path,
    whole: RunResult,
    disk: Callable[[Path, int], Disk],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The artifacts' disk; the database lies on another."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    small = disk(tmp_path / "mlruns" / "harness", kib_until(epoch, place, whole) if epoch else 60)
    done = small.harness("train", *options())
    line = failed(done, "No space left on device")
    mine = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = Store().runs("harness")
    assert_failed(run, "no space left on device")
    run_id = run.info.run_id
    assert f"failed   {run_id}; go on with: harness train --resume {run_id}\n" in done.stdout
    kept = small.path / run_id / "artifacts" / "checkpoints"
    assert str(small.folder) in line
    assert not list(kept.glob(".*"))
    if epoch:
        last = Checkpoint.load(kept / "last.safetensors")
        assert last.epoch >= epoch
    small.resize(64 * 1024)
    again = small.harness("train", "--resume", run_id)
    assert (again.returncode, again.stderr) == (0, "")
    assert (f"resume: after epoch {last.epoch} of 5\n" if epoch else "resume: from the beginning") in again.stdout
    assert_same(run_id, mine, whole)
    assert files(small.path / run_id / "artifacts") == files(artifacts(place, whole.run_id))


@pytest.mark.slow
@pytest.mark.parametrize("kib", [20, 300, 900, 1000, 1050, 1100, 1150, 1200, 1300, 1500])
def test_full_disk_under_the_store_itself_is_one_line_and_the_run_goes_on_when_there_is_space(
    kib: int, whole: RunResult, disk: Callable[[Path, int], Disk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it happens: while the store is made, a run begun, an epoch logged, a checkpoint written or the run ended."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/all/mlflow.db")
    small = disk(tmp_path / "all", kib)
    done = small.harness("train", *options())
    assert done.returncode in (1, 2)
    assert re.fullmatch(r"harness: error: .*(No space left on device|disk is full|disk I/O error).*\n", done.stderr), (
        done.stderr
    )
    small.resize(64 * 1024)
    found = re.search(r"go on with: harness train (--resume \w+)", done.stdout)
    again = small.harness("train", *(found[1].split() if found else options()))
    assert (again.returncode, again.stderr) == (0, "")
    assert f"digests  state {whole.state_digest[:16]}  history {whole.history_digest[:16]}\n" in again.stdout


def test_figure_that_finds_no_space_is_lost_and_not_the_run(
    place: Path, client: MlflowClient, whole: RunResult, disk: Callable[[Path, int], Disk]
) -> None:
    run_id = stopped(place, 5)
    small = disk(artifacts(place, run_id) / "plots", 16)
    done = small.harness("train", "--resume", run_id)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith("lost     ")]
    assert [line.split()[1] for line in lines] == ["plots/history.png:", "plots/activations.png:"]
    assert all("No space left on device" in line for line in lines)
    assert_same(run_id, client, whole)
    assert "**Lost**: plots/history.png: " in client.get_run(run_id).data.tags["mlflow.note.content"]
    assert not list(small.path.iterdir())  # nor is half a picture there


def test_figure_that_cannot_be_drawn_is_lost_and_not_the_run(
    client: MlflowClient, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object) -> None:
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr("harness.plots.activations", draw)
    result = harness.train(CONFIG, say=lambda line: None)
    assert list(result.lost) == ["plots/activations.png: RuntimeError: no fonts"]
    assert "lost     plots/activations.png: RuntimeError: no fonts" in screen.ending(result).splitlines()
    assert_same(result.run_id, client, whole)


# a disk that is read-only, or in the way


def test_run_on_a_disk_that_became_read_only_fails_and_goes_on_when_it_is_mended(
    place: Path, client: MlflowClient, whole: RunResult, disk: Callable[[Path, int], Disk]
) -> None:
    run_id = stopped(place, 2)
    folder = artifacts(place, run_id)
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    somewhere = disk(place / "somewhere", 64)
    assert somewhere.shell(f"mount --bind '{folder}' '{folder}' && mount -o remount,bind,ro '{folder}'").returncode == 0
    done = somewhere.harness("train", "--resume", run_id)
    assert str(folder) in failed(done, "Read-only file system")
    assert_failed(client.get_run(run_id), "read-only file system")
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before
    said: list[str] = []
    resume(run_id, say=said.append)
    assert "resume: after epoch 2 of 5" in said
    assert_same(run_id, client, whole)
    assert files(folder) == files(artifacts(place, whole.run_id))


def test_file_in_the_place_of_the_plots_costs_the_plots(place: Path, client: MlflowClient, whole: RunResult) -> None:
    run_id = stopped(place, 4)
    (artifacts(place, run_id) / "plots").write_text("in the way", encoding="utf-8")
    result = resume(run_id, say=lambda line: None)
    assert [line.partition(":")[0] for line in result.lost] == ["plots/history.png", "plots/activations.png"]
    assert_same(run_id, client, whole)


# a limit on the size of files


def limited(bytes_: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line where no file may grow beyond so many bytes; Python ignores SIGXFSZ, and so write says EFBIG."""
    limit = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_}, {bytes_})); from harness import cli; cli.run()"
    )
    return forks.run([sys.executable, "-c", limit, *arguments], env=environment(), timeout=200)


@pytest.mark.slow
def test_checkpoint_above_the_limit_on_file_sizes_fails_the_run_with_the_one_before_whole(
    place: Path, client: MlflowClient, whole: RunResult
) -> None:
    config = CONFIG.replace(hidden_dim=500, epochs=3)
    reference, run_id = harness.train(config, say=lambda line: None), stopped(place, 2, config)
    last = artifacts(place, run_id) / "checkpoints" / "last.safetensors"
    before, database = last.read_bytes(), (place / "mlflow.db").stat().st_size
    assert 2 * database < len(before)
    done = limited(2 * database, "train", "--resume", run_id)
    assert "last.safetensors" in failed(done, "File too large")
    assert_failed(client.get_run(run_id), "file too large")
    assert last.read_bytes() == before
    resume(run_id, say=lambda line: None)
    assert_same(run_id, client, reference)
    assert files(last.parent.parent) == files(artifacts(place, reference.run_id))


@pytest.mark.slow
def test_store_above_the_limit_on_file_sizes_is_one_line_and_nothing_is_lost(
    place: Path, client: MlflowClient, whole: RunResult
) -> None:
    """A limit far below the database: whatever it was to be told, it was not."""
    run_id = stopped(place, 3)
    before = client.get_run(run_id).data.tags
    done = limited(64 * 1024, "train", "--resume", run_id)
    assert done.returncode == 1
    assert re.fullmatch(r"harness: error: store sqlite:.* cannot be written: .*\n", done.stderr), done.stderr
    assert client.get_run(run_id).data.tags == before
    fresh = limited(64 * 1024, "train", *options())
    assert (fresh.returncode, fresh.stderr.count("\n")) == (2, 1)
    resume(run_id, say=lambda line: None)
    assert_same(run_id, client, whole)
