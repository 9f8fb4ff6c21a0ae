"""`harness doctor`: a line for everything that a run needs, and an end for runs whose process is gone and for no others."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import forks
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from processes import column, stop
from servers import served

from harness.data import DATASETS, files
from harness.doctor import BITS, THREADS, Finding, examine
from harness.store import Store
from harness.tracking import RunLog

ROOT = Path(__file__).resolve().parent.parent
MLFLOW = Path(sys.executable).parent / "mlflow"
SMALL = ("--dataset", "mnist_5k", "--max-batches", "5", "--hidden-dim", "8", "--no-health")
LONG = ("--epochs", "100000", "--max-batches", "0", "--batch-size", "2")  # and epochs that leave the store alone in between
TOML = """
name = "small"
question = "Which?"
design = "one_factor_at_a_time"
seeds = [0, 1]
base = {dataset = "mnist_5k", epochs = 40, max_batches = 10, hidden_dim = 8}
factors = {act = ["tanh", "relu"]}
"""


def environment(**env: str) -> dict[str, str]:
    """This process's, without what a doctor would tell of."""
    told = (*BITS, *THREADS)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DASK_")) and key not in told}
    return {**clean, "PYTHONPATH": str(ROOT), **env}


def doctor(folder: Path, *arguments: str, **env: str) -> tuple[int, list[Finding]]:
    """Exit code and findings of the command; it prints nothing else."""
    command = [sys.executable, "-m", "harness", "doctor", *arguments]
    if {"PYTHONPATH", "OMP_NUM_THREADS"} & set(env):  # read by imports
        done = subprocess.run(command, cwd=folder, env=environment(**env), capture_output=True, text=True, timeout=150)
    else:
        done = forks.run(command, cwd=folder, env=environment(**env), timeout=150)
    assert done.stderr == "", done.stderr
    found = [re.fullmatch(r"(ok|warn|bad) +(\w+) +(.+)", line) for line in done.stdout.splitlines()]
    assert all(found), done.stdout
    return done.returncode, [Finding(match[2], match[1], match[3]) for match in found if match]  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store, which this process means too."""
    folder = tmp_path / "place"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return folder


@pytest.fixture
def client(place: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{place}/mlflow.db")


def about(what: str, data_dir: Path | str = "unused", reap: bool = False, older_than: int = 1440) -> list[Finding]:
    """What the doctor finds about one thing, in this process."""
    return [finding for finding in examine(str(data_dir), reap, older_than) if finding.about == what]


def the(findings: list[Finding], what: str) -> Finding:
    (found,) = (finding for finding in findings if finding.about == what)
    return found


# the whole of it


def test_a_sound_machine_is_told_so_and_nothing_is_written(tmp_path: Path) -> None:
    code, findings = doctor(tmp_path, "--data-dir", str(tmp_path / "data"))
    assert code == 0
    assert {finding.about for finding in findings if finding.state == "ok"} >= {
        "packages",
        "torch",
        "torchvision",
        "machine",
        "environment",
        "disk",
        "data",
        "store",
    }
    assert "bad" not in {finding.state for finding in findings}
    assert "does not exist yet" in the(findings, "store").text
    assert re.search(r"torch 2\.\S+, \S+, one thread a run; .* digest [0-9a-f]{8}$", the(findings, "torch").text)
    assert any(finding.text.startswith("mnist_5k is whole by SHA-256") for finding in findings)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_installation_is_described_without_a_traceback(tmp_path: Path) -> None:
    """A copy outside git, whose pins are not what is installed, and a torch that does not load."""
    copy, shadow = tmp_path / "copy", tmp_path / "shadow"
    shutil.copytree(ROOT / "harness", copy / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    pins = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = pins.replace('"torch==2.13.0"', '"torch==2.0.0",\n    "no-such-package-of-anyone>=1"')
    (copy / "pyproject.toml").write_text(pins, encoding="utf-8")
    (shadow / "torch").mkdir(parents=True)
    (shadow / "torch" / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: cannot open\\nmore')", encoding="utf-8")
    code, findings = doctor(tmp_path, PYTHONPATH=f"{shadow}{os.pathsep}{copy}")
    assert code == 1
    texts = {finding.text: finding.state for finding in findings if finding.about == "packages"}
    assert texts == {
        "no-such-package-of-anyone is not installed: pip install 'no-such-package-of-anyone>=1'": "bad",
        next(text for text in texts if text.startswith("torch is 2.13.0")): "warn",
    }
    for what in ("torch", "torchvision", "data"):
        assert (the(findings, what).state, "libtorch_cpu.so: cannot open more" in the(findings, what).text) == ("bad", True)
    assert the(findings, "store").state == "ok"


@pytest.mark.slow
def test_a_torchvision_that_does_not_load_is_no_reason_not_to_train(tmp_path: Path) -> None:
    (tmp_path / "shadow" / "torchvision").mkdir(parents=True)
    (tmp_path / "shadow" / "torchvision" / "__init__.py").write_text("raise RuntimeError('undefined symbol')", encoding="utf-8")
    code, findings = doctor(tmp_path, PYTHONPATH=f"{tmp_path / 'shadow'}{os.pathsep}{ROOT}")
    assert code == 0
    assert the(findings, "torchvision").state == "warn"
    assert "undefined symbol" in the(findings, "torchvision").text


def test_a_machine_that_computes_other_bits_each_time_is_bad(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, right: torch.rand(256, 256))
    (found,) = about("torch")
    assert found.state == "bad"
    assert "test its memory" in found.text


@pytest.mark.slow
def test_code_outside_git_and_code_with_changes_are_told(tmp_path: Path, place: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "harness", copy / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    env = environment(PYTHONPATH=str(copy))
    look = [sys.executable, "-c", "from harness.doctor import _git\nprint(*_git())"]

    def told() -> str:
        return subprocess.run(look, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=True).stdout

    assert re.match(r"warn +git +this code lies in no git checkout", told())
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a@b -c commit.gpgsign=false commit -qm all"):
        subprocess.run(["git", *words.split()], cwd=copy, check=True, timeout=60)
    assert re.match(r"ok +git +commit [0-9a-f]{8}, nothing changed", told())
    (copy / "harness" / "errors.py").write_text("", encoding="utf-8")
    (copy / "harness" / "errors.py").write_text((ROOT / "harness" / "errors.py").read_text() + "\n# more\n", encoding="utf-8")
    assert re.match(r"ok +git +commit [0-9a-f]{8} with changes", told())


@pytest.mark.parametrize("minutes", ["-1", "1.5", "soon", ""])
def test_bad_age_is_one_line(minutes: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "doctor", "--reap", "--older-than", minutes],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"older_than={minutes!r} is not allowed; allowed: a whole number of minutes" in done.stderr


# environment


def test_variables_that_would_move_a_result_are_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*BITS, *THREADS):
        monkeypatch.delenv(name, raising=False)
    assert [finding.state for finding in about("environment")] == ["ok"]
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "other.py")
    found = {finding.text.partition("=")[0].partition(":")[0]: finding.state for finding in about("environment")}
    assert found == dict.fromkeys(("MLFLOW_RUN_ID", "ATEN_CPU_CAPABILITY", "DASK_DISTRIBUTED__WORKER__PRELOAD"), "warn")


@pytest.mark.slow
def test_threads_of_the_environment_do_not_move_a_result(tmp_path: Path) -> None:
    """As the doctor says of them."""
    digests = set()
    for threads in ("1", "4"):
        (folder := tmp_path / threads).mkdir()
        env = environment(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
        command = [sys.executable, "-m", "harness", "train", "--dataset", "mnist_5k", "--epochs", "1"]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=150, check=True)
        digests.add(re.search(r"^digests +(.*)$", done.stdout, re.M)[1])  # type: ignore[index]
    assert len(digests) == 1
    _, findings = doctor(tmp_path, OMP_NUM_THREADS="4")
    assert "OMP_NUM_THREADS=4, but a run computes with one thread" in the(findings, "environment").text


# disk and data


def test_full_disk_is_bad(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that says that it has no free byte: who is not root has none such to write to."""
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda at: usage(at)._replace(free=0) if at == tmp_path else usage(at))
    states = {finding.text: finding.state for finding in about("disk", tmp_path / "no" / "such")}
    assert sorted(states.values()) == ["bad", "ok"]
    assert states[f"0.00 GB free for the data at {tmp_path}/no/such; make room, or name another disk"] == "bad"


def test_damaged_and_incomplete_data_are_told_and_left_alone(place: Path, data_dir: Path) -> None:
    raw = data_dir / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in DATASETS["mnist"].files:
        (raw / name).write_bytes(b"\0" * 100)
    (one := files("kmnist", str(data_dir))[0]).parent.mkdir(parents=True)
    one.write_bytes(b"")
    found = {re.sub(r"dataset=|:| .*", "", finding.text): finding for finding in about("data", data_dir)}
    assert {name: finding.state for name, finding in found.items()} == {
        "mnist": "bad",
        "fashion_mnist": "ok",
        "kmnist": "warn",
        "mnist_5k": "ok",
    }
    damaged = next(iter(DATASETS["mnist"].files))
    assert f"{raw / damaged} has SHA-256" in found["mnist"].text
    assert DATASETS["mnist"].files[damaged] in found["mnist"].text
    assert "delete it" in found["mnist"].text
    assert found["kmnist"].text.count("ubyte") == 7
    assert sorted(path.stat().st_size for path in data_dir.rglob("*ubyte*")) == [0, 100, 100, 100, 100]


# store


def test_a_store_is_looked_at_without_a_change(place: Path, client: MlflowClient) -> None:
    before = (place / "mlflow.db").read_bytes()
    assert [finding.state for finding in about("store") + about("runs")] == ["ok", "ok"]
    assert (place / "mlflow.db").read_bytes() == before


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_bytes(b"epoch,loss\n1,0.5\n" * 400)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20_000])


def scribbled(path: Path) -> None:
    """Noise over pages in the middle, as a dying disk leaves it."""
    content = bytearray(path.read_bytes())
    for page in range(20, 60):
        content[page * 4096 : page * 4096 + 100] = os.urandom(100)
    path.write_bytes(content)


def aged(path: Path) -> None:
    """A store of an earlier MLflow: another schema, and tables that it did not know. MLflow would migrate it unasked."""
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE alembic_version SET version_num = '2b4d017a5e9b'")
        file.execute("DROP TABLE logged_model_tags")


BROKEN: dict[Callable[[Path], None], str] = {
    emptied: "has schema none",
    overwritten: "file is not a database",
    torn: "malformed|damaged",
    scribbled: "malformed|damaged",
    aged: "has schema 2b4d017a5e9b, mlflow .* wants .*; copy it, then: mlflow db upgrade sqlite:",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_store_is_bad_and_left_as_it_is(how: Callable[[Path], None], place: Path) -> None:
    how(place / "mlflow.db")
    before = (place / "mlflow.db").read_bytes()
    (found,) = about("store")
    assert found.state == "bad"
    assert re.search(BROKEN[how], found.text), found.text
    assert (place / "mlflow.db").read_bytes() == before


@pytest.mark.slow
def test_a_store_that_another_process_keeps_locked_is_bad_in_seconds(place: Path) -> None:
    with closing(sqlite3.connect(place / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        (found,) = about("store")
    assert time.monotonic() - began < 30
    assert (found.state, "end what writes it" in found.text) == ("bad", True)


def test_a_server_that_is_gone_is_bad_within_thirty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    (found,) = about("store", reap=True)
    assert time.monotonic() - began < 30
    assert found.state == "bad"
    assert re.search(r"http://127.0.0.1:\d+ cannot be opened.*start it, or set MLFLOW_TRACKING_URI", found.text)


@pytest.mark.slow
def test_a_server_that_accepts_and_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        began = time.monotonic()
        code, findings = doctor(tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - began < 90
    assert (code, the(findings, "store").state) == (1, "bad")


# runs


def until(reached: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def status(folder: Path, query: str = "select status from runs") -> list[str]:
    """A column, sorted."""
    return sorted(column(folder / "mlflow.db", query))


def epochs(folder: Path) -> int:
    """How many epochs the store has of all runs."""
    return len(status(folder, "select cast(step as text) from metrics where key = 'test/loss'"))


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Those that a test starts, each in a group of its own; none outlives it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def start(folder: Path, *command: str, **env: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    kind = forks.Fork if command[0] == sys.executable else subprocess.Popen
    return kind([*command], cwd=folder, env=environment(**env), text=True, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


def train(folder: Path, *options: str, **env: str) -> subprocess.Popen[str]:
    return start(folder, sys.executable, "-m", "harness", "train", *SMALL, *options, **env)


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)


def all_runs(client: MlflowClient) -> dict[str, Run]:
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.info.run_id: run for run in found}


def test_a_killed_run_is_ended_and_a_living_one_is_not(
    place: Path, client: MlflowClient, processes: list[subprocess.Popen[str]]
) -> None:
    processes += [train(place, *LONG), train(place, *LONG, "--seed", "1")]
    until(lambda: len(status(place, "select distinct run_uuid from metrics where key = 'test/loss' and step > 0")) == 2)
    by_seed = {run.data.params["seed"]: run_id for run_id, run in all_runs(client).items()}
    kill(processes[0])

    told, alive = about("runs")
    assert (told.state, alive.text[0]) == ("warn", "1")
    assert by_seed["0"] in told.text
    assert "its process is gone; end it: harness doctor --reap" in told.text
    assert status(place) == ["RUNNING", "RUNNING"], "without --reap it only looks"

    stop(processes[1].pid, place / "mlflow.db")  # alive all the same
    code, findings = doctor(place, "--reap", "--older-than", "0")
    lines = [finding.text for finding in findings if finding.about == "runs"]
    assert lines == [
        f"{by_seed['0']} {all_runs(client)[by_seed['0']].info.run_name} is KILLED: its process is gone",
        "1 have a process, or are another program's",
    ]
    assert code == 0
    os.kill(processes[1].pid, signal.SIGCONT)

    runs = all_runs(client)
    killed, living = runs[by_seed["0"]], runs[by_seed["1"]]
    assert (killed.info.status, killed.data.tags["error"]) == ("KILLED", "reaped its process is gone")
    assert killed.info.end_time >= killed.info.start_time
    assert (living.info.status, "error" in living.data.tags) == ("RUNNING", False)
    before = epochs(place)
    until(lambda: epochs(place) > before)


@pytest.mark.slow
def test_a_run_that_was_reaped_is_gone_on_with_to_the_bits_of_one_that_was_not(
    place: Path, client: MlflowClient, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(train(place, "--epochs", "150"))
    until(lambda: epochs(place) > 2)
    kill(processes[0])
    (run_id,) = all_runs(client)
    assert [finding.state for finding in about("runs", reap=True)] == ["ok", "ok"]
    resume = [sys.executable, "-m", "harness", "train", "--resume", run_id, "--no-health"]
    for process in (start(place, *resume), train(place, "--epochs", "150")):
        processes.append(process)
        assert process.wait(timeout=200) == 0
    runs = all_runs(client).values()
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert len({run.data.tags["state_digest"] for run in runs}) == 1
    assert "error" not in client.get_run(run_id).data.tags
    assert client.get_run(run_id).data.tags["attempt"] == "2"


def test_ended_runs_and_those_of_other_programs_are_left_alone(place: Path, client: MlflowClient) -> None:
    experiment = client.create_experiment("theirs")
    for state in ("FINISHED", "FAILED", "KILLED"):
        client.set_terminated(client.create_run(experiment, tags={"mlflow.source.name": "harness train"}).info.run_id, state)
    client.create_run(experiment, tags={"mlflow.source.type": "LOCAL", "mlflow.source.name": "train.py"})
    project = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": "main"}
    client.create_run(experiment, tags=project)  # under --env-manager local
    client.create_run(experiment, tags={**project, "mlflow.project.env": "conda", "mlflow.project.backend": "local"})
    logs = client.create_run(experiment, tags={**project, "mlflow.project.env": "conda"}).info.run_id
    client.log_metric(logs, "loss", 0.5)
    before = {run_id: run.to_dictionary() for run_id, run in all_runs(client).items()}
    assert [finding.text for finding in about("runs", reap=True, older_than=0)] == [
        "4 have a process, or are another program's"
    ]
    assert {run_id: run.to_dictionary() for run_id, run in all_runs(client).items()} == before


def test_a_run_that_was_taken_up_or_ended_since_the_doctor_looked_is_not_reaped(place: Path, client: MlflowClient) -> None:
    store = Store()
    taken, ended = (RunLog(store, store.create("harness", name)) for name in ("taken", "ended"))
    ended.finish("FINISHED")
    with taken.alone():
        assert not store.reap(taken.id, "too late")
    assert not store.reap(ended.id, "too late")
    runs = [client.get_run(log.id) for log in (taken, ended)]
    assert [(run.info.status, "error" in run.data.tags) for run in runs] == [("RUNNING", False), ("FINISHED", False)]


def test_a_run_that_has_just_been_created_is_given_a_moment(place: Path, client: MlflowClient) -> None:
    """It is in the store before its process holds it."""
    store = Store()
    log = RunLog(store, store.create("harness", "young"))
    (left, _) = about("runs", reap=True, older_than=0)
    assert left.state == "warn"
    assert "nobody holds it yet" in left.text
    assert client.get_run(log.id).info.status == "RUNNING"
    with closing(sqlite3.connect(place / "mlflow.db")) as file, file:
        file.execute("update runs set start_time = start_time - 61000")
    with log.alone():
        about("runs", reap=True, older_than=0)
        assert client.get_run(log.id).info.status == "RUNNING"
    about("runs", reap=True, older_than=0)
    assert client.get_run(log.id).info.status == "KILLED"


@pytest.mark.slow
def test_a_killed_study_is_ended_whole_and_a_living_one_is_not(
    place: Path, client: MlflowClient, processes: list[subprocess.Popen[str]]
) -> None:
    """Its report run, the cells that were scheduled, and the run that `mlflow run` had begun for it."""
    (place / "small.toml").write_text(TOML, encoding="utf-8")
    tags = {"mlflow.source.type": "PROJECT", "mlflow.project.env": "virtualenv", "mlflow.project.backend": "local"}
    launcher = client.create_run("0", tags=tags).info.run_id
    command = (sys.executable, "-m", "harness", "study", "small.toml", "--workers", "0", "--no-health")
    processes.append(start(place, *command, MLFLOW_RUN_ID=launcher))
    until(lambda: epochs(place) > 2)
    before = status(place)
    assert len(before) == 6
    assert set(before) <= {"RUNNING", "SCHEDULED", "FINISHED"}
    found = about("runs", reap=True, older_than=0)
    assert [finding.state for finding in found] == ["ok"]
    assert "KILLED" not in status(place)

    kill(processes[0])
    left = status(place).count("FINISHED")
    found = about("runs", reap=True, older_than=0)
    assert [finding.text.endswith("is KILLED: its process is gone") for finding in found] == [True] * (6 - left) + [False]
    assert set(status(place)) == {"KILLED"} | ({"FINISHED"} if left else set())
    assert client.get_run(launcher).data.tags["error"] == "reaped its process is gone"

    processes.append(start(place, *command))
    out, _ = processes[-1].communicate(timeout=200)
    assert processes[-1].returncode == 0, out
    runs = all_runs(client)
    assert len(runs) == 6
    assert all(run.info.status == "FINISHED" for run_id, run in runs.items() if run_id != launcher)
    assert not [run_id for run_id, run in runs.items() if "error" in run.data.tags and run_id != launcher]


def project(folder: Path, conda: str = "") -> dict[str, str]:
    """The project without its code, and a conda that is this script, or is missing."""
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(ROOT / name, folder)
    (home := folder / "conda" / "bin").mkdir(parents=True)
    if conda:
        (home / "conda").write_text(f"#!/bin/sh\n{conda}\n", encoding="utf-8")
        (home / "conda").chmod(0o755)
    path = f"{MLFLOW.parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "MLFLOW_CONDA_HOME": str(folder / "conda"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}


def test_what_mlflow_run_leaves_when_there_is_no_conda_is_ended_once_it_is_old(
    place: Path, client: MlflowClient, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(start(place, str(MLFLOW), "run", ".", **project(place)))
    out, _ = processes[0].communicate(timeout=100)
    assert "Could not find Conda" in out
    ((run_id, run),) = all_runs(client).items()
    assert run.info.status == "RUNNING", "mlflow ends it by itself: nothing is left to do"
    (left, _) = about("runs", reap=True)
    assert (left.state, client.get_run(run_id).info.status) == ("warn", "RUNNING")
    assert re.search(r"mlflow run may be building its environment.*harness doctor --reap --older-than 0$", left.text)
    (ended, _) = about("runs", reap=True, older_than=0)
    assert f"{run_id} {run.info.run_name} is KILLED: mlflow run has not built its environment" in ended.text
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["error"] == "reaped mlflow run has not built its environment in 0 min"


@pytest.mark.slow
def test_what_mlflow_run_is_still_building_an_environment_for_is_left_alone(
    place: Path, client: MlflowClient, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(start(place, str(MLFLOW), "run", ".", **project(place, "touch building; exec sleep 300")))
    until((place / "building").exists)
    code, findings = doctor(place, "--reap")
    assert code == 0
    assert any("may be building its environment" in finding.text for finding in findings)
    assert processes[0].poll() is None
    assert [run.info.status for run in all_runs(client).values()] == ["RUNNING"]


@pytest.mark.slow
def test_a_project_of_somebody_else_that_logs_nothing_yet_is_left_alone(
    place: Path, client: MlflowClient, processes: list[subprocess.Popen[str]]
) -> None:
    """Its environment was built, and its command runs: MLflow notes that."""
    (theirs := place / "theirs").mkdir()
    (theirs / "MLproject").write_text(
        "name: theirs\npython_env: env.yaml\nentry_points: {main: {command: 'touch started; sleep 300'}}", encoding="utf-8"
    )
    (theirs / "env.yaml").write_text(f"python: '{sys.version.split()[0]}'\ndependencies: []\n", encoding="utf-8")
    env = project(place)
    for name, words in (("virtualenv", "virtualenv"), ("local", "local")):
        processes.append(start(place, str(MLFLOW), "run", "theirs", "--env-manager", words, **env))
        until(lambda: (theirs / "started").exists() or processes[-1].poll() is not None)
        if processes[-1].poll() is not None:
            raise AssertionError(f"{name}: {processes[-1].communicate()[0][-2000:]}")
        (theirs / "started").unlink()
    until(lambda: len(status(place, "select value from tags where key = 'mlflow.project.backend'")) == 2)
    about("runs", reap=True, older_than=0)
    assert [run.info.status for run in all_runs(client).values()] == ["RUNNING", "RUNNING"]


@pytest.mark.slow
def test_runs_of_a_server_are_left_with_the_reason_why(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    """Which processes hold them only their machine can see, and a run does not say which machine that is."""
    with served(tmp_path, tmp_path / "mlflow.db") as server:
        (tmp_path / "elsewhere").mkdir()
        processes.append(train(tmp_path / "elsewhere", *LONG, MLFLOW_TRACKING_URI=server.uri))
        until(lambda: epochs(tmp_path) > 1)
        kill(processes[-1])
        project(tmp_path)
        client = MlflowClient(server.uri)
        tags = {"mlflow.source.type": "PROJECT", "mlflow.project.env": "conda"}
        theirs = client.create_run("0", tags=tags).info.run_id
        code, findings = doctor(tmp_path / "elsewhere", "--reap", "--older-than", "0", MLFLOW_TRACKING_URI=server.uri)
        assert code == 0
        (left,) = (finding for finding in findings if finding.about == "runs" and finding.state == "warn")
        (run_id,) = set(all_runs(client)) - {theirs}
        assert re.search(f"{run_id} .* only where a store is a file; .* harness train --resume {run_id}", left.text)
        assert {run.info.run_id: run.info.status for run in all_runs(client).values()} == {run_id: "RUNNING", theirs: "KILLED"}
