"""Memory in huge pages, where the system has them.

An image drawn at random out of 47 MB lies on a page that the processor has not looked up for long. With pages of 4 KiB that
takes it a walk through page tables for every image, on a virtual machine two of them; 24 pages of 2 MiB it remembers.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 2 * 2**20  # bytes; what x86 and most of ARM call huge


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """As `torch.zeros` has them; in main memory from a multiple of PAGE on, and in huge pages if they fill half of one.

    Raises MemoryError when there is no room.
    """
    size = math.prod(shape) * dtype.itemsize
    if device != "cpu" or size < PAGE // 2 or not hasattr(mmap, "MADV_HUGEPAGE"):  # which only Linux has
        return torch.zeros(shape, dtype=dtype, device=device)
    whole = -(-size // PAGE) * PAGE
    try:
        mapped = mmap.mmap(-1, whole + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from None
    with suppress(OSError):  # a kernel that was built without them
        mapped.madvise(mmap.MADV_HUGEPAGE)
    room = torch.frombuffer(mapped, dtype=torch.uint8)  # which keeps the mapping for as long as any part of it is in use
    start = -room.data_ptr() % PAGE
    return room[start : start + size].view(dtype).view(shape)
