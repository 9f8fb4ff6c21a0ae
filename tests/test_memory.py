"""Memory in huge pages: what is asked of the system, and that nothing else can tell.

Of Linux, built with transparent huge pages; whether it gives any, its settings say, and no test asks.
"""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from harness import memory
from harness.architecture import architecture
from harness.config import RunConfig
from harness.data import DATASETS, Source, load
from harness.training import Stack

WIDE = 1024  # units: the weights of one lane are 3.3 MB
ODD = 1009 * 4096  # bytes: a page on which no mapping begins by itself, as large ones do on 2 MiB and heaps on 64


class Mapping(NamedTuple):
    """What the system says of memory that a process has."""

    start: int
    permissions: str
    flags: list[str]


def mapping(address: int) -> Mapping | None:
    """The one that holds an address, if any does."""
    found = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split()
        if "-" in head:
            start, end = (int(place, 16) for place in head.split("-"))
            found = Mapping(start, rest[0], []) if start <= address < end else None
        elif found and head == "VmFlags:":
            return found._replace(flags=rest)
    return None


def in_huge_pages(tensor: Tensor) -> bool:
    """Whether they were asked for where a tensor lies, in memory that is the process's own, and whatever else they take."""
    found = mapping(tensor.data_ptr())
    return found is not None and found.permissions == "rw-p" and "hg" in found.flags


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (), (3, 1, 5), (1024, 1025), (2, 3, 700_001)], ids=str)
def test_zeros_are_what_torch_has(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found, wanted = memory.zeros(*shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    assert (found.shape, found.stride(), found.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
    assert torch.equal(found, wanted)
    found.fill_(7)
    assert found.eq(7).all()


@pytest.mark.parametrize("size", [memory.LEAST, memory.PAGE - 1, memory.PAGE, 3 * memory.PAGE + 5])
def test_large_tensors_begin_with_a_huge_page(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_huge_pages(memory.zeros(size, dtype=torch.uint8))
    monkeypatch.setattr(memory, "PAGE", ODD)
    large = memory.zeros(size, dtype=torch.uint8)
    assert large.data_ptr() % ODD == 0
    last = large.data_ptr() + -(-size // ODD) * ODD - 1
    first = mapping(large.data_ptr())
    assert first
    assert first == mapping(last), "pages are the tensor's as a whole"


def test_small_tensors_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PAGE", ODD)
    assert memory.zeros(memory.LEAST - 1, dtype=torch.uint8).data_ptr() % ODD


def test_a_tensor_is_all_of_its_storage() -> None:
    found = memory.zeros(3, 1_000_003)
    assert found.untyped_storage().nbytes() == found.nbytes


def test_two_tensors_share_no_memory() -> None:
    one, other = memory.zeros(3, 1_000_003), memory.zeros(3, 1_000_003)
    one.fill_(1)
    assert not other.any()


def test_memory_stays_for_as_long_as_any_part_is_in_use_and_goes_then() -> None:
    part = memory.zeros(4, 2**24)[2, 5:9]
    address = part.data_ptr()
    gc.collect()
    part.fill_(3)
    assert part.tolist() == [3] * 4
    assert mapping(address)
    del part
    assert mapping(address) is None


def test_more_than_there_is_says_so() -> None:
    with pytest.raises(MemoryError, match=f"{2**52} bytes: Cannot allocate memory"):
        memory.zeros(2**50)


def test_weights_gradients_and_moments_of_a_stack_lie_in_huge_pages() -> None:
    config = RunConfig(dataset="mnist_5k", hidden_dim=WIDE, optimizer="adam")
    stack = Stack.of(architecture(config), [config], load("mnist_5k", ""))
    assert len(stack.kept) == 2
    for tensor in (stack.network.weights, stack.network.gradients, *stack.kept):
        assert in_huge_pages(tensor)


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
    assert in_huge_pages(pixels)
