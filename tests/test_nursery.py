"""The process that workers are forks of: it moves nothing in its caller, and nothing is left of it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import nursery, record, sources

STUDY = """
name = "tiny"
question = "?"
design = "list"
seeds = [0]
metric = "final/test_loss"
matters = 0.1
[base]
dataset = "mnist_5k"
epochs = 1
max_batches = 1
[[variants]]
name = "a"
"""


@pytest.fixture
def born() -> Iterator[psutil.Process]:
    """That process, by the number that Python keeps: until it has begun, its command line is that of its parent."""
    nursery.begin()
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    yield psutil.Process(server._forkserver_pid)
    nursery.end()


def test_it_leaves_environment_and_signals_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    nursery.begin()
    nursery.end()
    assert dict(os.environ) == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_temporary_folder_whose_path_is_too_long_for_its_socket_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (long := tmp_path / ("x" * 100)).mkdir()
    (work := tmp_path / "work").mkdir()
    (work / "tiny.toml").write_text(STUDY, encoding="utf-8")
    command = [sys.executable, "-m", "harness", "study", "tiny.toml"]
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(command, cwd=work, env={**env, "TMPDIR": str(long)}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("harness: error: TMPDIR=")
    assert "allowed: a shorter path" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in work.iterdir()] == ["tiny.toml"]


def test_it_is_started_once_and_ended_for_good(born: psutil.Process) -> None:
    nursery.begin()
    assert born.is_running()
    nursery.end()
    assert not born.is_running()
    nursery.end()


def test_an_interrupt_does_not_reach_it(born: psutil.Process) -> None:
    born.send_signal(signal.SIGINT)
    with pytest.raises(psutil.TimeoutExpired):
        born.wait(0.5)


def look_about() -> None:
    """What a worker is: all is imported and found that its first run and a study's end would wait for."""
    needed = {
        "mlflow.store.tracking.sqlalchemy_store",
        "statsmodels.regression.linear_model",
        "harness.plots",
        "harness.forest",
    }
    assert needed <= set(sys.modules)
    assert {f"harness.{name}" for name in ("engine", "curves", "vitals", "distributions", "interactions")} <= set(sys.modules)
    assert [found.cache_info().currsize for found in (record.code, record.software)] == [1, 1]
    assert sources._definitions.cache_info().currsize
    assert gc.isenabled()
    assert gc.get_freeze_count() > 10**5, "what was imported is not looked through again"


@pytest.mark.slow
def test_a_worker_is_born_with_what_it_needs(born: psutil.Process) -> None:
    child: BaseProcess = multiprocessing.get_context(nursery.METHOD).Process(target=look_about)
    child.start()
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.slow
def test_what_is_wrong_with_a_record_leaves_the_birth_of_workers_whole() -> None:
    code = """
import gc, sys
from harness import record
record.software = lambda: 1 / 0
import harness.born
print(gc.isenabled(), "statsmodels.regression.linear_model" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")


@pytest.mark.slow
def test_a_driver_whose_workers_draw_does_not_wait_for_what_they_draw_with(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    code = """
import atexit, sys
from harness.cli import run
atexit.register(lambda: print("it has", {"matplotlib", "statsmodels"} & set(sys.modules)))
sys.argv[1:] = ["study", "study.toml"]
run()
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    environment["PYTHONPATH"] = str(Path(nursery.__file__).resolve().parent.parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("it has set()\n")
    assert len(list(tmp_path.glob("mlruns/*/*/artifacts/plots/verdicts.svg"))) == 1


@pytest.mark.slow
def test_it_imports_what_its_driver_imports_whatever_lies_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    for name in ("harness", "torch", "queue"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')\n", encoding="utf-8")
    command = "import sys; sys.path.pop(0); from harness.cli import run; sys.argv[1:] = ['study', 'study.toml']; run()"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    environment["PYTHONPATH"] = str(Path(nursery.__file__).resolve().parent.parent)
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 1 cells, 1 now" in done.stdout
