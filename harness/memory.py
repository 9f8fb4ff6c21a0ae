"""Memory in huge pages, where the system has them.

An image drawn at random out of 47 MB lies on a page that the processor has not looked up for long. In pages of 4 KiB, 12,000
of them, each image costs a walk through page tables, on a virtual machine through two sets of them; 24 pages of 2 MiB are
remembered.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 2 * 2**20  # bytes; what x86 and most of ARM call huge


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """As `torch.zeros`; in main memory, what fills half a huge page or more begins with one. Linux gives such pages as it can.

    Raises MemoryError when there is no room for what is large.
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
