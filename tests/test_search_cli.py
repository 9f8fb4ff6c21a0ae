"""The command search: what it says, what it refuses, and what it leaves alone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_study_cli import CONTROL, ask, assert_bad_input, inside, pressed

TINY = """\
name = "tiny"
question = "Which?"
seeds = [0, 1]
[base]
dataset = "mnist_5k"
epochs = 2
max_batches = 2
hidden_dim = 8
validation = 0.2
[search]
trials = 4
batch = 2
final_seeds = [7, 8]
[space.lr]
low = 1e-3
high = 1.0
log = true
"""
REFUSED: dict[str, tuple[str, str, tuple[str, ...]]] = {  # what is replaced, by what, words of the line
    "bounds the wrong way round": ("low = 1e-3", "low = 2.0", ("[space.lr]", "low=2.0 and high=1.0", "low below high")),
    "bound that is no number": ("low = 1e-3", "low = nan", ("[space.lr]", "low=nan", "a finite number")),
    "bound that is missing": ("low = 1e-3", "", ("[space.lr]", "low is missing")),
    "log of zero": ("low = 1e-3", "low = 0.0", ("[space.lr]", "low=0.0", "a number above 0, for log")),
    "bound that no run could have": ("low = 1e-3\nhigh = 1.0\nlog = true", "low = -1.0\nhigh = 1.0", ("lr=-1.0", "above 0")),
    "unknown parameter": ("[space.lr]", "[space.lrr]", ("space='lrr'", "nearest: lr")),
    "parameter that is not to be searched": ("[space.lr]", "[space.epochs]", ("space='epochs'", "lr, weight_decay")),
    "empty choice": ("low = 1e-3\nhigh = 1.0\nlog = true", "choices = []", ("choices=[]", "at least one level")),
    "unknown level": ("[space.lr]", '[space.act]\nchoices = ["tanhh"]\n[space.lr]', ("act='tanhh'", "nearest: tanh")),
    "budget of no trials": ("trials = 4", "trials = 0", ("trials=0", "a whole number from 1")),
    "budget of no seconds": ("trials = 4", "seconds = 0.0", ("seconds=0.0", "a number above 0")),
    "no budget": ("trials = 4", "", ("no budget", "trials = 60, or seconds = 600")),
    "wrong direction": ("batch = 2", 'direction = "maximize"', ("direction='maximize'", "minimize")),
    "no direction": ("batch = 2", 'direction = "up"', ("direction='up'", "minimize, maximize")),
    "choice on test data": ("seeds = [0, 1]\n", 'seeds = [0, 1]\nmetric = "final/test_loss"\n', ("chooses on validation",)),
    "no validation data": ("validation = 0.2\n", "", ("validation above 0",)),
    "final seeds that chose": ("[7, 8]", "[1, 8]", ("final_seeds=[1, 8]", "none of them among seeds")),
    "too few seeds for Wilcoxon": ("batch = 2", 'pruner = "wilcoxon"', ("needs 4 seeds", "0.25")),
    "unknown sampler": ("batch = 2", 'sampler = "tpee"', ("sampler='tpee'", "nearest: tpe")),
    "grid of a range without steps": ("batch = 2", 'sampler = "grid"', ("[space.lr]", "range without a step")),
    "unknown key": ("batch = 2", "bacth = 2", ("key='bacth'", "nearest: batch")),
    "batch that no training set fills": ("max_batches = 2", "batch_size = 5000", ("batch_size=5000", "at most 3200")),
}
ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "trials": (("--trials", "0"), ("trials=0", "a whole number from 1")),
    "trials in words": (("--trials", "many"), ("trials='many'", "a whole number from 1, or auto")),
    "workers": (("--workers", "x"), ("workers='x'", "a whole number from 0, or auto")),
    "seeds of the comparison": (("--seeds", "0..8"), ("final_seeds=[7, 8]", "none of them among seeds")),
    "value in the base": (("--set", "act=reluu"), ("act='reluu'", "nearest: relu")),
    "workers beside a scheduler": (("--workers", "2", "--scheduler", "tcp://127.0.0.1:1"), ("workers=2 cannot go with",)),
    "scheduler that is not there": (("--scheduler", "tcp://127.0.0.1:1"), ("scheduler tcp://127.0.0.1:1 does not answer",)),
}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, whose store would be its own."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize("name", REFUSED)
def test_search_that_could_not_be_run_is_refused_in_one_line(name: str, empty: Path) -> None:
    given, instead, words = REFUSED[name]
    assert TINY.count(given) == 1
    (empty / "x.toml").write_text(TINY.replace(given, instead), encoding="utf-8")
    assert_bad_input(ask("search", "x.toml", "--workers", "0"), *words)
    assert os.listdir(empty) == ["x.toml"]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_arguments_are_refused_in_one_line(name: str, empty: Path) -> None:
    (empty / "x.toml").write_text(TINY, encoding="utf-8")
    arguments, words = ARGUMENTS[name]
    assert_bad_input(ask("search", "x.toml", *arguments), *words)
    assert os.listdir(empty) == ["x.toml"]


def test_study_is_no_search_and_a_search_no_study(empty: Path) -> None:
    (empty / "x.toml").write_text(TINY, encoding="utf-8")
    assert_bad_input(ask("search", "matrix"), "no [search] and no [space]", "harness study")
    assert_bad_input(ask("study", "x.toml"), "search")
    assert os.listdir(empty) == ["x.toml"]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A search on a terminal, then again with a larger budget, in a pipe."""
    folder = tmp_path_factory.mktemp("story")
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    code, shown = pressed(("search", "tiny.toml", "--workers", "0"), folder)
    with inside(folder):
        more = ask("search", "tiny.toml", "--workers", "0", "--trials", "5")
        results, status = ask("results", "tiny", "--format", "json"), ask("status", "tiny.toml")
        printed, best = ask("results", "tiny"), ask("results", "tiny-best")
    return SimpleNamespace(
        folder=folder, code=code, shown=shown, more=more, results=results, status=status, printed=printed, best=best
    )


@pytest.mark.slow
def test_a_terminal_shows_how_many_trials_of_all_are_done(story: SimpleNamespace) -> None:
    assert story.code == 0, story.shown
    assert "━" in story.shown
    assert re.search(r"[0-3]/4 trials, 2 training, validation loss \S+ to \S+; epoch", story.shown)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", story.shown)
    assert re.search(r"epoch [━╸╺]+ *\d+/\d+ \d+ s left", plain), "in the bar"
    assert "4/4 trials" in story.shown
    assert re.search(r"done     4 trials, 8 runs now", story.shown)


@pytest.mark.slow
def test_larger_budget_goes_on_and_tells_each_trial_in_a_line(story: SimpleNamespace) -> None:
    assert (story.more.returncode, story.more.stderr) == (0, "")
    assert not set(story.more.stdout) & CONTROL
    assert re.findall(r"^(\d/5)  trial 00(\d)  validation loss", story.more.stdout, re.M) == [
        (f"{k + 1}/5", str(k)) for k in range(5)
    ]
    assert "done     5 trials, 2 runs now" in story.more.stdout


@pytest.mark.slow
def test_results_are_the_trials_the_best_first_and_a_command(story: SimpleNamespace) -> None:
    rows = json.loads(story.results.stdout)
    values = [row["value"] for row in rows]
    assert len(rows) == 5
    assert values == sorted(values)
    assert f"-P lr={rows[0]['lr']:.4g}"[:9] in story.printed.stdout
    assert "mlflow run . --env-manager local -P " in story.printed.stdout
    assert re.search(r"^best +complete +5$", story.status.stdout, re.M), story.status.stdout
    assert {line.split()[0] for line in story.best.stdout.splitlines() if line.startswith(("base", "best"))} == {"base", "best"}
