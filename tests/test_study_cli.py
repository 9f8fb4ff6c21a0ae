"""The commands study, status and results: what they say, what they refuse, what they leave alone."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import forks
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.file_utils import local_file_uri_to_path

import harness
from harness.cli import main
from harness.config import FIELDS
from harness.launched import Launched
from harness.store import Store

ROOT = Path(__file__).resolve().parent.parent
TINY = """\
name = "tiny"
question = "Is what was trained what is shown?"
design = "list"
seeds = [0, 1]
base = {dataset = "mnist_5k", epochs = 2, max_batches = 4, hidden_dim = 8}
variants = [{name = "plain"}, {name = "rectified", act = "relu"}, {name = "hot", lr = 1e9}]
"""
CELLS = ["plain-s0", "plain-s1", "rectified-s0", "rectified-s1", "hot-s0", "hot-s1"]
LAUNCH = ("study", "tiny.toml", "--workers", "0", "--epochs", "1")
CONTROL = {"\x1b", "\r", "\b"}


def environment(**env: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return {**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "110", **env}


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in this process, which has loaded everything already."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            main(arguments)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out.getvalue(), err.getvalue())


def assert_bad_input(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, one line on stderr that names what was given and what is allowed, nothing else."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("harness: error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def snapshot(folder: Path) -> dict[str, str]:
    """Every file of a folder and what is in it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(text: str, first: str) -> dict[str, dict[str, str]]:
    """The rows of a printed table under their first column; std, min and max stand beside the metric that they are of."""
    lines = text.splitlines()
    (head,) = (k for k, line in enumerate(lines) if re.match(rf"{first} ", line))
    spans = [match.span() for match in re.finditer(r"-+", lines[head + 1])]
    names: list[str] = []
    for name in (lines[head][a:b].strip() for a, b in spans):
        metric = name if name in ("loss", "accuracy") else next((n.split()[0] for n in names[::-1] if " " in n), "")
        names.append(f"{name} mean" if metric == name else f"{metric} {name}" if metric else name)
    rows = {}
    for line in lines[head + 2 :]:
        if not line.strip():
            break
        values = [line[a:b].strip() for a, b in spans]
        rows[values[0]] = dict(zip(names, values, strict=True))
    return rows


# input that is refused, and looking that creates nothing


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, whose store would be its own."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    return tmp_path


HEAD = 'name = "x"\nquestion = "?"\nseeds = [0, 1]\n'
LIST = f'{HEAD}design = "list"\n'
FACTORS = f'{HEAD}design = "one_factor_at_a_time"\n'
BASE = 'base = {dataset = "mnist_5k", max_batches = 3, hidden_dim = 6}\n'
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "syntax": (f'{HEAD}design = "list\n', ("x.toml is not TOML", "line 4")),
    "unknown key": (f'{LIST}variant = [{{name = "a"}}]\n', ("study x: key='variant'", "nearest: variants")),
    "no question": ('name = "x"\ndesign = "list"\nseeds = [0]\n', ("study x: question is missing",)),
    "unknown design": (f'{HEAD}design = "factoral"\n', ("design='factoral'", "nearest: factorial")),
    "unknown level in the last variant": (
        f'{FACTORS}factors = {{act = ["tanh", "relu"], norm = ["none", "layernrm"]}}\n',
        ("variant norm=layernrm", "norm='layernrm'", "nearest: layernorm"),
    ),
    "unknown parameter in the last variant": (
        f'{LIST}variants = [{{name = "a"}}, {{name = "b", droput = 0.1}}]\n',
        ("variant b", "parameter='droput'", "nearest: dropout"),
    ),
    "repeated seeds": (
        'name = "x"\nquestion = "?"\ndesign = "list"\nseeds = [0, 1, 0]\nvariants = [{name = "a"}]\n',
        ("seeds=[0, 1, 0]",),
    ),
    "no seeds": ('name = "x"\nquestion = "?"\ndesign = "list"\nseeds = []\nvariants = [{name = "a"}]\n', ("seeds=[]",)),
    "empty factor": (f'{FACTORS}factors = {{act = ["tanh"], norm = []}}\n', ("factor norm=[]", "at least one level")),
    "no factors": (FACTORS, ("no factors, so no cells",)),
    "no variants": (LIST, ("no variants, so no cells",)),
    "two variants of one name": (f'{LIST}variants = [{{name = "a"}}, {{name = "a", lr = 0.1}}]\n', ("two variants", "'a'")),
    "metric without validation": (
        f'{LIST}metric = "final/val_loss"\nvariants = [{{name = "a"}}]\n',
        ("final/val_loss", "validation above 0"),
    ),
    "batch larger than the data": (
        f'{LIST}{BASE}variants = [{{name = "a"}}, {{name = "b", batch_size = 5000}}]\n',
        ("b-s0", "batch_size=5000", "at most 4000"),
    ),
}


@pytest.mark.parametrize("option", ["--workers=0", "--dry-run"])
@pytest.mark.parametrize("name", FILES)
def test_study_that_could_not_be_trained_is_refused_in_one_line(name: str, option: str, empty: Path) -> None:
    text, words = FILES[name]
    (empty / "x.toml").write_text(text, encoding="utf-8")
    assert_bad_input(ask("study", "x.toml", option), *words)
    assert os.listdir(empty) == ["x.toml"]


ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown study": (("study", "matrx"), ("study='matrx'", "allowed: factorial, fair_optimizers, matrix", "nearest: matrix")),
    "file that is not there": (("study", "nowhere.toml"), ("nowhere.toml", "No such file")),
    "folder as file": (("study", "folder.toml"), ("folder.toml", "cannot be read")),
    "set without =": (("study", "x.toml", "--set", "lr"), ("set='lr'", "KEY=VALUE")),
    "set of an unknown parameter": (("study", "x.toml", "--set", "lrr=0.1"), ("parameter='lrr'", "nearest: lr")),
    "set of a bad level": (("study", "x.toml", "--set", "act=reluu"), ("act='reluu'", "nearest: relu")),
    "bad override": (("study", "x.toml", "--epochs", "0"), ("epochs='0'", "a whole number from 1")),
    "workers": (("study", "x.toml", "--workers", "x"), ("workers='x'", "auto")),
    "workers below 0": (("study", "x.toml", "--workers=-1"), ("workers='-1'", "a whole number from 0")),
    "workers beyond all bounds": (("study", "x.toml", "--workers", "9" * 5000), ("workers='999", "a whole number from 0")),
    "sample of none": (("verify", "--study", "x", "--sample", "0"), ("sample='0'", "a whole number from 1")),
    "seeds repeated": (("study", "x.toml", "--seeds", "0..2,1"), ("seeds=[0, 1, 2, 1]",)),
    "seeds downwards": (("study", "x.toml", "--seeds", "3..1"), ("seeds='3..1'", "0..9")),
    "unknown option": (("study", "x.toml", "--wrkers", "1"), ("'--wrkers'", "nearest: --workers")),
    "unknown option of status": (("status", "x.toml", "--seds", "1"), ("'--seds'", "nearest: --seeds")),
    "no study": (("study",), ("NAME|FILE",)),
    "status of an unknown study": (("status", "matrx"), ("study='matrx'", "nearest: matrix")),
    "status set": (("status", "x.toml", "--set", "lr"), ("set='lr'",)),
    "format": (("results", "matrix", "--format", "cvs"), ("format='cvs'", "nearest: csv")),
    "by": (("results", "matrix", "--by", "init,nrom"), ("by='nrom'", "nearest: norm")),
    "rows": (("results", "matrix", "--rows", "histroy"), ("rows='histroy'", "nearest: history")),
    "by with other rows": (("results", "matrix", "--by", "init", "--rows", "runs"), ("--by", "--rows runs")),
    "parquet on a screen": (("results", "matrix", "--format", "parquet"), ("format=parquet", "--output")),
    "results of an unknown file": (("results", "nowhere.toml"), ("nowhere.toml", "No such file")),
    "results of one never launched": (("results", "matrix"), ("study matrix was never launched", "harness study matrix")),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_arguments_are_refused_in_one_line(name: str, empty: Path) -> None:
    (empty / "x.toml").write_text(f'{LIST}{BASE}variants = [{{name = "a"}}]\n', encoding="utf-8")
    (empty / "folder.toml").mkdir()
    arguments, words = ARGUMENTS[name]
    assert_bad_input(ask(*arguments), *words)
    assert sorted(os.listdir(empty)) == ["folder.toml", "x.toml"]


@pytest.mark.parametrize("kind", ["status", "dry run"])
def test_looking_at_a_study_that_was_never_launched_creates_nothing(kind: str, empty: Path) -> None:
    (empty / "tiny.toml").write_text(TINY, encoding="utf-8")
    done = ask(*(("status", "tiny.toml") if kind == "status" else ("study", "tiny.toml", "--dry-run", "--workers", "1")))
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(empty) == ["tiny.toml"]
    if kind == "status":
        assert {name: row["missing"] for name, row in table(done.stdout, "variant").items()} == dict.fromkeys(
            ("plain", "rectified", "hot"), "2"
        )
        assert done.stdout.endswith("0 of 6 cells are settled\n")
    else:
        assert [(name, row["state"]) for name, row in table(done.stdout, "cell").items()] == [(c, "missing") for c in CELLS]
        assert re.search(
            r"6 of 6 cells to train, in \d stacks? on 1 worker, about \d+ s\n$", done.stdout.replace("1 stacks", "1 stack")
        )


def test_help_and_refusals_load_nothing_heavy(empty: Path) -> None:
    asked = [
        *(["study", "--help"], ["status", "--help"], ["results", "--help"]),
        *(
            ["study", "matrx"],
            ["study", "matrix", "--set", "lrr=1"],
            ["results", "matrix", "--by", "nrom"],
            ["status", "matrx"],
            ["status", "matrix", "--set", "lrr=1"],
        ),
    ]
    code = (
        "import json, sys\nfrom harness.cli import main\n"
        f"for arguments in {asked!r}:\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'pandas', 'numpy', 'scipy', 'distributed', 'matplotlib', 'rich.progress'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert [done.stdout.count(f"Usage: harness {name} ") for name in ("study", "status", "results")] == [1, 1, 1]
    assert os.listdir(empty) == []


@pytest.mark.parametrize("command", ["study", "status"])
def test_every_parameter_is_an_override(command: str) -> None:
    text = ask(command, "--help").stdout
    for name in FIELDS:
        assert f"--{name.replace('_', '-')} " in text or name == "seed", name


# a study and its days


def pressed(arguments: tuple[str, ...], folder: Path) -> tuple[int, str]:
    """What a command shows on a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    process = forks.Fork(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        env=environment(TERM="xterm-256color"),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    output, deadline = b"", time.monotonic() + 150
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            output += part
        return process.wait(timeout=30), output.decode()
    finally:
        process.kill()
        os.close(ours)


def cells(folder: Path) -> dict[str, Run]:
    """Cell -> its newest run, as an outside program finds it."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], "tags.study = 'tiny'")
    return {run.data.tags["cell"]: run for run in reversed(runs)}


@contextmanager
def inside(folder: Path) -> Iterator[MlflowClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        yield MlflowClient(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A study launched in a pipe, again when it is finished, on a terminal for what was lost, and with a cell that fails."""
    folder = tmp_path_factory.mktemp("story")
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    command = [sys.executable, "-m", "harness", *LAUNCH]
    first = forks.run(command, cwd=folder, env=environment(), timeout=200)
    assert first.returncode == 0, first.stdout + first.stderr
    begun = cells(folder)
    with inside(folder) as client:
        again = ask(*LAUNCH)
        client.delete_run(begun["plain-s1"].info.run_id)
        code, shown = pressed(LAUNCH, folder)
        # a run that failed, and will again: a folder lies where its last file goes
        broken = begun["plain-s0"]
        client.set_terminated(broken.info.run_id, "FAILED")
        (kept := Path(local_file_uri_to_path(broken.info.artifact_uri)) / "history.csv").unlink()
        kept.mkdir()
        failing = ask(*LAUNCH)
        shutil.rmtree(kept)
    return SimpleNamespace(folder=folder, begun=begun, first=first, again=again, shown=shown, code=code, failing=failing)


def test_a_pipe_gets_plain_lines_one_for_every_cell(story: SimpleNamespace) -> None:
    assert story.first.stderr == ""
    assert not set(story.first.stdout) & CONTROL
    told = [re.match(r"(\d)/6  (\S+) +test loss \S+  accuracy [01]\.\d+", line) for line in story.first.stdout.splitlines()]
    found = [match.groups() for match in told if match]
    assert sorted(name for _, name in found) == sorted(CELLS)
    assert [int(number) for number, _ in found] == [1, 2, 3, 4, 5, 6]
    hot = [line for line in story.first.stdout.splitlines() if "  hot-s" in line]
    assert len(hot) == 2
    assert all("diverged in epoch 1" in line for line in hot)


def test_the_end_is_a_table_of_variants_and_the_link_to_their_chart(story: SimpleNamespace) -> None:
    out = story.first.stdout
    rows = table(out, "variant")
    assert list(rows) == ["plain", "rectified", "hot"]
    assert [(row["n"], row["diverged"]) for row in rows.values()] == [("2", "0"), ("2", "0"), ("0", "2")]
    for name in ("plain", "rectified"):
        losses = [story.begun[f"{name}-s{seed}"].data.metrics["final/test_loss"] for seed in (0, 1)]
        assert rows[name]["loss mean"] == f"{sum(losses) / 2:.4f}"
        assert (rows[name]["loss min"], rows[name]["loss max"]) == (f"{min(losses):.4f}", f"{max(losses):.4f}")
    assert {"loss std", "accuracy mean", "accuracy std", "accuracy min", "accuracy max"} <= set(rows["plain"])
    assert f"mlflow ui --backend-store-uri sqlite:///{story.folder}/mlflow.db\n" in out
    experiment = story.begun["plain-s0"].info.experiment_id
    link, hint = (line.strip() for line in out.splitlines()[-2:])
    assert "mean curve of each variant" in hint
    assert link.startswith(f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?")
    assert "compareRunsMode=CHART" in link
    name = link.rpartition("&viewStateShareKey=")[2]
    assert re.fullmatch(r"tiny-[0-9a-f]{8}", name)


def test_finished_study_is_said_to_be_there_and_trains_nothing(story: SimpleNamespace) -> None:
    assert (story.again.returncode, story.again.stderr) == (0, "")
    assert "none of 6 cells to train" in story.again.stdout
    assert "done     6 of 6 cells, 0 now" in story.again.stdout
    assert table(story.again.stdout, "variant") == table(story.first.stdout, "variant")


def test_a_terminal_shows_a_bar_and_ends_with_the_same_table(story: SimpleNamespace) -> None:
    assert story.code == 0, story.shown
    assert "\x1b[" in story.shown
    assert "━" in story.shown
    assert re.search(r"\d/6 cells, 1 training, test loss", story.shown)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", story.shown).replace("\r", "")
    assert "done     6 of 6 cells, 1 now" in plain
    assert table(plain, "variant") == table(story.first.stdout, "variant")
    assert "\x1b[1A\x1b[2K" in story.shown[story.shown.rindex("━") :], "the bar goes before the table comes"


def test_cell_that_fails_is_listed_and_the_exit_code_is_1(story: SimpleNamespace) -> None:
    assert (story.failing.returncode, story.failing.stderr) == (1, "")
    lines = story.failing.stdout.splitlines()
    assert [line for line in lines if re.match(r"6/6  plain-s0 +failed: WriteError", line)]
    assert [line for line in lines if line.startswith("failed   plain-s0: WriteError")]
    assert "done     5 of 6 cells, 0 now" in story.failing.stdout
    rows = table(story.failing.stdout, "variant")
    assert [(row["n"], row["failed"]) for row in rows.values()] == [("1", "1"), ("2", "0"), ("0", "0")]


@pytest.fixture(scope="module")
def mixed(story: SimpleNamespace) -> Iterator[Path]:
    """The same study with a cell in every state; the working directory is its folder."""
    runs = cells(story.folder)
    with inside(story.folder) as client:
        client.delete_run(runs["hot-s1"].info.run_id)
        client.set_tag(runs["rectified-s0"].info.run_id, "code_digest", "0" * 64)
        client.update_run(runs["plain-s1"].info.run_id, status="RUNNING")
        client.update_run(runs["rectified-s1"].info.run_id, status="RUNNING")
        with Store().locks.hold(runs["plain-s1"].info.run_id):  # as the process that trains it would
            yield story.folder


STANDS = {
    "plain-s0": ("failed", "writeerror"),
    "plain-s1": ("running", ""),
    "rectified-s0": ("stale", "the code changed"),
    "rectified-s1": ("failed", "its process is gone"),
    "hot-s0": ("diverged", "in epoch 1"),
    "hot-s1": ("missing", ""),
}


def test_status_counts_the_states_of_each_variant_with_reasons(mixed: Path) -> None:
    before = snapshot(mixed)
    done = ask("status", "tiny.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("as last launched, with --epochs 1\n"), "these are not the file's epochs"
    rows = table(done.stdout, "variant")
    assert list(rows) == ["plain", "rectified", "hot"]
    assert list(rows["plain"]) == ["variant", "finished", "diverged", "running", "failed", "missing", "stale"]
    assert {name: [int(number) for number in list(row.values())[1:]] for name, row in rows.items()} == {
        "plain": [0, 0, 1, 1, 0, 0],
        "rectified": [0, 0, 0, 1, 0, 1],
        "hot": [0, 1, 0, 0, 1, 0],
    }
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.split(":")[0] in CELLS)
    assert list(told) == CELLS
    for name, (state, why) in STANDS.items():
        assert told[name].startswith(f"{state}, {why}" if why else state), name
    assert told["plain-s1"] == "running"
    assert done.stdout.endswith("1 of 6 cells are settled\n")
    assert snapshot(mixed) == before


def test_status_of_a_study_whose_file_is_gone_is_that_of_its_last_launch(mixed: Path) -> None:
    by_file = ask("status", "tiny.toml")
    (mixed / "tiny.toml").rename(mixed / "gone")
    try:
        by_name = ask("status", "tiny")
    finally:
        (mixed / "gone").rename(mixed / "tiny.toml")
    assert (by_name.returncode, by_name.stdout) == (0, by_file.stdout)


def test_study_that_was_never_launched_is_refused_with_the_nearest_that_could_be(mixed: Path) -> None:
    for command in ("status", "results", "report"):
        done = ask(command, "matrx")
        assert done.returncode == 2
        assert "nearest: matrix" in done.stderr
    assert "launch it: harness study matrix" in ask("results", "matrix").stderr
    assert "launch it: harness search tuning" in ask("results", "tuning").stderr


def test_status_with_overrides_of_its_own_asks_for_those(mixed: Path) -> None:
    done = ask("status", "tiny.toml", "--epochs", "2", "--seeds", "0")
    assert "as last launched" not in done.stdout
    assert [sum(int(n) for n in list(row.values())[1:]) for row in table(done.stdout, "variant").values()] == [1, 1, 1]
    assert "hot-s0: stale, epochs was 1, is 2" in done.stdout
    assert done.stdout.endswith("0 of 3 cells are settled\n")


def test_dry_run_tells_what_is_there_and_how_long_the_rest_takes_and_writes_nothing(mixed: Path) -> None:
    before = snapshot(mixed)
    done = ask(*LAUNCH, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    rows = table(done.stdout, "cell")
    assert list(rows) == CELLS
    for name, (state, why) in STANDS.items():
        assert rows[name]["state"] == state
        assert rows[name]["why"].startswith(why), name
    assert re.search(r"^tiny: 5 of 6 cells to train, in \d+ stacks? on 1 worker, about \d+ s$", done.stdout, re.MULTILINE)
    assert snapshot(mixed) == before


def test_dry_run_of_a_file_takes_overrides(mixed: Path) -> None:
    done = ask("study", "tiny.toml", "--dry-run", "--workers", "2", "--set", "max_batches=3", "--seeds", "4..6")
    assert [name.rpartition("-s")[2] for name in table(done.stdout, "cell")] == ["4", "5", "6"] * 3
    assert "9 of 9 cells to train" in done.stdout
    assert "on 2 workers" in done.stdout


# results


def frame(rows: str, by: tuple[str, ...] = ()) -> pd.DataFrame:
    return harness.summary("tiny", by) if rows == "summary" else getattr(harness, rows)("tiny")


def plain(value: object) -> object:
    """A value as a format without types may keep it: nothing is None, whatever its kind."""
    return None if pd.isna(value) or value == "" else value


def assert_same(back: pd.DataFrame, wanted: pd.DataFrame) -> None:
    assert list(back) == list(wanted)
    for name in wanted:
        assert list(map(plain, back[name])) == list(map(plain, wanted[name])), name


@pytest.mark.parametrize("rows", ["summary", "compare", "runs", "history"])
@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_results_parse_back_to_the_frame(kind: str, rows: str, mixed: Path, tmp_path: Path) -> None:
    output = tmp_path / f"results.{kind}"
    done = ask("results", "tiny", "--format", kind, "--rows", rows, "--output", str(output))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wanted = frame(rows)
    if kind == "parquet":
        pd.testing.assert_frame_equal(pd.read_parquet(output), wanted, check_exact=True)
    elif kind == "csv":
        assert_same(pd.read_csv(output), wanted)
    else:
        assert_same(pd.DataFrame(json.loads(output.read_text(encoding="utf-8")), columns=list(wanted)), wanted)


def test_results_are_printed_as_they_are_written(mixed: Path, tmp_path: Path) -> None:
    for kind in ("csv", "json", "table", "markdown"):
        printed = ask("results", "tiny", "--format", kind)
        assert (printed.returncode, printed.stderr) == (0, "")
        ask("results", "tiny", "--format", kind, "--output", str(tmp_path / "results"))
        assert printed.stdout == (tmp_path / "results").read_text(encoding="utf-8"), kind


def test_results_are_a_table_unless_asked_otherwise(mixed: Path) -> None:
    done = ask("results", "tiny")
    assert done.stdout == ask("results", "tiny", "--format", "table").stdout
    wanted = harness.summary("tiny").set_index("variant")
    rows = table(done.stdout, "variant")
    assert list(rows) == list(wanted.index)
    for name, row in rows.items():
        assert int(row["n"]) == wanted.loc[name, "n"]
        for state in ("diverged", "running", "failed", "missing", "stale"):
            assert int(row[state]) == wanted.loc[name, state], state
    assert not set(done.stdout) & CONTROL


def test_runs_are_told_in_lines_that_fit_a_screen(mixed: Path) -> None:
    wanted, done = harness.runs("tiny"), ask("results", "tiny", "--rows", "runs")
    lines = done.stdout.splitlines()[2:]
    for run, line in zip(wanted.itertuples(), lines, strict=True):
        assert line.split()[:3] == [run.variant, str(run.seed), run.state]
    assert wanted.run_id.dropna().isin(" ".join(line[:100] for line in lines).split()).all(), "what may be long comes last"


def test_contrasts_are_told_with_their_metric_unit_and_level(mixed: Path) -> None:
    told = ask("results", "tiny", "--rows", "compare").stdout.splitlines()[-1]
    level = "Intervals are of 97.5%, and hold together with 95%."
    assert told == f"Differences of final/test_loss, in nats, to plain. {level}"


def test_markdown_is_the_table_of_a_page(mixed: Path) -> None:
    done = ask("results", "tiny", "--format", "markdown")
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert len({len(row) for row in rows}) == 1
    assert all(re.fullmatch(r":?-+:?", part) for part in rows[1])
    read = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert read == table(ask("results", "tiny").stdout, "variant")


@pytest.mark.parametrize("by", ["act", "act,lr", " act , hidden-dim "])
def test_results_are_grouped_by_parameters(by: str, mixed: Path) -> None:
    names = tuple(name.strip().replace("-", "_") for name in by.split(","))
    done = ask("results", "tiny", "--by", by, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    wanted = frame("summary", names)
    assert list(rows[0]) == list(wanted)
    assert [[row[name] for name in names] for row in rows] == wanted[list(names)].astype(str).values.tolist()
    assert [int(row["n"]) for row in rows] == list(wanted.n)


def test_small_and_large_levels_stay_apart_in_a_table(mixed: Path) -> None:
    rows = table(ask("results", "tiny", "--by", "lr").stdout, " +lr")
    assert {float(level): (row["n"], row["diverged"]) for level, row in rows.items()} == {0.01: ("0", "0"), 1e9: ("0", "1")}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_output_that_cannot_be_written_is_one_line(kind: str, mixed: Path) -> None:
    done = ask("results", "tiny", "--format", kind, "--output", "nowhere/results")
    assert_bad_input(done, "nowhere/results")


def test_report_that_the_store_does_not_take_is_one_line(mixed: Path) -> None:
    report = Launched.last("tiny").report
    report.store.client.delete_tag(report.id, "mlflow.note.content")
    with closing(sqlite3.connect(mixed / "mlflow.db")) as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON tags BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END")
        try:
            done = ask("report", "tiny")
        finally:
            database.execute("DROP TRIGGER full")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith(f"harness: error: store sqlite:///{mixed}/mlflow.db cannot be written: ")


def test_results_go_by_name_or_file(mixed: Path) -> None:
    assert ask("results", "tiny.toml").stdout == ask("results", "tiny").stdout != ""


def test_results_of_a_study_that_this_store_has_not_seen(mixed: Path) -> None:
    before = snapshot(mixed)
    assert_bad_input(ask("results", "matrix"), "study matrix was never launched", f"sqlite:///{mixed}/mlflow.db")
    assert snapshot(mixed) == before
