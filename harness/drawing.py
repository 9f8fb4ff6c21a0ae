"""A drawn figure, as pages and stores take it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Drawing:
    """A figure, and what a reader needs to know of it."""

    name: str  # of its files
    title: str
    caption: str
    svg: bytes = field(repr=False)
    png: bytes = field(repr=False)
