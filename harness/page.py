"""The report as a page: an analysis, its figures and its origin as HTML and as Markdown."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.analysis import Analysis
from harness.canvas import Drawing
from harness.contrasts import MOST_SEEDS
from harness.frames import each
from harness.study import Study

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 12  # conclusions that are read at once; further ones unfold


@dataclass(frozen=True)
class Table:
    """A table of texts, or its note alone; behind each row the ids of the runs that it rests on."""

    title: str
    note: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    runs: Sequence[Sequence[str]] = ()


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
    command: str = "harness study"  # that makes it again
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


def tables(analysis: Analysis) -> list[Table]:
    """Variants with their verdicts, then stability, factors and health."""
    return [_variants(analysis), _stability(analysis), _anova(analysis), _separation(analysis)]


def _variants(analysis: Analysis) -> Table:
    contrasts = {row.variant: row for row in each(analysis.contrasts)}
    apart = any(row.n != of.n for row in each(analysis.variants) if (of := contrasts.get(row.variant)) is not None)
    rows, runs = [], []
    for row in each(analysis.variants):
        name = f"{row.variant} (base)" if row.is_base else str(row.variant)
        also = f" = {', '.join(row.copies)}" if len(row.copies) else ""
        gone = ", ".join(f"{count} {what}" for what in ("diverged", "failed", "missing") if (count := getattr(row, what)))
        values = [number(row.mean), interval(row.low, row.high), interval(row.min, row.max)]
        against = contrasts.get(row.variant)
        verdict, pairs, compared = "", "", ["", ""]
        if against is not None:
            verdict = f"{against.verdict}{_more(against.more_seeds)}"
            pairs = str(against.n)
            compared = [number(against.difference, sign=True), interval(against.low, against.high)]
        count = f"{row.n}{f' ({gone})' if gone else ''}"
        rows.append([f"{name}{also}", verdict, count, *values, *([pairs] if apart else []), *compared])
        runs.append(tuple(row.run_ids))
    metric, level = analysis.study.metric, analysis.contrasts.level.iloc[0] if len(analysis.contrasts) else math.nan
    note = f"{metric}: mean over n finished runs, its 95% t interval, lowest and highest."
    if len(contrasts):
        note += (
            f" Difference to {analysis.study.reference}, paired by seed, with its interval at "
            f"{100 * level:.4g}%, so that all hold together with 95%; the verdict is the interval's."
        )
    heads = (
        "variant",
        "verdict",
        "n",
        "mean",
        "95% interval",
        "range",
        *(["pairs"] if apart else []),
        "difference",
        "interval",
    )
    return Table("Variants", note, heads, rows, runs)


def _more(seeds: float) -> str:
    """How many seeds more would decide a contrast, where that can be said."""
    if math.isnan(seeds):
        return ""
    count = f"over {MOST_SEEDS}" if seeds >= MOST_SEEDS else f"about {seeds:.0f}"
    return f" ({count} more seed{'s' * (seeds != 1)})"


def _stability(analysis: Analysis) -> Table:
    runs = {row.variant: tuple(row.run_ids) for row in each(analysis.variants)}
    frame = analysis.stability
    rows = [
        [
            str(r.variant), str(r.n), number(r.spread), interval(r.spread_low, r.spread_high), number(r.fluctuation),
            number(r.drawdown), number(r.gap, sign=True), number(r.epochs_to_target),
        ]
        for r in each(frame)
    ]  # fmt: skip
    target = frame.target.dropna().iloc[0] if len(frame) and frame.target.notna().any() else None
    reach = target if isinstance(target, str) else f"a test loss of {number(target)} nats" if target is not None else ""
    note = (
        "Spread: std over seeds with its 95% interval. Fluctuation: mean change of the test loss from epoch to epoch "
        "in the second half. Drawdown: its largest rise above its lowest so far. Gap: final test loss less final train loss, "
        f"both in eval mode.{f' Epochs to target: median over seeds until {reach}; inf is never.' if reach else ''}"
    )
    heads = ("variant", "n", "spread", "95% interval", "fluctuation", "drawdown", "gap", "epochs to target")
    return Table("Stability of training", note, heads, rows, [runs.get(r.variant, ()) for r in each(frame)])


def _anova(analysis: Analysis) -> Table:
    omnibus, said = analysis.omnibus, ""
    if omnibus is not None:
        said = (
            f"F = {number(omnibus.statistic)} in the model of variant and seed, "
            f"p = {number(omnibus.p)} by {omnibus.permutations} permutations within seeds "
            f"({omnibus.n_variants} variants, {omnibus.n_seeds} seeds)."
        )
    if analysis.anova is None:
        return Table("Do variants differ at all?", said, (), ())
    rows = [
        [str(r.term), number(r.df), number(r.sum_sq), number(r.F), number(r.p), number(r.partial_eta_sq)]
        for r in each(analysis.anova)
    ]
    heads = ("term", "df", "sum of squares", "F", "p", "partial eta squared")
    note = f"Analysis of variance, seeds as blocks. Do variants differ at all? {said}"
    return Table("Factors and their interactions", note, heads, rows)


def _separation(analysis: Analysis) -> Table:
    frame = analysis.separation
    rows = [
        [str(r.measure), number(r.epoch), number(r.n), number(r.correlation, sign=True), number(r.p), number(r.p_holm)]
        for r in each(frame)
    ]
    note = (
        "Rank correlation, over conditions, between a measure of the hidden layers' health and the metric; p by permutation, "
        "then corrected for the number of rows (Holm)."
    )
    return Table("What goes with good results", note, ("measure", "epoch", "conditions", "correlation", "p", "p, Holm"), rows)


def number(value: Any, sign: bool = False) -> str:
    """Four significant digits; empty for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value
    text = f"{value:+.4g}" if sign else f"{value:.4g}"
    return text.replace("-", "−") if text[:1] == "-" else text


def interval(low: float, high: float) -> str:
    return "" if pd.isna(low) else f"{number(low)} to {number(high)}"


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
