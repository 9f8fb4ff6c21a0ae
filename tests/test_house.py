"""The house: who may import whom, what is never called, and that a light import stays light."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "harness"
# a module imports from rows above its own, or from its left in its own row
ROWS = (
    (
        "errors",
        "numerics",
        "limits",
        "layerlist",
        "config",
        "results",
        "sources",
        "studyfile",
        "study",
        "sequential",
        "ranges",
        "space",
        "pruning",
        "survey",
        "progress",
        "interrupts",
        "imports",
        "nursery",
        "chart",
    ),
    (
        "seeding",
        "modules",
        "sparse",
        "components.layers",
        "components.inits",
        "components.activations",
        "components.norms",
        "components.optimizers",
        "locks",
        "memory",
        "mirrors",
        "data",
    ),
    (
        "architecture",
        "network",
        "minibatches",
        "health",
        "training",
        "profiling",
        "checkpoint",
        "trace",
        "record",
        "histograms",
        "drawing",
        "plots",
        "journal",
        "outage",
        "storefile",
        "store",
        "delivery",
        "loggedmodel",
        "tracking",
        "intervals",
        "blocks",
        "families",
        "variance",
        "contrasts",
        "stability",
        "separation",
        "conclusions",
        "analysis",
        "launched",
        "frames",
        "canvas",
        "forest",
        "curves",
        "vitals",
        "distributions",
        "interactions",
        "figures",
        "trials",
        "ranking",
        "scene",
        "landscape",
    ),
    (
        "plan",
        "ending",
        "recorder",
        "launch",
        "worker",
        "engine",
        "born",
        "stacks",
        "origin",
        "tables",
        "page",
        "report",
        "findings",
        "outlook",
        "cells",
        "driver",
    ),
    ("proposals", "asked", "search", "verification", "doctor"),
    ("screen", "options", "commands", "cli", "__main__"),
)
ORDER = [name for row in ROWS for name in row]
PACKAGES = {"__init__", "components.__init__"}  # no rooms but doors: they import only when asked
ALONE = {
    "mlflow": {"store", "loggedmodel", "tracking", "born"},
    "matplotlib": {
        *("plots", "canvas", "forest", "curves", "vitals", "distributions", "interactions", "figures"),  # of a run, of a study
        "landscape",  # of a search
    },
    "jinja2": {"page"},
    "safetensors": {"checkpoint"},
    "click": {"options", "commands", "cli"},
    "rich": {"screen"},
    "distributed": {"engine"},
    "optuna": {"proposals", "scene", "landscape"},
    "statsmodels": {"variance", "born"},
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts)


FILES = {module_name(path): path for path in sorted(HOUSE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def running(node: ast.AST) -> list[ast.AST]:
    """All nodes that exist when the program runs: blocks for type checkers are left out."""
    found = [node]
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            found += [below for other in child.orelse for below in running(other)]
        else:
            found += running(child)
    return found


def imports(name: str) -> set[str]:
    """Dotted names of all that a module imports when it runs, harness's own without the package's name."""
    found = set()
    for node in running(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            base = node.module or ""
            inside = {
                f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}".removeprefix("harness.") in FILES
            }
            found |= inside or {base}
    return {item.removeprefix("harness.") for item in found}


def python(code: str, timeout: float = 60) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_has_its_place_on_the_map() -> None:
    assert set(FILES) - PACKAGES == set(ORDER)


def test_page_of_the_architecture_has_the_same_map() -> None:
    rows = re.findall(r"^\| \d \| (.*?) \|", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    for row, told in zip(ROWS, rows, strict=True):
        names = []
        for name in re.findall("`([^`]+)`", told):
            folder, brace, inside = name.partition("{")
            names += [folder + part for part in inside.rstrip("}").split(", ")] if brace else [name]
        assert names == list(row)


@pytest.mark.parametrize("name", ORDER)
def test_module_imports_only_from_lower_layers_or_its_left(name: str) -> None:
    below = set(ORDER[: ORDER.index(name)])
    own = {item for item in imports(name) if item in FILES}
    assert own <= below, f"{name} reaches up to {sorted(own - below)}"


def test_map_is_read_from_real_imports() -> None:
    assert {"errors", "config", "tracking", "training"} <= imports("launch")
    assert "errors" in imports("config")
    assert "mlflow" in {item.partition(".")[0] for item in imports("store")}


@pytest.mark.parametrize("library", ALONE)
def test_only_its_own_modules_speak_to(library: str) -> None:
    speakers = {name for name in FILES if any(item.partition(".")[0] == library for item in imports(name))}
    assert speakers == ALONE[library]


@pytest.mark.parametrize("library", ["torch", "mlflow", "pandas", "matplotlib"])
def test_values_of_the_lowest_row_need_no_heavy_library(library: str) -> None:
    for name in ROWS[0]:
        assert library not in {item.partition(".")[0] for item in imports(name)}, name


def test_training_knows_no_store() -> None:
    for name in (*ROWS[1], "architecture", "network", "minibatches", "health", "training"):
        assert not imports(name) & {"store", "tracking", "record", "plots", "launch"}, name


def test_nothing_imports_the_command_line_but_its_door() -> None:
    for name, door in {"cli": "__main__", "commands": "cli"}.items():
        assert [other for other in FILES if name in imports(other)] == [door]


def test_no_module_is_a_drawer() -> None:
    for name in FILES:
        assert not set(name.split(".")) & {"utils", "util", "common", "helpers", "misc"}, name


def test_house_is_flat() -> None:
    assert {path.parent.relative_to(HOUSE).as_posix() for path in FILES.values()} == {".", "components"}


def test_nothing_imports_what_does_something_by_being_imported() -> None:
    assert [name for name in FILES if "born" in imports(name)] == []


def test_nothing_happens_because_a_module_was_imported() -> None:
    """No variable of the process is set and no line printed by the statements of a module."""
    for name, tree in TREES.items():
        done = {ast.unparse(node) for statement in tree.body for node in top_level(statement)}
        assert not {line for line in done if "os.environ" in line or line.startswith("print(")}, name


def top_level(node: ast.stmt) -> list[ast.AST]:
    """What a statement of a module does at once: not the bodies of functions and classes."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.Import | ast.ImportFrom):
        return []
    if is_type_checking(node) or ast.unparse(node).startswith("if __name__"):
        return []
    return [child for child in ast.walk(node) if isinstance(child, ast.Call | ast.Assign | ast.Delete)]


def test_import_of_harness_loads_nothing_heavy() -> None:
    loaded = json.loads(python("import harness, sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert "harness" in loaded
    assert not {"torch", "mlflow", "pandas", "numpy", "matplotlib"} & set(loaded)


def test_driver_of_a_study_waits_for_no_import_that_its_workers_draw_with() -> None:
    code = "import harness.driver, harness.figures, harness.page, sys; print({'matplotlib', 'statsmodels'} & set(sys.modules))"
    assert python(code) == "set()\n"


def test_config_is_made_and_read_back_without_torch() -> None:
    code = (
        "import harness, sys; c = harness.RunConfig(act='relu'); assert type(c)(**c.text()) == c; "
        "print(sorted({'torch', 'mlflow', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    assert python(code) == "[]\n"


def test_every_public_name_resolves() -> None:
    assert harness.__all__ == sorted(set(harness.__all__))
    for name in harness.__all__:
        assert callable(getattr(harness, name)), name
        assert getattr(harness, name).__doc__, name
    assert set(harness.__all__) <= set(dir(harness))


def test_public_names_are_those_that_type_checkers_see() -> None:
    blocks = [node for node in TREES["__init__"].body if is_type_checking(node)]
    seen = {a.asname for b in blocks for n in ast.walk(b) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == set(harness.__all__)


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = harness.trian
