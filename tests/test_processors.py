"""`--numerics portable` on other processors, emulated by qemu: the same bits as on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from harness.doctor import BITS

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.qemu
# twenty steps of a run: its first things, and the losses
PROGRAM = """
import json, sys
from harness.numerics import choose
choose(sys.argv[1])
import torch
from harness.architecture import architecture
from harness.config import RunConfig
from harness.data import load
from harness.trace import beginnings
from harness.training import exact_arithmetic
data = load("mnist_5k", "unused")
found = {"capability": torch.backends.cpu.get_cpu_capability()}
for name, changed in json.loads(sys.argv[2]).items():
    config = RunConfig(dataset="mnist_5k", hidden_dim=64, **changed)
    with exact_arithmetic():
        found[name] = beginnings(architecture(config), config, data)
print(json.dumps(found))
"""
CONFIGS = {
    "adam": {"optimizer": "adam", "init": "kaiming"},
    "batchnorm": {"norm": "batchnorm", "act": "gelu", "dropout": 0.2},
    "layernorm": {"norm": "layernorm", "optimizer": "rmsprop", "act": "silu", "init": "orthogonal"},
}


def began(numerics: str, processor: str | None = None) -> dict[str, Any]:
    """The beginnings of a run of each config, on this processor or on an emulated one."""
    emulator = ["qemu-x86_64", "-cpu", processor] if processor else []
    # what chooses kernels is said for this processor: another may not have them
    known = {name: value for name, value in os.environ.items() if name not in (*BITS, "PYTHONPATH", "MLFLOW_TRACKING_URI")}
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])  # the emulator starts the interpreter, not its venv
    done = subprocess.run(
        [*emulator, os.path.realpath(sys.executable), "-c", PROGRAM, numerics, json.dumps(CONFIGS)],
        env={**known, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("processor", ["Haswell", "Nehalem"])  # of Intel, with AVX2 and without AVX
def test_portable_runs_have_the_same_bits_on_another_processor(processor: str) -> None:
    assert began("portable", processor) == began("portable")


def test_native_runs_begin_alike_on_another_processor_and_then_round_otherwise() -> None:
    here, there = began("native"), began("native", "Nehalem")
    assert there["capability"] == "DEFAULT"
    for name in CONFIGS:
        alike = {key for key in here[name] if here[name][key] == there[name][key]}
        assert {"split", "initial_weights", "first_permutation", "first_batch"} <= alike
        assert "first_losses" not in alike
        for a, b in zip(here[name]["first_losses"], there[name]["first_losses"], strict=True):
            assert float.fromhex(a) == pytest.approx(float.fromhex(b), rel=1e-5)
