"""The errors a user meets, each also the builtin that a caller would expect.

    HarnessError
    ├── InputError       ValueError    what was asked for is not allowed; nothing was written
    │   ├── DataError    OSError       a dataset is missing, damaged or cannot be fetched
    │   └── StoreError   OSError       the MLflow store cannot be reached or written
    └── CheckpointError  ValueError    a checkpoint is torn, altered or belongs to another run

Messages are one line: what came, what is allowed, the nearest match or what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """The root of the tree; the command line prints it as one line."""

    exit_code = 1


class InputError(HarnessError, ValueError):
    """A value, name or file that cannot be used. Raised before anything is written."""

    exit_code = 2


class DataError(InputError, OSError):
    """A dataset whose files are missing, differ from their published SHA-256 or cannot be downloaded."""


class StoreError(InputError, OSError):
    """An MLflow tracking store that cannot be opened, read or written."""


class CheckpointError(HarnessError, ValueError):
    """A checkpoint that does not hold what its own digest says, or that another config wrote."""


def refusal(what: str, given: object, allowed: Iterable[str] | str) -> str:
    """One line that refuses a value: what came, what is allowed and, among names, the nearest match.

    >>> refusal("norm", "layernrm", ["none", "layernorm"])
    "norm='layernrm' is not allowed; allowed: none, layernorm; nearest: layernorm"
    """
    names = [] if isinstance(allowed, str) else list(allowed)
    line = f"{what}={given!r} is not allowed; allowed: {', '.join(names) if names else allowed}"
    near = difflib.get_close_matches(str(given).strip().lower(), names, n=1, cutoff=0.5)
    return f"{line}; nearest: {near[0]}" if near else line
