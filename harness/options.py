"""What commands take in common: the options, and what their texts mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import click

from harness.config import CHOICES, FIELDS, RunConfig, allowed
from harness.errors import InputError, refusal
from harness.numerics import NUMERICS, current


def dashes(name: str) -> str:
    """An option's name as it is spelled: `mlflow run -P hidden_dim=64` passes unknown names on as they are."""
    return name.replace("_", "-")


def parameters(command: Callable[..., Any], defaults: bool = True) -> Callable[..., Any]:
    """Give a command one option for every field of RunConfig."""
    for name, about in reversed(FIELDS.items()):
        takes = f" ({allowed(name)})" if name in CHOICES else ""
        text = f"{about.description}{takes}{f'  [{RunConfig().text()[name]}]' if defaults else ''}"
        kind = {str: "NAME", int: "N"}.get(type(about.default), "X")
        command = click.option(f"--{dashes(name)}", name, metavar=kind, help=text)(command)
    return command


overriding = partial(parameters, defaults=False)
arithmetic = click.option(
    "--numerics",
    metavar="NAME",
    default=current,
    help=f"CPU instructions: {', '.join(NUMERICS)}: those of every CPU.  [native]",
)


def overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line changes in a study: its seeds, and parameters by their own options or by --set."""
    changed = {name: given[name] for name in ("seeds", *FIELDS) if given[name] is not None}
    for text in given["assigned"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(refusal("set", text, "KEY=VALUE, as --set lr=0.1"))
        changed[name.strip().replace("-", "_")] = value
    return changed


def whole(name: str, text: str, takes: str, least: int = 0) -> int:
    """A whole number from `least`, in ASCII digits. Raises InputError, which says what the option takes, for anything else."""
    try:
        number = int(text) if text.isascii() and text.isdigit() else -1
    except ValueError:  # thousands of digits
        number = -1
    if number < least:
        raise InputError(refusal(name, text, takes))
    return number
