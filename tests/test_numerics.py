"""`--numerics portable`: every library takes its cap, in the process that asks and in those that it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
    assert numerics.current() == "portable"
    monkeypatch.delenv(name)
    assert numerics.current() == "native"


def test_every_cap_is_told_in_the_docs_and_recorded() -> None:
    from harness.record import VARIABLES

    text = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    assert [name for name in CAPS if f"`{name}" not in text or name not in VARIABLES] == []
    assert set(CAPS) == {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "NPY_DISABLE_CPU_FEATURES"}
