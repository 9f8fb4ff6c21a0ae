"""What a report tells in tables: variants with their verdicts, what else tests say, stability, factors, health."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.analysis import Analysis
from harness.conclusions import part_name, spoken, trust
from harness.contrasts import FEWEST_FLIPS, MOST_SEEDS
from harness.frames import each


@dataclass(frozen=True)
class Table:
    """A table of texts, or its note alone; behind each row the ids of the runs that it rests on."""

    title: str
    note: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    runs: Sequence[Sequence[str]] = ()


def tables(analysis: Analysis) -> list[Table]:
    """Variants with their verdicts, then what else tests say, stability, factors and health."""
    return [_variants(analysis), _beside(analysis), _stability(analysis), _anova(analysis), _separation(analysis)]


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
    metric = analysis.study.metric
    note = f"{metric}: mean over n finished runs, its 95% t interval, lowest and highest."
    if len(contrasts):
        note += (
            f" Difference to {analysis.study.reference}, paired by seed, with its interval. {trust(analysis.contrasts)}; the "
            "verdict is the interval's."
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


def _beside(analysis: Analysis) -> Table:
    frame = analysis.contrasts
    rows = [
        [
            str(r.variant), str(r.n), number(r.effect, sign=True), chance(r.p_paired), chance(r.p_holm), chance(r.p_sign_flip),
            chance(r.p_dunnett), number(r.correlation, sign=True), number(r.pairing_gain),
        ]
        for r in each(frame)
    ]  # fmt: skip
    note = (
        f"Differences to {analysis.study.reference}; no verdict rests on these. Effect: mean over std of the differences, "
        "corrected for few seeds (Hedges). p: paired t test, by itself and corrected for the family (Holm); exact sign flips, "
        f"from {FEWEST_FLIPS} pairs; Dunnett's, in the model of variant and seed. Correlation: of the two, over seeds. "
        "Gain: by how many times pairing multiplied the seeds."
    )
    heads = ("variant", "pairs", "effect", "p", "p, Holm", "p, sign flips", "p, Dunnett", "correlation", "gain")
    return Table("What other tests say", note, heads, rows, [tuple(r.run_ids) for r in each(frame)])


def _stability(analysis: Analysis) -> Table:
    variants = {row.variant: row for row in each(analysis.variants)}
    frame = analysis.stability
    rows = [
        [
            str(r.variant), str(r.n), number(r.spread), interval(r.spread_low, r.spread_high), number(r.fluctuation),
            number(r.drawdown), number(r.gap, sign=True), number(r.epochs_to_target), _diverged(variants[r.variant]),
        ]
        for r in each(frame)
    ]  # fmt: skip
    part = part_name(analysis.study.shown)
    reach = next(iter(frame.target.dropna()), "")
    epochs = f" Epochs to target: median over seeds until {reach}; inf is never." if reach else ""
    note = (
        f"Spread: std over seeds with its 95% interval, for normal values. Fluctuation: mean absolute change of the {part} "
        "loss from epoch to epoch in the second half, mean over seeds; a steady fall counts too. Drawdown: its largest rise "
        "above its lowest so far, of the worst seed. "
        f"Gap: final {part} loss less final train loss, both in eval mode.{epochs} "
        "Diverged: of the runs that came to an end, with the exact 95% interval of the rate (Clopper-Pearson)."
    )
    heads = ("variant", "n", "spread", "95% interval", "fluctuation", "drawdown", "gap", "epochs to target", "diverged")
    return Table("Stability of training", note, heads, rows, [tuple(variants[r.variant].run_ids) for r in each(frame)])


def _diverged(row: Any) -> str:
    return f"{row.diverged} of {row.diverged + row.n} ({interval(row.divergence_low, row.divergence_high)})"


def _anova(analysis: Analysis) -> Table:
    omnibus, said = analysis.omnibus, ""
    if omnibus is not None:
        said = (
            f"F = {number(omnibus.statistic)} in the model of variant and seed, "
            f"p = {chance(omnibus.p)} by {omnibus.permutations} permutations within seeds "
            f"({omnibus.n_variants} variants, {omnibus.n_seeds} seeds)."
        )
    if analysis.anova is None:
        return Table("Do variants differ at all?", said, (), ())
    rows = [
        [str(r.term), number(r.df), number(r.sum_sq), number(r.F), chance(r.p), chance(r.p_holm), number(r.partial_eta_sq)]
        for r in each(analysis.anova)
    ]
    heads = ("term", "df", "sum of squares", "F", "p", "p, Holm", "partial eta squared")
    note = f"Analysis of variance, seeds as blocks; p, and p corrected for all terms (Holm). Do variants differ at all? {said}"
    return Table("Factors and their interactions", note, heads, rows)


def _separation(analysis: Analysis) -> Table:
    frame = analysis.separation[analysis.separation.correlation.notna()]
    rows = [
        [str(r.measure), number(r.epoch), number(r.n), number(r.correlation, sign=True), chance(r.p), chance(r.p_holm)]
        for r in each(frame)
    ]
    note = (
        "Rank correlation, over conditions (those that start alike count once), between a measure of the hidden layers' health "
        "and the metric; p by permutation, "
        f"then corrected for all {len(analysis.separation)} that were asked (Holm). Positive: the more of it, the higher the "
        f"{spoken(analysis.study)}. A measure that is the same in all conditions is counted, not shown."
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


def chance(p: float) -> str:
    """A p value; the smallest ones, which are beyond what their suppositions bear, by their bound."""
    return "< 0.0001" if p < 1e-4 else number(p)


def interval(low: float, high: float) -> str:
    return "" if pd.isna(low) else f"{number(low)} to {number(high)}"
