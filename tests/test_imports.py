"""No garbage is collected while libraries are imported, and all of it afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from harness.imports import uncollected


def test_what_was_made_meanwhile_is_not_looked_through_again() -> None:
    with uncollected():
        assert not gc.isenabled()
        kept: list[list[int]] = [[] for _ in range(1000)]
    try:
        assert gc.isenabled()
        assert gc.get_freeze_count() >= len(kept)
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("before", [True, False])
def test_an_import_that_fails_leaves_collection_as_it_was(before: bool) -> None:
    (gc.enable if before else gc.disable)()
    try:
        with pytest.raises(ImportError), uncollected():
            raise ImportError
        assert gc.isenabled() == before
    finally:
        gc.enable()
        gc.unfreeze()


ONE = ("--epochs", "1", "--max-batches", "1", "--dataset", "mnist_5k")
COMMANDS = [  # with the last module that they import before they begin
    ("train", "harness.profiling", *ONE),
    ("study", "harness.outlook", "matrix", "--dry-run", *ONE),
    ("search", "harness.search", "tuning", "--trials", "1", "--seeds", "0", "--workers", "0", *ONE),
    ("verify", "harness.verification", "--study", "matrix"),
    ("status", "harness.outlook", "matrix", "--set", "dataset=mnist_5k"),
    ("results", "harness.frames", "matrix"),
    ("report", "harness.store", "matrix"),
]


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_command_collects_none_between_its_first_import_and_its_last(words: tuple[str, ...], tmp_path: Path) -> None:
    command, last, *more = words
    code = f"""
import atexit, gc, sys
from harness.cli import run

collected = []
gc.callbacks.append(lambda phase, info: collected.append("torch" in sys.modules and "{last}" not in sys.modules))
atexit.register(lambda: print("while importing", sum(collected), "on", gc.isenabled(), "kept", gc.get_freeze_count() > 10**5))
run()
"""
    done = subprocess.run([sys.executable, "-c", code, command, *more], capture_output=True, text=True, cwd=tmp_path)
    assert "while importing 0 on True kept True" in done.stdout
