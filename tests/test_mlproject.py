"""`mlflow run .` for real: in the environment at hand, and in one that MLflow builds from conda.yaml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

ROOT = Path(__file__).resolve().parents[1]
MLFLOW = Path(sys.executable).parent / "mlflow"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, so that stores and environments are its own."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("harness", "experiments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(ROOT / name, copy)
    return copy


def mlflow_run(project: Path, *arguments: str, timeout: float = 300) -> tuple[Run, str]:
    """Run the project; returns the newest run of its store and what was printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = f"{MLFLOW.parent}{os.pathsep}{env['PATH']}"
    env |= {"PATH": path, "MLFLOW_ENV_ROOT": str(project / "envs"), "HOME": str(project)}
    if pyenv := os.environ.get("PYENV_ROOT") or next((str(p) for p in [Path.home() / ".pyenv"] if p.is_dir()), ""):
        env["PYENV_ROOT"] = pyenv
    env.setdefault("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip"))  # not the project's, which would fetch torch again
    dataset = () if any(text.startswith("dataset=") for text in arguments) else ("-P", "dataset=mnist_5k")
    command = [str(MLFLOW), "run", ".", *dataset, *arguments]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    (run,) = client.search_runs(["0"], order_by=["attributes.start_time DESC"], max_results=1)
    return run, done.stdout


@pytest.mark.slow
def test_the_same_command_gives_the_same_bits_in_any_environment(project: Path) -> None:
    first, text = mlflow_run(project, "--env-manager", "local", "-P", "norm=layernorm")
    assert first.info.status == "FINISHED"
    assert first.info.run_id in text
    assert first.info.run_name == "norm=layernorm dataset=mnist_5k-s0"
    again, _ = mlflow_run(project, "--env-manager", "local", "-P", "norm=layernorm", "-P", "lr=1e-2")
    built, _ = mlflow_run(project, "--env-manager", "virtualenv", "-P", "norm=layernorm", timeout=1200)
    assert len({run.info.run_id for run in (first, again, built)}) == 3
    for tag in ("config_digest", "data_digest", "state_digest", "history_digest"):
        assert len({run.data.tags[tag] for run in (first, again, built)}) == 1, tag
    assert again.data.params["lr"] == "1e-2"  # as asked; config.json has the number


@pytest.mark.slow
def test_bad_parameters_fail_the_run_in_one_line(project: Path) -> None:
    with pytest.raises(AssertionError, match=r"norm='layernrm' is not allowed.*nearest: layernorm"):
        mlflow_run(project, "--env-manager", "local", "-P", "norm=layernrm")
    with pytest.raises(AssertionError, match=r"parameter='--nrm' is not allowed.*nearest: --norm"):
        mlflow_run(project, "--env-manager", "local", "-P", "nrm=layernorm")


TINY = """\
name = "tiny"
question = "Does MLflow launch what harness launches?"
design = "list"
seeds = [0, 1]
base = {epochs = 2, max_batches = 4, hidden_dim = 8}
variants = [{name = "plain"}, {name = "rectified", act = "relu"}]
"""


@pytest.mark.slow
def test_study_is_launched_and_what_mlproject_does_not_declare_is_an_override(project: Path) -> None:
    (project / "experiments" / "tiny.toml").write_text(TINY, encoding="utf-8")
    launcher, text = mlflow_run(
        project, "-e", "study", "-P", "study=tiny", "-P", "workers=0", "-P", "epochs=1", "--env-manager", "local"
    )
    assert "done     4 of 4 cells, 4 now" in text
    assert launcher.info.status == "FINISHED"
    assert launcher.info.run_name == "study-tiny"
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    assert re.search(rf"\[tiny\]\(http\S+/experiments/{experiment}/runs\?\S+\)", launcher.data.tags["mlflow.note.content"])
    cells = client.search_runs([experiment], "tags.study = 'tiny'")
    assert sorted(run.info.run_name for run in cells) == ["plain-s0", "plain-s1", "rectified-s0", "rectified-s1"]
    for run in cells:
        assert run.info.status == "FINISHED"
        assert (run.data.params["epochs"], run.data.tags["dataset"]) == ("1", "mnist_5k")
        assert "mlflow.parentRunId" not in run.data.tags, "nested runs collapse, and then there are no charts"
    reports = client.search_runs([experiment], "tags.report = 'tiny'")
    assert [run.info.run_name for run in reports] == ["tiny-report"]
    assert len(client.search_runs([experiment])) == 5


@pytest.mark.slow
def test_bad_study_fails_the_run_in_one_line(project: Path) -> None:
    with pytest.raises(AssertionError, match=r"study='matrx' is not allowed.*nearest: matrix"):
        mlflow_run(project, "-e", "study", "-P", "study=matrx", "--env-manager", "local")


SEARCH = """\
name = "seek"
question = "Does MLflow launch what harness launches?"
seeds = [0, 1]
base = {epochs = 2, max_batches = 4, hidden_dim = 8, validation = 0.2}
search = {trials = 60, batch = 2, final_seeds = [9]}
space = {lr = {low = 1e-3, high = 1.0, log = true}}
"""


@pytest.mark.slow
def test_search_is_launched_and_its_best_setting_is_a_command_that_trains_it(project: Path) -> None:
    (project / "experiments" / "seek.toml").write_text(SEARCH, encoding="utf-8")
    launcher, text = mlflow_run(
        project, "-e", "search", "-P", "study=seek", "-P", "trials=3", "-P", "workers=0", "--env-manager", "local"
    )
    assert "done     3 trials, 6 runs now" in text
    assert (launcher.info.status, launcher.info.run_name) == ("FINISHED", "search-seek")
    assert "[seek](" in launcher.data.tags["mlflow.note.content"]
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiments = [client.get_experiment_by_name(name).experiment_id for name in ("seek", "seek-best")]
    trials = client.search_runs(experiments[:1], "tags.study = 'seek'")
    assert sorted(run.data.tags["trial"] for run in trials) == ["0", "0", "1", "1", "2", "2"]
    assert not [run for run in trials if "mlflow.parentRunId" in run.data.tags]
    command = re.search(r"^ +mlflow run \. --env-manager local (-P .*)$", text, re.M)
    assert command
    run, _ = mlflow_run(project, "--env-manager", "local", *command[1].split())
    (chosen,) = client.search_runs(experiments[1:], "tags.study = 'seek-best' and tags.variant = 'best'")
    for tag in ("config_digest", "state_digest", "history_digest"):
        assert run.data.tags[tag] == chosen.data.tags[tag]


@pytest.mark.slow
def test_bad_search_fails_the_run_in_one_line(project: Path) -> None:
    with pytest.raises(AssertionError, match=r"study='tunning' is not allowed.*nearest: tuning"):
        mlflow_run(project, "-e", "search", "-P", "study=tunning", "--env-manager", "local")
