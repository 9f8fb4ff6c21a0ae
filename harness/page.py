"""The report as a page: an analysis, its figures and its origin as HTML and as Markdown."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.analysis import Analysis
from harness.drawing import Drawing
from harness.frames import each
from harness.study import Study
from harness.tables import Table, tables

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 12  # conclusions that are read at once; further ones unfold


@dataclass(frozen=True)
class Recipe:
    """Text to be copied: a command, or a file."""

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """All that a report says."""

    study: Study
    sentences: Sequence[str]
    limits: Sequence[str]
    unsettled: Sequence[str]  # cells without a number, and why
    tables: Sequence[Table]
    drawings: Sequence[Drawing]
    origin: Sequence[tuple[str, str]]
    copies: str
    chart: str
    links: Mapping[str, str]  # run id -> its page
    cells: Mapping[str, str]  # run id -> its name
    again: str  # the command that launches it again; empty where none does
    checked: str = ""  # the command that compares its runs bit for bit
    recipes: Sequence[Recipe] = ()
    groups: Mapping[str, Sequence[Drawing]] = field(default_factory=dict)  # title -> further figures, which unfold

    @classmethod
    def of(cls, analysis: Analysis, **rest: Any) -> Page:
        """From an analysis, and what it does not know."""
        runs = analysis.runs
        bad = runs[runs.state != "finished"]
        unsettled = [f"{r.variant}-s{r.seed}: {r.state}{f', {r.reason}' if r.reason else ''}" for r in each(bad)]
        cells = {r.run_id: f"{r.variant}-s{r.seed}" for r in each(runs) if isinstance(r.run_id, str)}
        return cls(
            study=analysis.study,
            sentences=analysis.sentences,
            limits=analysis.limits,
            unsettled=unsettled,
            tables=[table for table in tables(analysis) if table.rows or (table.note and not table.heads)],
            cells=cells,
            **rest,
        )

    @property
    def shown(self) -> list[Drawing]:
        """All figures."""
        return [*self.drawings, *(drawing for group in self.groups.values() for drawing in group)]

    def html(self) -> str:
        """One file that loads nothing from anywhere."""
        pictures = {d.name: f"data:image/svg+xml;base64,{b64encode(d.svg).decode('ascii')}" for d in self.shown}
        return _environment(html=True).get_template("report.html").render(page=self, pictures=pictures, shown=SHOWN)

    def markdown(self) -> str:
        """The same in Markdown, with figures by their place beside it."""
        return _environment(html=False).get_template("report.md").render(page=self)


def _environment(html: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["md"] = _escaped
    made.filters["anchor"] = lambda text: re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return made


def _escaped(text: str) -> str:
    """Text that Markdown takes as it is: one line, without markup, links or ends of cells."""
    signs: dict[str, str | int | None] = {sign: f"&#{ord(sign)};" if sign in "<>|" else f"\\{sign}" for sign in "\\`*_[]<>|#"}
    return " ".join(str(text).split()).translate(str.maketrans(signs))
