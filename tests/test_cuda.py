"""On a GPU: the same start and the same order as on the CPU, and the same bits from one run to the next."""

from __future__ import annotations

import pytest

from harness.architecture import architecture
from harness.checkpoint import state_digest
from harness.config import RunConfig
from harness.data import load
from harness.results import EpochRecord
from harness.training import Stack, exact_arithmetic, train

CONFIG = RunConfig(init="kaiming", norm="batchnorm", optimizer="adam", lr=0.001, dropout=0.2, dataset="mnist_5k", epochs=2)


def trained(device: str) -> tuple[list[EpochRecord], str]:
    """The records and the final state digest of three lanes."""
    configs = [CONFIG.replace(device=device, seed=seed) for seed in range(3)]
    with exact_arithmetic():
        stack = Stack.of(architecture(CONFIG), configs, load("mnist_5k", "unused").to(device))
        return list(train(stack)), state_digest(stack.network.state(2))


@pytest.mark.cuda
def test_a_gpu_starts_where_the_cpu_starts_and_ends_near_it() -> None:
    (there, _), (here, _) = trained("cuda"), trained("cpu")
    for gpu, cpu in zip(there, here, strict=True):
        assert (gpu.lane, gpu.epoch) == (cpu.lane, cpu.epoch)
        assert dict(gpu.curves) == pytest.approx(dict(cpu.curves), rel=1e-4 if gpu.epoch == 0 else 0.05)


@pytest.mark.cuda
def test_a_gpu_gives_the_same_bits_twice() -> None:
    assert trained("cuda")[1] == trained("cuda")[1]
