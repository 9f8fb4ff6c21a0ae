"""The file of a study or a search: found by its name, read as TOML, its paths seen from where it lies."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import InputError, cut, refusal, short
from harness.limits import check_size, small_text

# A key of many parts: tomllib takes time and memory by the square of their number, so 30,000 letters take 4 GB.
DEEP = re.compile(r"""(?<![^\s.,\[{])(?:(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){20}""", re.ASCII)


def find(name: str | Path) -> tuple[str, Path]:
    """The text and the path of a study's file, by its name or path. Raises InputError when there is none."""
    path = Path(name)
    if path.suffix != ".toml" and len(path.parts) == 1:
        folders = (Path("experiments"), shipped())
        found = [file for folder in folders for file in folder.glob("*.toml") if file.stem == str(name)]
        if not found:
            known = sorted({file.stem for folder in folders for file in folder.glob("*.toml")})
            raise InputError(f"{refusal('study', str(name), known)}, or the path of a TOML file")
        path = found[0]
    try:
        return small_text(path), path
    except (OSError, ValueError) as error:  # also too long, bytes that are not UTF-8, a zero byte in the path
        raise InputError(f"study {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def tables(text: str, path: Path) -> dict[str, Any]:
    """The tables of a study's file, its networks as absolute paths. Raises InputError for a text that is not TOML."""
    try:
        check_size(text)
        if deep := DEEP.search(text):
            raise ValueError(f"{short(deep[0])} is no key; allowed: keys of one or two parts")
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        raise InputError(f"study {path} is not TOML: {cut(str(error), 200)}") from None
    for table in (values.get("base"), *_list(values.get("variants"))):
        if isinstance(table, dict) and "network" in table:
            table["network"] = _beside(path, table["network"])
    if isinstance(factors := values.get("factors"), dict) and isinstance(factors.get("network"), list):
        factors["network"] = [_beside(path, level) for level in factors["network"]]
    return values


def is_search(values: Mapping[str, Any]) -> bool:
    """Whether the tables of a file are a search: settings are to be found, not given."""
    return "search" in values or "space" in values


def shipped() -> Path:
    """The folder of the studies that come with harness: in a wheel inside the package, in a checkout beside it."""
    inside = Path(__file__).parent / "experiments"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "experiments"


def _beside(path: Path, network: Any) -> Any:
    """A layer list's path seen from the study's file; `mlp` and lists themselves stay."""
    is_path = isinstance(network, str) and network != "mlp" and not network.lstrip().startswith("{")
    return str((path.parent / os.path.expanduser(network)).absolute()) if is_path else network


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
