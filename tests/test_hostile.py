"""Hostile input from the command line: taken literally or refused in one line; nothing of it runs, no file appears."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.cli import cli as mlflow_command
from mlflow.projects._project_spec import load_project

from harness.config import FIELDS
from harness.errors import LONGEST

ROOT = Path(__file__).resolve().parents[1]
MARK = "was_run"  # the file that a value would make, were it a command
VALUES = [  # every one names the file, or a way out of a folder, or what a shell, a format or a terminal makes something of
    f"; touch {MARK}",
    f"tanh; touch {MARK} #",
    f"$(touch {MARK})",
    f"`touch {MARK}`",
    f"${{IFS}}touch${{IFS}}{MARK}",
    f"| touch {MARK}",
    f"|| touch {MARK}",
    f"& touch {MARK} &",
    f"&& touch {MARK}",
    f"> {MARK}",
    f">> {MARK}",
    f"2>{MARK}",
    f"<(touch {MARK})",
    f"\ntouch {MARK}\n",
    f"tanh\r\ntouch {MARK}",
    f"' ; touch {MARK} ; '",
    f"'\"'\"'; touch {MARK}; '\"'\"'",
    f'"; touch {MARK}; "',
    f'"$(touch {MARK})"',
    f"\\'; touch {MARK}; \\'",
    f"\\\ntouch {MARK}",
    f"$'\\x3b touch {MARK}'",
    f"tanh\ttouch {MARK}",
    "../" * 20 + f"etc/{MARK}",
    f"../{MARK}",
    f"/tmp/{MARK}/x",
    "/etc/passwd",
    "/dev/zero",
    f"~/{MARK}",
    f"~root/{MARK}",
    "file:///etc/passwd",
    "--",
    "--act",
    "-rf",
    "--no-health",
    f"--profile={MARK}",
    "*",
    "?[a-z]*",
    "{}",
    "{act}",
    "{0.__class__.__mro__}",
    "{a,b}{1..9}",
    "%s%n%x",
    "%(lr)s",
    "\\0",
    "%00",
    "\x01\x02\x1b[2J\x7f",
    "‮é\u2028ﷺ",
    "!!",
    "x" * 100_000,
]
KINDS = {  # a parameter of each kind; with a full line of the others, as MLproject has it
    "a level": "act",
    "a whole number": "seed",
    "a number": "lr",
    "a file": "network",
    "a dataset": "dataset",
    "a device": "device",
    "what is not declared": "extra",
    "a study": "study",
    "a count of workers": "workers",
}

ONE_BY_ONE = """
import contextlib, io, json, sys
from harness.cli import main
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@dataclass(frozen=True)
class World:
    """All folders that a command could reach by accident: where it starts, its home, and the one for temporary files."""

    root: Path

    @classmethod
    def made(cls, root: Path) -> World:
        for name in ("work/deep", "home", "tmp"):
            (root / name).mkdir(parents=True)
        (root / "work" / "deep" / "kept").write_text("as it was", encoding="utf-8")
        return cls(root)

    @property
    def work(self) -> Path:
        return self.root / "work" / "deep"

    def env(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
        places = {"HOME": str(self.root / "home"), "TMPDIR": str(self.root / "tmp"), "PYTHONPATH": str(ROOT), "PATH": path}
        return {**clean, **places, "PYTHONDONTWRITEBYTECODE": "1", **more}

    def tree(self) -> dict[str, str]:
        """Every file and folder, and what is in it; folders of the machine that the values name are looked at besides."""
        found = {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            for path in sorted(self.root.rglob("*"))
        }
        elsewhere = [Path(place, MARK).expanduser() for place in ("/tmp", "/etc", "~root")]
        return {**found, **{str(place): str(os.path.exists(place)) for place in elsewhere}}

    def run(self, command: Sequence[str], timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.work, env=self.env(**env), capture_output=True, timeout=timeout, text=True, errors="replace"
        )

    def harness(self, commands: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess[str]]:
        """What the command line makes of each, one after the other in one process: to start one takes longer than to refuse."""
        program, given = [sys.executable, "-c", ONE_BY_ONE], json.dumps(commands)
        done = subprocess.run(
            program, cwd=self.work, env=self.env(), input=given, capture_output=True, timeout=300, text=True, check=True
        )
        assert done.stderr == ""
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        return [subprocess.CompletedProcess(words, *answer) for words, answer in zip(commands, answers, strict=True)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.made(tmp_path)


def command(entry: str, values: dict[str, str]) -> str:
    """What MLflow gives to bash for `mlflow run . -e entry -P name=value ...`: its own code builds it."""
    point = load_project(str(ROOT)).get_entry_point(entry)
    return str(point.compute_command(values, None))


def hostile_command(kind: str, value: str) -> str:
    name = KINDS[kind]
    return command("study" if name in ("study", "workers") else "main", {name: value})


def assert_refused(done: subprocess.CompletedProcess[str]) -> None:
    """Exit code 2 and one printable line of bounded length."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.endswith("\n")
    line = done.stderr[:-1]
    assert line.isprintable(), line
    assert line.startswith("harness: error: ")
    assert len(line) < LONGEST + 20


# what arrives


def stub(folder: Path) -> dict[str, str]:
    """A `python` that writes down its arguments, first on the PATH."""
    folder.mkdir()
    python = folder / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\0" "$@" > "$ARGUMENTS"\n', encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("entry", ["main", "study"])
def test_every_value_arrives_as_it_was_given(entry: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In every declared parameter at once, and in one, and under a name, that is not declared."""
    outside = tmp_path_factory.mktemp("outside")
    env = stub(outside / "bin")
    point = load_project(str(ROOT)).get_entry_point(entry)
    declared, words_of = list(point.parameters), point.command.split()[1:]
    before = world.tree()
    for k, value in enumerate(VALUES):
        value = value[:5000]  # twenty of them must fit into one command
        given = {**dict.fromkeys(declared, value), "extra": value, f"x{value}": "1"}
        words = outside / f"words-{k}"
        done = world.run(["bash", "-c", command(entry, given)], **env, ARGUMENTS=str(words))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), value
        came = words.read_bytes().decode().split("\0")[:-1]
        assert came == [value if word.startswith("{") else word for word in words_of] + ["--extra", value, f"--x{value}", "1"]
    assert world.tree() == before


# what becomes of it


def refuse(world: World, commands: Sequence[Sequence[str]]) -> None:
    """Run them, two at a time: each is refused and nothing is left behind."""
    before = world.tree()
    with ThreadPoolExecutor(2) as pool:
        for words, done in zip(commands, pool.map(world.run, commands), strict=True):
            assert (words, done.returncode) == (words, 2), done.stderr
            assert_refused(done)
    assert world.tree() == before


def refuse_one_by_one(world: World, commands: Sequence[Sequence[str]]) -> None:
    before = world.tree()
    for done in world.harness(commands):
        assert (done.args, done.returncode) == (done.args, 2), done.stderr
        assert_refused(done)
    assert world.tree() == before


def test_hostile_values_are_refused_in_one_line_and_leave_nothing(world: World) -> None:
    """Some values, each in a parameter of one kind, through the shell; all pairs of them below."""
    kinds = list(KINDS)
    refuse(world, [["bash", "-c", hostile_command(kinds[k % len(kinds)], value)] for k, value in enumerate(VALUES[::4])])


@pytest.mark.parametrize("kind", KINDS)
def test_every_hostile_value_is_refused_in_every_kind_of_parameter(kind: str, world: World) -> None:
    """In the words that a shell makes of the command: that each value arrives as it was given is tested above."""
    commands = [shlex.split(hostile_command(kind, value)) for value in VALUES]
    assert all(words[:3] == ["python", "-m", "harness"] for words in commands)
    refuse_one_by_one(world, [words[3:] for words in commands])


HUGE = "9" * 5000
OPTIONS: dict[str, tuple[str, ...]] = {
    "seeds to a billion": ("study", "matrix", "--seeds", "0..999999999"),
    "a command as seeds": ("study", "matrix", "--seeds", f"$(touch {MARK})"),
    "no seeds": ("study", "matrix", "--seeds", ""),
    "seeds in another script": ("study", "matrix", "--seeds", "٠..٣"),
    "set of self": ("study", "matrix", "--set", "self=1"),
    "set of seeds": ("study", "matrix", "--set", "seeds=0..999999999"),
    "set of nothing": ("study", "matrix", "--set", "=1"),
    "set of a magic name": ("study", "matrix", "--set", "__class__=1"),
    "set of a command": ("study", "matrix", "--set", f"act=$(touch {MARK})"),
    "set of another study's name": ("study", "matrix", "--set", "name=../x"),
    "workers beyond a number": ("study", "matrix", "--workers", HUGE + "x"),
    "a study above": ("study", "../../etc/passwd"),
    "a study that is a device": ("study", "/dev/zero"),
    "a study of no end": ("study", "x" * 100_000),
    "a study with a line end": ("study", "matrix\n"),
    "status of a study above": ("status", "../../etc"),
    "results by a command": ("results", "matrix", "--by", f"act; touch {MARK}"),
    "results by dunder": ("results", "matrix", "--by", "__class__"),
    "results in a format": ("results", "matrix", "--format", "{0.__class__}"),
    "width": ("train", "--hidden-dim", "65537"),
    "a huge width": ("train", "--hidden-dim", HUGE),
    "a huge batch": ("train", "--batch-size", HUGE),
    "a long folder": ("train", "--data-dir", "x" * 100_000),
    "layers": ("train", "--network", json.dumps({"layers": [{"type": "relu"}] * 1001})),
    "parameters": ("train", "--network", json.dumps({"layers": [{"type": "linear", "size": 65536}] * 3})),
    "a key twice": ("train", "--network", '{"layers": [], "layers": [{"type": "relu"}]}'),
    "deep lists": ("train", "--network", '{"layers":' + "[" * 50_000),
    "a template": ("train", "--network", "{0.__class__}"),
    "resume and a command": ("train", "--resume", "0" * 32, "--act", f"; touch {MARK}"),
    "an option that is none": ("train", f"--$(touch {MARK})", "1"),
    "a command that is none": (f"$(touch {MARK})",),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_hostile_options_are_refused_in_one_line_and_leave_nothing(name: str, world: World) -> None:
    refuse(world, [[sys.executable, "-m", "harness", *OPTIONS[name]]])


LATE: dict[str, tuple[str, ...]] = {  # refused after torch and mlflow are there
    "results of a filter": ("results", "x' OR tags.study LIKE '%"),
    "results of a path": ("results", "../../etc"),
    "results of no launch": ("results", "matrix", "--output", f"../{MARK}"),
    "a run above": ("train", "--resume", "../../etc"),
    "a run of quotes": ("train", "--resume", "x' OR '1'='1"),
    "a run of no end": ("train", "--resume", "x" * 100_000),
    "a run of no name": ("train", "--resume", ""),
    "a batch of all and more": ("train", "--dataset", "mnist_5k", "--batch-size", "1000000000"),
    "memory": ("train", "--dataset", "mnist_5k", "--batch-size", "4000", "--hidden-dim", "65536"),
}


@pytest.mark.slow
def test_hostile_options_that_are_found_late_are_refused_as_well(world: World) -> None:
    refuse_one_by_one(world, list(LATE.values()))


# names of variants become tags, names of runs and text on pages


NAMES = [f"$(touch {MARK})", "../../x", "a'b", "<script>", "a\0b", "x" * 201]


def test_hostile_names_of_variants_are_refused(world: World) -> None:
    for k, name in enumerate(NAMES):
        text = f"name = 'x'\nquestion = 'q'\ndesign = 'list'\nseeds = [0]\n[[variants]]\nname = {json.dumps(name)}\n"
        (world.work / f"{k}.toml").write_text(text, encoding="utf-8")
    refuse(world, [[sys.executable, "-m", "harness", "study", f"{k}.toml"] for k in range(len(NAMES))])


# runs that take hostile text literally, as the place of data that they do not need

TINY = ["--dataset", "mnist_5k", "--epochs", "1", "--max-batches", "1", "--hidden-dim", "2", "--no-health"]
PLACES = [f"$(touch {MARK})", "../" * 20 + f"etc/{MARK}", f"~/{MARK}", "--act", "{act}%s", "'\"\n\x1b[2J\u2028", "‮é"]


@pytest.mark.slow
def test_text_that_is_allowed_is_taken_literally(world: World) -> None:
    """A run for each value as its data_dir; all that appears is the store."""
    before = world.tree()
    for done in world.harness([["train", *TINY, f"--data-dir={value}"] for value in PLACES]):
        assert done.returncode == 0, done.stderr
    now = {name: what for name, what in world.tree().items() if not name.startswith(("work/deep/ml", "home/.", "tmp/"))}
    assert now == {name: what for name, what in before.items() if name in now}
    assert set(before) <= set(now)
    client = MlflowClient(f"sqlite:///{world.work}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {run.data.params["data_dir"] for run in runs} == set(PLACES)
    assert len(runs) == len(PLACES)
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.tags["variant"] == "epochs=1 hidden_dim=2 max_batches=1 dataset=mnist_5k"
        config = Path(client.download_artifacts(run.info.run_id, "config.json")).read_text(encoding="utf-8")
        assert json.loads(config)["data_dir"] == run.data.params["data_dir"]


@pytest.mark.slow
def test_largest_numbers_that_are_allowed_train(world: World) -> None:
    most = str(2**63 - 1)
    words = [*TINY[:4], "--hidden-dim", "2", "--max-batches", most, "--seed", most, "--batch-size", "4000", "--no-health"]
    done = world.run([sys.executable, "-m", "harness", "train", *words])
    assert done.returncode == 0, done.stderr


# mlflow run itself

PROJECT = {  # -P name=value, as a person or a program would give it
    "a command": ("act", f"; touch {MARK}"),
    "a substitution": ("act", f"$(touch {MARK})"),
    "backticks": ("norm", f"`touch {MARK}`"),
    "quotes": ("optimizer", f"'; touch {MARK}; '"),
    "lines": ("seed", f"0\ntouch {MARK}"),
    "a redirection": ("lr", f"0.1 > {MARK}"),
    "a pipe": ("epochs", f"1 | touch {MARK}"),
    "a path": ("network", "../../../../etc/passwd"),
    "a format": ("init", "{act}{0.__class__}%s"),
    "an option": ("device", "--help"),
    "what is not declared": ("extra", f"$(touch {MARK})"),  # a name that needs quotes MLflow refuses itself
    "control characters": ("dataset", "\x01\x1b[2J\u2028"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A copy of the project with a store that is there already: MLflow makes its run before harness sees a value."""
    world = World.made(tmp_path_factory.mktemp("world"))
    for name in ("harness", "experiments"):
        shutil.copytree(ROOT / name, world.work / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(ROOT / name, world.work)
    MlflowClient(f"sqlite:///{world.work}/mlflow.db").search_experiments()
    return world


@pytest.mark.slow
@pytest.mark.parametrize("name", PROJECT)
def test_mlflow_run_with_a_hostile_value_fails_in_one_line_of_ours(
    name: str, project: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """MLflow's command line in this process, since it takes seconds to import; what it starts is a process of its own."""
    parameter, value = PROJECT[name]
    store = ("work/deep/mlflow.db", "work/deep/mlruns", "home/.", "tmp/")
    before = {name: what for name, what in project.tree().items() if not name.startswith(store)}
    uri = f"sqlite:///{project.work}/mlflow.db"
    client = MlflowClient(uri)
    there = len(client.search_runs(["0"]))
    for variable, text in project.env(PYTHONPATH="", MLFLOW_TRACKING_URI=uri).items():
        monkeypatch.setenv(variable, text)
    monkeypatch.chdir(project.work)
    with pytest.raises(SystemExit) as end:
        mlflow_command(["run", ".", "--env-manager", "local", "-P", f"{parameter}={value}"])
    assert end.value.code == 1
    said = capfd.readouterr().err
    ours = [line for line in said.splitlines() if line.startswith("harness: error: ")]
    assert len(ours) == 1, said
    assert "Traceback" not in said
    assert {name: what for name, what in project.tree().items() if not name.startswith(store)} == before
    runs = client.search_runs(["0"], order_by=["attributes.start_time DESC"])
    assert len(runs) == there + 1  # MLflow's own, and it says how it ended
    assert runs[0].info.status == "FAILED"
    assert set(runs[0].data.params) >= set(FIELDS)
    assert not runs[0].data.metrics
    assert "config_digest" not in runs[0].data.tags
