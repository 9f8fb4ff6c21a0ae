"""Docs are executed: commands, tables, links and every block of `docs/extending.md`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from harness import cli, engine, options, outage, space
from harness.config import CHOICES, FIELDS, RunConfig, choices
from harness.data import load
from harness.layerlist import read
from harness.space import Search
from harness.study import Study

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("experiments/**/*.md")]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def commands(page: Path) -> list[str]:
    """The `harness` and `mlflow run` commands of a page, comments off."""
    lines = re.findall(r"^ {4}((?:harness|mlflow run) .*?)(?:  +#.*)?$", page.read_text(encoding="utf-8"), re.M)
    inline = re.findall(r"`((?:harness|mlflow run) [^`]*)`", page.read_text(encoding="utf-8"))
    return [*lines, *inline]


def parsed(arguments: list[str]) -> None:
    """Parse a command line as `harness` does, without running it."""
    if arguments == ["--help"]:
        return
    command = cli.cli.get_command(click.Context(cli.cli), arguments[0])
    assert command is not None, arguments
    rest = [argument for argument in arguments[1:] if argument != "--help"]
    given = command.make_context(arguments[0], rest, token_normalize_func=options.dashes).params
    values = {name: text for name, text in given.items() if name in FIELDS and text is not None}
    if (given.get("study") or "").endswith(".toml"):
        RunConfig(**values)
    elif given.get("study"):
        space.read(given["study"].removesuffix("-best")).override(seeds=given.get("seeds"), **values)
    else:
        RunConfig(**values)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_the_docs_are_commands(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line)
        if words[0] == "harness":
            parsed(words[1:])
        else:
            pairs = dict(words[i + 1].split("=") for i, word in enumerate(words) if word == "-P")
            entry = words[words.index("-e") + 1] if "-e" in words else "train"
            command = [entry, *(pairs.pop(name) for name in ("study", "run_id") if name in pairs)]
            parsed([*command, *(f"--{name}={value}" for name, value in pairs.items() if name != "name")])


def test_there_are_commands_to_check() -> None:
    assert len(commands(ROOT / "README.md")) >= 8


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            lines = there.read_text(encoding="utf-8").splitlines()
            assert anchor in [line.lstrip("# ").lower().replace(" ", "-") for line in lines if line.startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_commands_name_are_there(page: Path) -> None:
    for path in re.findall(r"experiments/networks/\w+\.json", page.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file()


def test_readme_lists_every_parameter_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \| .+ \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M))
    assert rows == RunConfig().text()
    assert list(rows) == list(FIELDS)


@pytest.mark.parametrize("field", CHOICES)
def test_readme_lists_every_level(field: str) -> None:
    row = re.search(rf"^\| `{field}` .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert row
    assert ", ".join(choices(field)) in row[0]


def test_readme_has_two_set_up_commands_for_ci_to_run() -> None:
    found = re.findall(r"^    pip install.*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert len(found) == 2
    assert "mlflow run . --env-manager local -P norm=layernorm" in found[0]
    assert "pytest" in found[1]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "networks").glob("*.json")), ids=lambda path: path.stem)
def test_networks_of_the_notebook_are_layer_lists(path: Path) -> None:
    linear = [layer.size for layer in read(path).layers if layer.type == "linear"]
    assert linear == ([256, 128, 64] if path.stem.endswith("_meant") else [256, 128])


# commands that repeat a promise, and the waits that the pages promise

PYTEST = re.compile(r"(?:^ {4}|`)(?:\w+=\S+ )*(?:python -m )?pytest( [^`\n#]*)", re.M)
COUNTED = re.compile(r"\| (\d+) (?:kinds|sizes|places|ways|items|cases)\b[^|]*\| `pytest ([^`\n]+)` \|$", re.M)
COLLECT = """
import json, sys
import pytest
class Count:
    def pytest_collection_finish(self, session):
        self.items = len(session.items)
found = {}
for line, words in json.loads(sys.argv[1]).items():
    count = Count()
    count.items = 0
    pytest.main([*words, "--collect-only", "-qq", "-p", "no:cacheprovider"], plugins=[count])
    found[line] = count.items
print(json.dumps(found))
"""


@pytest.mark.slow
def test_commands_of_tests_in_the_docs_select_some_and_as_many_as_is_said() -> None:
    """All in one process, so that torch and MLflow are imported once."""
    lines = {line.strip() for page in PAGES for line in PYTEST.findall(page.read_text(encoding="utf-8"))} - {""}
    assert len(lines) > 25
    asked = {line: shlex.split(line) for line in sorted(lines) if "tests/" in line}
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, json.dumps(asked)], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [line for line, items in found.items() if not items] == []
    counted = COUNTED.findall((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
    assert len(counted) == 7
    assert [(line, items, found[line]) for items, line in counted if found[line] != int(items)] == []


def test_waits_that_the_docs_promise_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert f"without a sign of life for {engine.SILENCE} s it is killed" in text
    request = int(outage.IMPATIENT["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    tries = 1 + int(outage.IMPATIENT["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
    assert f"at most {tries * request} s (two tries of {request} s by HTTP" in text
    assert f"asked every {outage.EVERY} s for at most {outage.SHORT} s" in text
    assert outage.WAIT == 60
    assert "At its end a run waits a minute" in text


# docs/extending.md

BLOCK = re.compile(r"(Above|A row of) `(\w+)` in `([\w/.]+)`[^`]*?(?:`[^`]*`[^`]*?)?:\n\n```python\n(.*?)```", re.S)


def blocks() -> list[tuple[str, str, str, str]]:
    return BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))


def inserted(source: str, where: str, table: str, block: str) -> str:
    """A module's source with a block above a table, or as its first row."""
    opening = re.search(rf"^{table}: .*{{$", source, re.M)
    assert opening
    at = opening.start() if where == "Above" else opening.end()
    return f"{source[:at]}\n{block}\n\n{source[at:]}" if where == "Above" else f"{source[:at]}\n{block.rstrip()}{source[at:]}"


def my_digits(folder: Path) -> list[str]:
    """Four IDX files in `MyDigits/raw`, 300 and 100 of the real digits, and their SHA-256 in order."""
    data, digests = load("mnist_5k", "unused"), []
    raw = folder / "MyDigits" / "raw"
    raw.mkdir(parents=True)
    for part, split, n in (("train", data.train, 300), ("t10k", data.test, 100)):
        images = (split.images[:n].numpy() * 255).round().astype(np.uint8).tobytes()
        labels = split.labels[:n].numpy().astype(np.uint8).tobytes()
        for name, content in (
            (f"{part}-images-idx3-ubyte", b"".join(i.to_bytes(4, "big") for i in (2051, n, 28, 28)) + images),
            (f"{part}-labels-idx1-ubyte", b"".join(i.to_bytes(4, "big") for i in (2049, n)) + labels),
        ):
            (raw / name).write_bytes(content)
            digests.append(hashlib.sha256(content).hexdigest())
    return digests


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with every block of the page in its place."""
    copy = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "harness", copy / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    digests = my_digits(copy / "digits")
    for where, table, file, block in blocks():
        for digest in digests:
            block = block.replace('"SHA256"', f'"{digest}"', 1)
        path = copy / file
        path.write_text(inserted(path.read_text(encoding="utf-8"), where, table, block), encoding="utf-8")
    return copy


def run(copy: Path, *arguments: str) -> str:
    """Run Python with the extended package in place of the real one."""
    env = {**os.environ, "PYTHONPATH": str(copy), "MLFLOW_TRACKING_URI": f"sqlite:///{copy}/store.db"}
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_page_shows_how_to_add_one_of_each_in_under_ten_lines() -> None:
    tables = [table for _, table, _, _ in blocks()]
    assert sorted(set(tables)) == ["ACTIVATIONS", "DATASETS", "INITS", "NORMS", "OPTIMIZERS"]
    assert len(tables) == (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").count("```python")
    for table in set(tables):
        assert sum(len(block.splitlines()) for _, t, _, block in blocks() if t == table) < 10


def test_added_levels_are_in_the_help(extended: Path) -> None:
    text = run(extended, "-m", "harness", "train", "--help")
    for name in ("mish", "groupnorm", "kaiming_uniform", "signsgd", "my_digits"):
        assert name in text


def test_added_levels_train_and_are_recorded(extended: Path) -> None:
    levels = ["--act", "mish", "--norm", "groupnorm", "--init", "kaiming_uniform", "--optimizer", "signsgd", "--lr", "0.001"]
    data = ["--dataset", "my_digits", "--data-dir", str(extended / "digits"), "--epochs", "3"]
    text = run(extended, "-m", "harness", "train", *levels, *data)
    accuracy = re.search(r"^test +loss .* accuracy ([\d.]+)$", text, re.M)
    assert accuracy
    assert float(accuracy[1]) > 0.3  # of ten classes


LANES = """
import sys
from harness.architecture import architecture
from harness.checkpoint import state_digest
from harness.config import RunConfig
from harness.data import load
from harness.training import Stack, exact_arithmetic, train

def digests(configs):
    stack = Stack.of(architecture(configs[0]), configs, load("mnist_5k", "unused"))
    list(train(stack))
    return [state_digest(stack.network.state(lane)) for lane in range(len(configs))]

levels = dict(act="mish", norm="groupnorm", init="kaiming_uniform", optimizer="signsgd", lr=0.001)
configs = [RunConfig(**levels, batch_size=37, hidden_dim=50, max_batches=5, epochs=2, seed=seed) for seed in range(3)]
with exact_arithmetic():
    assert digests(configs) == [digest for config in configs for digest in digests([config])]
"""


def test_added_levels_are_exact_as_lanes(extended: Path) -> None:
    run(extended, "-c", LANES)


@pytest.mark.slow
def test_python_in_the_readme_runs(tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S))
    assert "groupby" in code
    assert "harness.train" in code
    *lines, last = code.strip().splitlines()
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | {"PYTHONPATH": str(ROOT)}
    script = "\n".join([*lines, f"table = {last}", "print(table.to_csv())"])
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    row = done.stdout.strip().splitlines()[-1].split(",")
    assert row[:3] == ["mnist_5k", "norm=layernorm dataset=mnist_5k", "1"]
    assert row[-1] == "0"  # diverged


def test_study_of_the_extending_page_is_one(tmp_path: Path) -> None:
    whole, variants = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.S)
    assert len(Study.parse(whole, tmp_path / "widths.toml").cells) == 18
    listed = whole[: whole.index("[factors]")].replace('"factorial"', '"list"') + variants
    assert [row.name for row in Study.parse(listed, tmp_path / "widths.toml").rows] == ["small and slow"]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_has_its_row_with_question_command_and_result(path: Path) -> None:
    asked, page = space.read(path), (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    command, study = ("search", asked.study) if isinstance(asked, Search) else ("study", asked)
    assert study.name == path.stem
    assert study.question in page
    assert f"`harness {command} {study.name}`" in page
    assert study.expect
