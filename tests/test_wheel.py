"""An installed wheel is whole: its studies come with it and are found from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, cwd: Path, **env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(command, cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel of a copy of the project, and nothing else of it."""
    place = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", "__pycache__", "build", "*.egg-info", "mlruns", "mlflow.db*", ".venv", ".*_cache")
    shutil.copytree(ROOT, place / "source", ignore=ignored)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", "dist", "./source", cwd=place)
    (wheel,) = (place / "dist").glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", "site", str(wheel), cwd=place)
    shutil.rmtree(place / "source")
    return place / "site"


@pytest.mark.slow
@pytest.mark.parametrize(
    "study",
    sorted(path.stem for path in (ROOT / "experiments").glob("*.toml") if "[search]" not in path.read_text(encoding="utf-8")),
)
def test_study_of_an_installed_wheel_is_found_from_any_folder(study: str, installed: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "harness", "study", study, "--dry-run", "--dataset", "mnist_5k", "--seeds", "0")
    out = run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert "cells to train" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_installed_wheel_has_the_searches_and_the_templates_of_reports(installed: Path, tmp_path: Path) -> None:
    read = "from harness.space import Search; print(Search.read('tuning').name)"
    assert run(sys.executable, "-c", read, cwd=tmp_path, PYTHONPATH=str(installed)) == "tuning\n"
    assert {path.name for path in (installed / "harness" / "templates").iterdir()} == {"report.html", "report.md"}


@pytest.mark.slow
def test_workers_of_an_installed_wheel_train_a_study(installed: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "harness", "study", "regularization", "--dataset", "mnist_5k", "--seeds", "0")
    out = run(*command, "--epochs", "1", "--max-batches", "3", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "12 of 12 cells" in out
