"""The errors a user meets, each also the builtin that a caller would expect.

    HarnessError
    ├── InputError       ValueError    what was asked for is not allowed; nothing was written
    │   ├── DataError    OSError       a dataset is missing, damaged or cannot be fetched
    │   │   └── MissingData            none of its files is there, nor can they be fetched
    │   ├── StoreError   OSError       the MLflow store cannot be reached or written
    │   └── MissingArtifact            a run has no such file
    ├── StoreAway        ConnectionError   the store stopped answering; what it has not got is kept
    ├── CheckpointError  ValueError    a checkpoint is torn, altered or belongs to another run
    ├── TakenOver        RuntimeError  another process goes on with the run that this one was training
    ├── WriteError       OSError       the disk or the store took no more of a run that had begun
    └── EngineError      RuntimeError  the cluster that was training is gone

Messages are one line: what came, what is allowed, the nearest match or what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 800  # characters of a message; of a longer one the middle is left out
HOMELESS = "HOME is not set, and this user has no home directory; set HOME to a folder"  # MLflow is not imported without one


class HarnessError(Exception):
    """The root of the tree; the message is one printable line of bounded length, whatever names and causes it quotes."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.splitlines()))
        super().__init__(cut(line, LONGEST))

    def __reduce__(self) -> tuple[type[HarnessError], tuple[str]]:
        """Errors cross from workers to the driver; tblib, which Dask pickles them with, cannot make an OSError of its parts."""
        return type(self), (str(self),)


class InputError(HarnessError, ValueError):
    """A value, name or file that cannot be used. Raised before anything is written."""

    exit_code = 2


class DataError(InputError, OSError):
    """A dataset whose files are missing, differ from their published SHA-256 or cannot be downloaded."""


class MissingData(DataError):
    """A dataset of which no file is on disk, nor can they be fetched."""


class StoreError(InputError, OSError):
    """An MLflow tracking store that cannot be opened, read or written."""


class StoreAway(HarnessError, ConnectionError):
    """An MLflow tracking store that stopped answering after it had answered. To wait and to go on helps."""


class MissingArtifact(InputError):
    """A run without the file that was asked for."""


class TakenOver(HarnessError, RuntimeError):
    """A run that another process has taken up since: this one, stopped for long, say, writes nothing more to it."""


class EngineError(HarnessError, RuntimeError):
    """A cluster that is gone in the middle of a study; the runs are left with their checkpoints."""


class CheckpointError(HarnessError, ValueError):
    """A checkpoint that does not hold what its own digest says, or that another config wrote."""


class WriteError(HarnessError, OSError):
    """A disk that is full or read-only, or a store that fails, in the middle of a run; its checkpoints are whole."""


def refusal(what: str, given: object, allowed: Iterable[str] | str) -> str:
    """One line that refuses a value: what came, what is allowed and, among names, the nearest match.

    >>> refusal("norm", "layernrm", ["none", "layernorm"])
    "norm='layernrm' is not allowed; allowed: none, layernorm; nearest: layernorm"
    """
    names = [] if isinstance(allowed, str) else list(allowed)
    line = f"{what}={short(given)} is not allowed; allowed: {', '.join(names) if names else allowed}"
    word = given.strip().lower() if isinstance(given, str) else ""
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6) if len(word) <= 100 else []
    return f"{line}; nearest: {near[0]}" if near else line


def cut(text: str, most: int) -> str:
    """`text`, its middle left out where it is longer than `most`."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


def short(given: object) -> str:
    """`given` as a person would recognize it, in a hundred characters."""
    try:
        text = repr(given)
    except (ValueError, RecursionError):  # integers of thousands of digits, lists in lists in lists
        text = f"a very large {type(given).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def first_line(error: BaseException) -> str:
    """The first line of an error of others, without what follows it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
