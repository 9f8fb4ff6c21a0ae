"""Memory in huge pages, where the system has them.

An image drawn at random out of 47 MB lies on a page that the processor has not looked up for a while. In pages of 4 KiB,
12,000 of them, each image costs a walk through page tables, on a virtual machine through two sets of them; 24 pages of 2 MiB
are remembered.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 2 * 2**20  # bytes; what x86 and most of ARM call huge
LEAST = PAGE // 4  # bytes that are worth such a page


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """As `torch.zeros`; of LEAST bytes or more in main memory, it begins with a huge page if Linux has one to give.

    Raises MemoryError when there is no room, or torch's RuntimeError where torch allocates.
    """
    size = math.prod(shape) * dtype.itemsize
    if device != "cpu" or size < LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):  # which only Linux has
        return torch.zeros(shape, dtype=dtype, device=device)
    whole = -(-size // PAGE) * PAGE
    try:  # private: what processes share gets no huge pages on most systems, and forks would write to one another's
        mapped = mmap.mmap(-1, whole + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size} bytes: {error.strerror}") from None
    with suppress(OSError):  # a kernel that was built without them
        mapped.madvise(mmap.MADV_HUGEPAGE)
    start = -torch.frombuffer(mapped, dtype=torch.uint8).data_ptr() % PAGE
    # a tensor keeps the mapping for as long as any part of it is in use
    return torch.frombuffer(mapped, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
