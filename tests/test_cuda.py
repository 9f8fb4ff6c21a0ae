"""On a GPU: the same start and order as on the CPU, the same bits from one run to the next and in any stack, and verified."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.architecture import architecture
from harness.checkpoint import state_digest
from harness.config import RunConfig
from harness.data import load
from harness.results import EpochRecord
from harness.stacks import MOST_LANES
from harness.training import Stack, exact_arithmetic, train

CONFIG = RunConfig(init="kaiming", norm="batchnorm", optimizer="adam", lr=0.001, dropout=0.2, dataset="mnist_5k", epochs=2)


def trained(device: str, lanes: int = 3, one_seed: bool = False, **changes: Any) -> tuple[list[EpochRecord], list[str]]:
    """The records of a stack and the final state digest of each lane, which have seeds of their own or else other lrs."""
    own = ({"lr": CONFIG.lr * (lane + 1)} if one_seed else {"seed": lane} for lane in range(lanes))
    configs = [CONFIG.replace(device=device, **lane, **changes) for lane in own]
    with exact_arithmetic():
        stack = Stack.of(architecture(configs[0]), configs, load("mnist_5k", "unused").to(device))
        return list(train(stack)), [state_digest(stack.network.state(lane)) for lane in range(lanes)]


@pytest.mark.cuda
def test_a_gpu_starts_where_the_cpu_starts_and_ends_near_it() -> None:
    (there, _), (here, _) = trained("cuda"), trained("cpu")
    for gpu, cpu in zip(there, here, strict=True):
        assert (gpu.lane, gpu.epoch) == (cpu.lane, cpu.epoch)
        assert dict(gpu.curves) == pytest.approx(dict(cpu.curves), rel=1e-4 if gpu.epoch == 0 else 0.05)


@pytest.mark.cuda
def test_a_gpu_gives_the_same_bits_twice() -> None:
    assert trained("cuda")[1] == trained("cuda")[1]


@pytest.mark.cuda
@pytest.mark.parametrize("hidden_dim", [1, 10, 64, 128, 512, 2048])
@pytest.mark.parametrize("norm", ["none", "batchnorm", "layernorm_scratch"])
@pytest.mark.parametrize("one_seed", [False, True])
def test_a_lane_of_any_stack_on_a_gpu_has_the_bits_of_the_run_alone(hidden_dim: int, norm: str, one_seed: bool) -> None:
    shape = {"hidden_dim": hidden_dim, "norm": norm, "epochs": 1, "max_batches": 40}
    together = [trained("cuda", lanes, one_seed, **shape)[1] for lanes in (1, 2, 3, 8, MOST_LANES - 1, MOST_LANES)]
    assert {digests[0] for digests in together} == {together[0][0]}
    assert together[-1][:-1] == together[-2]


@pytest.mark.cuda
def test_a_study_on_a_gpu_is_verified_run_by_run(tmp_path: Path) -> None:
    study = tmp_path / "pair.toml"
    study.write_text(
        'name = "pair"\nquestion = "Is a lane verified alone?"\ndesign = "list"\nseeds = [0, 1, 2]\n'
        'base = {device = "cuda", dataset = "mnist_5k", epochs = 2}\n'
        'variants = [{name = "plain"}, {name = "normed", norm = "batchnorm", optimizer = "adam", lr = 0.001}]\n',
        encoding="utf-8",
    )

    def harness(*arguments: str) -> str:
        command = [sys.executable, "-m", "harness", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "6 of 6 cells" in harness("study", str(study), "--workers", "2")
    assert re.search(r"6 of 6 bit-exact", harness("verify", "--study", "pair", "--sample", "6"))
