"""Which CPU instructions the libraries may use: as many as there are, or those that every x86-64 processor has.

Vector units of another width add in another order, and so round otherwise. `portable` caps ATen, oneDNN, MKL and NumPy at
what processors have in common; a library reads its cap when it is imported, so the choice is made before that.
"""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from pathlib import Path

from harness.errors import InputError, refusal

NATIVE = "native"
NUMERICS = (NATIVE, "portable")
CAPS = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",  # all that it chooses from; the rest is x86-64-v2
}


def choose(name: str) -> None:
    """Set the caps of this process and of those that it starts. Raises InputError for another name, or when it is too late."""
    if name not in NUMERICS:
        raise InputError(refusal("numerics", name, NUMERICS))
    if name == current():
        return
    if name == NATIVE:
        raise InputError(
            "numerics=native is not allowed: " + ", ".join(f"{key}={CAPS[key]}" for key in CAPS) + " are set; unset them"
        )
    if imported := {"torch", "numpy"} & set(sys.modules):
        raise InputError(f"numerics=portable is not allowed: {max(imported)} is imported already; choose before that")
    os.environ.update(CAPS)


def current() -> str:
    """`portable` where all caps are set, else `native`."""
    return "portable" if all(os.environ.get(name) == value for name, value in CAPS.items()) else NATIVE


def option(name: str | None = None) -> str:
    """What a command says so as to compute by these numerics, or as this process does: an option after a space, or nothing."""
    return "" if (name or current()) == NATIVE else f" --numerics {name or current()}"


@cache
def processor(line: str) -> str:
    """What Linux tells of the processor, `model name` or `vendor_id`; elsewhere what Python does, which has both in it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = (text.partition(":")[2].strip() for text in lines if text.startswith(line))
    return next(found, platform.processor() or platform.machine())
