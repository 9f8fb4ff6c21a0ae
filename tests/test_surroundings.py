"""A run is a function of its config and its data: whatever surrounds the process, it comes to the same bits."""

from __future__ import annotations

import os
import pty
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import harness
from harness.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
CONFIG = RunConfig(
    dataset="mnist_5k", epochs=2, max_batches=4, hidden_dim=16, optimizer="adam", lr=0.001, norm="batchnorm", dropout=0.2
)
OPTIONS = [part for name, text in CONFIG.changed().items() for part in (f"--{name.replace('_', '-')}", text)]
TRAIN = ("-m", "harness", "train", *OPTIONS)
AFTER_ANOTHER = f"""
import harness
harness.train(harness.RunConfig(dataset="mnist_5k", epochs=1, max_batches=2, norm="layernorm", seed=7), say=lambda line: None)
harness.train(harness.RunConfig(**{CONFIG.changed()!r}), say=lambda line: None)
"""
# a clock that someone sets: every look at it is a day before or after the last one
JUMPING = """
import itertools, time
real, days = time.time, itertools.cycle([86400, -86400, 0])
time.time = lambda: real() + next(days)
"""
MLFLOW = {
    "MLFLOW_EXPERIMENT_NAME": "theirs",
    "MLFLOW_EXPERIMENT_ID": "4711",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
    "MLFLOW_TRACKING_USERNAME": "them",
    "MLFLOW_TRACKING_PASSWORD": "theirs",
    "MLFLOW_REGISTRY_URI": "sqlite:////nowhere/registry.db",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "1",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
}


@dataclass(frozen=True)
class Axis:
    """One thing that is otherwise: variables (None: not there), Python's own options, or what is done to the process."""

    env: Mapping[str, str | None] = field(default_factory=dict)
    python: Sequence[str] = ()
    shell: str = ":"  # before the process becomes Python
    site: str = ""  # what Python does before anything else
    terminal: bool = False
    program: Sequence[str] = ()
    cwd: str = ""


def affinity(cpu: int) -> str:
    return f"import os; os.sched_setaffinity(0, {{sorted(os.sched_getaffinity(0))[{cpu}]}})\n"


# each is one process with all of its axes at once; one an axis would name what is wrong, but import for seconds 29 times
SURROUNDINGS: dict[str, dict[str, Axis]] = {
    "a bare machine": {
        "no locale": Axis({"LC_ALL": "C", "LANG": None, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
        "no home": Axis({"HOME": None, "XDG_CACHE_HOME": None}),
        "no GPU to be seen": Axis({"CUDA_VISIBLE_DEVICES": ""}),
        "few files": Axis(shell="ulimit -n 64"),
        "umask": Axis(shell="umask 077"),
        "hash seed": Axis({"PYTHONHASHSEED": "0"}),
        "isolated from the folder": Axis(python=["-P", "-B", "-s"]),
        "first core": Axis(site=affinity(0)),
        "closed input": Axis(shell="exec <&-"),
    },
    "somebody else's": {
        "another's mlflow": Axis(MLFLOW),
        "Turkish": Axis({"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "LANGUAGE": "tr"}),
        "home elsewhere": Axis({"HOME": "/nowhere/at/all"}),
        "working directory": Axis(cwd="ein Ordner & mehr"),
        "time zone": Axis({"TZ": "<+14>-14"}),
        "clock": Axis(site=JUMPING),
        "threads": Axis({"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "3", "OMP_DYNAMIC": "true"}),
        "hash seed": Axis({"PYTHONHASHSEED": "4242"}),
        "without asserts": Axis(python=["-O"], env={"PYTHONDONTWRITEBYTECODE": "1"}),
        "closed input and output": Axis(shell="exec <&- >&-"),
    },
    "a terminal": {
        "terminal": Axis(terminal=True, env={"TERM": "xterm-256color", "COLUMNS": "20"}),
        "no path": Axis({"PATH": "/nowhere"}),
        "one thread": Axis({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
        "without docstrings": Axis({"PYTHONOPTIMIZE": "2"}),
        "small stack": Axis(shell="ulimit -s 1024"),
        "nice": Axis(shell="renice -n 19 $$ >/dev/null 2>&1 || true"),
        "last core": Axis(site=affinity(-1)),
    },
    "after another run": {
        "order": Axis(program=("-c", AFTER_ANOTHER)),
        "memory that is not zero": Axis({"MALLOC_PERTURB_": "165", "PYTHONMALLOC": "malloc"}),
        "all closed": Axis(shell="exec <&- >&- 2>&-"),
    },
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What the run comes to here."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        result = harness.train(CONFIG, say=lambda line: None)
    return result.state_digest, result.history_digest


def trained(axes: Sequence[Axis], folder: Path) -> list[tuple[str, str, str]]:
    """What the runs of a fresh process came to: status, state_digest, history_digest, the last one first."""
    beside, cwd = folder / "path", folder / "".join(["cwd", *(axis.cwd for axis in axes)])
    for place in (beside, cwd):
        place.mkdir(parents=True)
    (beside / "sitecustomize.py").write_text("".join(axis.site for axis in axes), encoding="utf-8")
    env: dict[str, str | None] = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    env |= {"PYTHONPATH": f"{beside}{os.pathsep}{ROOT}", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    for axis in axes:
        env |= axis.env
    there = {key: value for key, value in env.items() if value is not None}
    options = [option for axis in axes for option in axis.python]
    program = next((axis.program for axis in axes if axis.program), TRAIN)
    shell = "; ".join([*(axis.shell for axis in axes), 'exec "$@"'])
    start = on_a_terminal if any(axis.terminal for axis in axes) else on_pipes
    code, said = start(["/bin/sh", "-c", shell, "sh", sys.executable, *options, *program], there, cwd)
    assert code == 0, said
    query = """
        select status, s.value, h.value from runs r join tags s using (run_uuid) join tags h using (run_uuid)
        where s.key = 'state_digest' and h.key = 'history_digest' order by r.rowid desc
    """
    with closing(sqlite3.connect(folder / "mlflow.db")) as file:
        return list(file.execute(query))


def on_pipes(command: Sequence[str], env: dict[str, str], cwd: Path) -> tuple[int, str]:
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


def on_a_terminal(command: Sequence[str], env: dict[str, str], cwd: Path) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    said = bytearray()

    def read() -> None:
        try:
            while some := os.read(ours, 4096):
                said.extend(some)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with subprocess.Popen(command, env=env, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        code = child.wait(timeout=200)
    reader.join(timeout=10)
    os.close(ours)
    return code, said.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_bits_are_the_same_whatever_surrounds_the_process(name: str, reference: tuple[str, str], tmp_path: Path) -> None:
    assert trained(list(SURROUNDINGS[name].values()), tmp_path)[0] == ("FINISHED", *reference)


STUDY = f"""
name = "surrounded"
question = "Same?"
design = "one_factor_at_a_time"
seeds = [0, 1]
[base]
dataset = "mnist_5k"
epochs = {CONFIG.epochs}
max_batches = {CONFIG.max_batches}
hidden_dim = {CONFIG.hidden_dim}
optimizer = "adam"
lr = {CONFIG.lr}
dropout = {CONFIG.dropout}
[factors]
norm = ["batchnorm", "layernorm", "none"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_bits_are_the_same_under_any_number_of_workers(workers: int, reference: tuple[str, str], tmp_path: Path) -> None:
    """The cell of this config, beside five others, in stacks that are cut otherwise each time."""
    (tmp_path / "surrounded.toml").write_text(STUDY, encoding="utf-8")
    program = ("-m", "harness", "study", str(tmp_path / "surrounded.toml"), "--workers", str(workers))
    surrounding = Axis(program=program, env={"PYTHONHASHSEED": str(workers)}, shell="ulimit -n 256")
    found = trained([surrounding], tmp_path / "study")
    assert len(found) == 6
    assert ("FINISHED", *reference) in found
