"""Memory in huge pages: what is asked of the system, what it costs, and that nothing else can tell."""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness import memory
from harness.architecture import architecture
from harness.config import RunConfig
from harness.data import DATASETS, Source, load
from harness.training import Stack

WIDE = 1024  # units: weights and gradients of one lane are 6.5 MB
HUGE = "hg" if Path("/sys/kernel/mm/transparent_hugepage").is_dir() else ""  # as `smaps` has it, where there are such pages


def asked(tensor: Tensor) -> str:
    """Whether huge pages were asked for where a tensor lies: HUGE, or nothing."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split()
        if "-" in head:
            start, end = (int(address, 16) for address in head.split("-"))
            inside = start <= tensor.data_ptr() < end
        elif inside and head == "VmFlags:":
            return "hg" if "hg" in rest else ""
    raise AssertionError(f"no mapping holds {tensor.data_ptr():#x}")


def mapped() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (), (3, 1, 5), (1024, 1025), (2, 3, 700_001)], ids=str)
def test_zeros_are_what_torch_has(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found, wanted = memory.zeros(*shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    assert (found.shape, found.stride(), found.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
    assert torch.equal(found, wanted)
    found.fill_(7)
    assert found.eq(7).all()


def test_large_tensors_begin_with_a_huge_page_and_small_ones_ask_for_none() -> None:
    for large in (memory.zeros(memory.PAGE, dtype=torch.uint8), memory.zeros(3, 1_000_003)):
        assert large.data_ptr() % memory.PAGE == 0
        assert asked(large) == HUGE
    assert asked(memory.zeros(1000)) == ""


def test_two_tensors_share_no_memory() -> None:
    one, other = memory.zeros(3, 1_000_003), memory.zeros(3, 1_000_003)
    one.fill_(1)
    assert not other.any()


def test_memory_stays_for_as_long_as_any_part_is_in_use_and_goes_then() -> None:
    before, size = mapped(), 2**28
    part = memory.zeros(4, size // 16)[2, 5:9]
    gc.collect()
    assert mapped() - before >= size
    part.fill_(3)
    assert part.tolist() == [3] * 4
    del part
    assert mapped() - before < size // 2


def test_more_than_there_is_says_so() -> None:
    with pytest.raises(MemoryError, match="Cannot allocate memory"):
        memory.zeros(2**50)


def test_weights_gradients_and_moments_of_a_stack_lie_in_huge_pages() -> None:
    config = RunConfig(dataset="mnist_5k", hidden_dim=WIDE, optimizer="adam")
    stack = Stack.of(architecture(config), [config], load("mnist_5k", ""))
    assert len(stack.kept) == 2
    for tensor in (stack.network.weights, stack.network.gradients, *stack.kept):
        assert asked(tensor) == HUGE


def idx(values: bytes, *shape: int) -> bytes:
    """An IDX file of bytes."""
    return bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape) + values


def test_images_of_a_dataset_lie_in_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = os.urandom(4000 * 784)
    files = {
        "train-images-idx3-ubyte": idx(images, 4000, 28, 28),
        "train-labels-idx1-ubyte": idx(bytes(4000), 4000),
        "t10k-images-idx3-ubyte": idx(bytes(784), 1, 28, 28),
        "t10k-labels-idx1-ubyte": idx(bytes(1), 1),
    }
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setitem(DATASETS, "kmnist", Source(digests, mean=0.5, std=0.3, torchvision="KMNIST"))  # type: ignore[arg-type]
    pixels = load("kmnist", str(tmp_path)).train.pixels
    assert pixels.numpy().tobytes() == images
    assert asked(pixels) == HUGE
