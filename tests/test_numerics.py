"""`--numerics portable`: every library takes its cap, in the process that asks and in those that it starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from harness.numerics import CAPS

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import json, subprocess, sys
from harness.numerics import choose, current
choose(sys.argv[1])
import numpy, torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
ask = "from harness import numerics; print(numerics.current())"
child = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
print(json.dumps({
    "aten": torch.backends.cpu.get_cpu_capability(),
    "numpy": [name for name in __cpu_dispatch__ if __cpu_features__[name]],
    "here": current(),
    "child": child.stdout.strip(),
}))
"""


def chosen(numerics: str, **env: str) -> dict[str, Any]:
    known = {name: value for name, value in os.environ.items() if name not in CAPS}
    command = [sys.executable, "-c", PROGRAM, numerics]
    done = subprocess.run(
        command, env={**known, "PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_portable_caps_what_libraries_choose_from() -> None:
    assert chosen("portable") == {"aten": "DEFAULT", "numpy": [], "here": "portable", "child": "portable"}


@pytest.mark.parametrize("name", CAPS)
def test_with_one_cap_less_it_is_not_portable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import numerics

    for cap, value in CAPS.items():
        monkeypatch.setenv(cap, value)
    assert (numerics.current(), numerics.option()) == ("portable", " --numerics portable")
    monkeypatch.delenv(name)
    assert (numerics.current(), numerics.option()) == ("native", "")


@pytest.mark.slow
def test_command_that_a_portable_run_tells_repeats_it(own_store: str, tmp_path: Path) -> None:
    def trained(*arguments: str) -> tuple[str, str]:
        """The command told by the newest run and its digest."""
        env = {name: value for name, value in os.environ.items() if name not in CAPS} | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, env=env, check=True, stdout=subprocess.DEVNULL)
        run = MlflowClient(own_store).search_runs(["1"], max_results=1)[0]
        told = re.search(r"\*\*Again\*\*: `(.*)`", run.data.tags["mlflow.note.content"])
        assert told
        return told[1], run.data.tags["state_digest"]

    short = ("--dataset", "mnist_5k", "--epochs", "1", "--max-batches", "20")
    told, first = trained("harness", "train", *short, "--numerics", "portable")
    assert trained(*shlex.split(told)) == (told, first)


def test_every_cap_is_told_in_the_docs_and_recorded() -> None:
    from harness.record import VARIABLES

    text = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    assert [name for name in CAPS if f"`{name}" not in text or name not in VARIABLES] == []
    assert set(CAPS) == {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "NPY_DISABLE_CPU_FEATURES"}
