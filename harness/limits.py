"""What no input may exceed: generous for small networks, and so small that a refusal takes no time and no memory."""

from __future__ import annotations

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any

MOST_BYTES = 2**17  # of a layer list or a study; a thousand layers take 80,000
MOST_LAYERS = 1_000
MOST_WIDTH = 65_536  # of a layer
MOST_PARAMETERS = 100_000_000
MOST_NUMBERS = 1_000_000_000  # float32 that a run works on at once: 4 GB
MOST_CELLS = 100_000  # beyond it a study is a typing error
MOST_VARIANTS = 10_000
LONGEST_NAME = 200  # of a variant; MLflow's databases keep 250 characters of a run's name, which has the seed too
LONGEST_PATH = 4096  # as Linux has it; MLflow keeps 6,000 characters of a param


def small_text(path: Path) -> str:
    """The text of a file. Raises OSError or ValueError for one that is no file, has over MOST_BYTES or is not UTF-8."""
    if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe may take for ever, and /dev/zero has no end
        raise ValueError("a directory or device, not a file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    check_size(content)
    return content.decode("utf-8")


def check_size(content: str | bytes) -> None:
    """Raise ValueError for what is too long to be parsed: that may take a thousand times its length in time and memory."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"too long; allowed: at most {MOST_BYTES} bytes")


def strict_json(text: str) -> Any:
    """The value of a JSON text in which no object says anything twice. Raises ValueError with a reason of one line."""
    check_size(text)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("lists and objects are nested too deeply") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the key {next(name for name in counts if counts[name] > 1)[:100]!r} stands twice")
    return found
