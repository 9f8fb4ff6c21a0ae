"""What is declared is what is used is what is recorded: MLproject, conda.yaml, pyproject.toml and RunConfig agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.core import Command, Option
from test_config import DEFAULTS as TABLE

from harness.cli import cli, status, study, train
from harness.config import FIELDS, RunConfig
from harness.study import Study

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
ENTRIES: dict[str, dict[str, Any]] = PROJECT["entry_points"]
MAIN = ENTRIES["main"]
CONDA: dict[str, Any] = yaml.safe_load((ROOT / "conda.yaml").read_text(encoding="utf-8"))
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_config_is_the_table_of_the_readme() -> None:
    assert RunConfig().text() == TABLE
    assert list(RunConfig().text()) == list(TABLE)


def test_mlproject_declares_the_fields_in_order_with_their_canonical_defaults() -> None:
    declared = {name: parameter["default"] for name, parameter in MAIN["parameters"].items()}
    assert declared == RunConfig().text()
    assert list(declared) == list(FIELDS)


@pytest.mark.parametrize("entry", ENTRIES)
def test_mlproject_parameters_are_strings_and_never_empty(entry: str) -> None:
    for name, parameter in ENTRIES[entry]["parameters"].items():
        assert set(parameter) == {"type", "default"}, name
        assert parameter["type"] == "string", name
        assert isinstance(parameter["default"], str), f"{name}: YAML reads its default as a {type(parameter['default'])}"
        assert parameter["default"], name


@pytest.mark.parametrize("entry", ENTRIES)
def test_mlproject_declares_what_its_command_uses(entry: str) -> None:
    """MLflow puts what is declared into its place, and hangs the rest on to the end."""
    assert sorted(re.findall(r"{(\w+)}", ENTRIES[entry]["command"])) == sorted(ENTRIES[entry]["parameters"])


def test_mlproject_hands_on_every_parameter_under_its_own_option() -> None:
    words = MAIN["command"].split()
    assert words[:4] == ["python", "-m", "harness", "train"]
    pairs = dict(zip(words[4::2], words[5::2], strict=True))
    assert pairs == {f"--{name.replace('_', '-')}": f"{{{name}}}" for name in FIELDS}
    assert len(words) == 4 + 2 * len(FIELDS)


def test_mlproject_launches_a_study_with_the_defaults_of_the_command_line() -> None:
    declared = {name: parameter["default"] for name, parameter in ENTRIES["study"]["parameters"].items()}
    assert declared == {"study": "matrix", "workers": "auto"}
    words = ENTRIES["study"]["command"].split()
    assert words == ["python", "-m", "harness", "study", "{study}", "--workers", "{workers}"]
    given = study.make_context("study", [declared["study"]]).params
    assert given["workers"] == declared["workers"]
    assert Study.read(declared["study"]).name == declared["study"]


def test_mlproject_names() -> None:
    assert (PROJECT["name"], PROJECT["conda_env"]) == ("harness", "conda.yaml")
    assert (ROOT / PROJECT["conda_env"]).is_file()


def test_command_line_has_an_option_for_every_field() -> None:
    options = {option.name: option for option in train.params if isinstance(option, Option)}
    assert [name for name in options if name in FIELDS] == list(FIELDS)
    assert set(options) - set(FIELDS) == {"resume", "no_health", "profile", "numerics"}
    given = train.make_context("train", []).params
    for name in FIELDS:
        assert options[name].opts == [f"--{name.replace('_', '-')}"]
        assert given[name] is None, f"{name}: a default of its own beside RunConfig's"
        assert f"[{TABLE[name]}]" in (options[name].help or "")


@pytest.mark.parametrize("command", [study, status], ids=["study", "status"])
def test_studies_take_every_parameter_as_an_override(command: Command) -> None:
    """Without defaults: what is not given is the study's."""
    options = {option.name: option for option in command.params if isinstance(option, Option)}
    assert [name for name in options if name in FIELDS] == list(FIELDS)
    assert {"seeds", "assigned"} <= set(options)
    given = command.make_context("any", ["matrix"]).params
    for name in FIELDS:
        assert options[name].opts == [f"--{name.replace('_', '-')}"]
        assert given[name] is None
        assert f"[{TABLE[name]}]" not in (options[name].help or "")


def test_commands_of_mlproject_exist() -> None:
    commands = [entry["command"].split()[3] for entry in PROJECT["entry_points"].values()]
    assert set(commands) <= set(cli.commands)


def test_environment_has_the_pins_of_the_package() -> None:
    pip = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    assert sorted(pip) == sorted(PYPROJECT["project"]["dependencies"])


def test_environment_names_a_python_that_can_be_fetched_and_that_the_package_allows() -> None:
    assert "python=3.11.7" in CONDA["dependencies"]
    assert PYPROJECT["project"]["requires-python"].startswith(">=3.11")
    assert "pip" in CONDA["dependencies"]


@pytest.mark.parametrize("package", ["torch", "torchvision", "numpy", "mlflow"])
def test_what_moves_numbers_or_tables_is_pinned_exactly(package: str) -> None:
    (pin,) = (p for p in PYPROJECT["project"]["dependencies"] if re.split(r"[=<>]", p)[0] == package)
    assert re.fullmatch(rf"{package}==\d+\.\d+\.\d+", pin)


def test_command_is_installed_under_its_name() -> None:
    assert PYPROJECT["project"]["scripts"] == {"harness": "harness.__main__:run"}
    assert PYPROJECT["project"]["name"] == "harness"
