"""Two rankings side by side: conditions as a study of fixed settings has them, and as they are once tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from harness.analysis import variants
from harness.blocks import Blocks, distinct_names
from harness.conclusions import plural
from harness.config import FIELDS, RunConfig
from harness.contrasts import compared, contrast, decide, simultaneous
from harness.frames import each
from harness.space import Search
from harness.study import Study

HERE = ("fixed", "tuned")


@dataclass(frozen=True)
class Ranking:
    """How tuning moves conditions among each other."""

    table: pd.DataFrame  # a condition a row: for fixed and tuned its place by mean, n, mean, low, high, verdict, run_ids
    references: tuple[str, str]  # what verdicts are against
    sentence: str  # which conditions change places, as far as intervals say
    note: str  # in what the two studies differ besides


def rank(search: Search, fixed: Blocks, looks: int, tuned: Blocks) -> Ranking:
    """The conditions that both have, the tuned ones in the order of their means; of no condition where none is in both.

    An order of two conditions is claimed where the interval of their difference, paired by seed, excludes 0, at the level at
    which those of all pairs in both studies, in the fixed one at each of its looks, hold together with 95%.
    """
    there = matched(search, fixed)
    both = [row.name for row in search.study.rows if row.name in there and row.name in tuned.names]
    names = ({name: there[name] for name in both}, {name: name for name in both})
    sides = [_side(blocks, name, looks) for blocks, name, looks in zip((fixed, tuned), names, (looks, 1), strict=True)]
    table = pd.concat(sides, axis=1, keys=HERE).reset_index(names="condition")
    if len(table):
        table = table.sort_values(("tuned", "place"), kind="stable", ignore_index=True)
    level = simultaneous(len(both) * (len(both) - 1) // 2, looks + 1)
    orders = [_orders(blocks, name, level) for blocks, name in zip((fixed, tuned), names, strict=True)]
    back = {variant: name for name, variant in names[0].items()}
    references = (back.get(fixed.reference, fixed.reference), tuned.reference)
    return Ranking(table, references, _sentence(fixed.study.name, *orders), _note(search, fixed, tuned))


def matched(search: Search, fixed: Blocks) -> dict[str, str]:
    """Condition -> the variant that has its levels and is the study's base in all else."""
    base, found = RunConfig(**fixed.study.base), {}
    distinct = distinct_names(fixed.copies)
    for row in search.study.rows:
        wanted = base.replace(**search.levels(row))
        if (name := next((variant.name for variant in fixed.study.rows if variant.config == wanted), None)) is not None:
            found[row.name] = distinct[name]
    return found


def by(study: Study, metric: str, matters: float | None) -> Study:
    """A study as read by another one's metric."""
    return study.model_copy(update={"metric": metric, "matters": matters})


def _side(blocks: Blocks, names: Mapping[str, str], looks: int) -> pd.DataFrame:
    """What one of the two has of each condition."""
    rows = {row.variant: row for row in each(variants(blocks))}
    verdicts = {row.variant: row.verdict for row in each(compared(blocks, looks))}
    found = [
        {
            "n": row.n,
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
            "verdict": verdicts.get(name, ""),
            "run_ids": row.run_ids,
        }
        for name in names.values()
        for row in [rows[name]]
    ]
    frame = pd.DataFrame(found, index=list(names), columns=["n", "mean", "low", "high", "verdict", "run_ids"])
    place = frame["mean"].astype(float).rank(method="min", ascending=blocks.good < 0)
    return frame.assign(place=place.astype("Int64"))


def _orders(blocks: Blocks, names: Mapping[str, str], level: float) -> dict[tuple[str, str], str]:
    """For each pair of conditions the better one; empty where the interval does not say."""
    found = {}
    for one, other in combinations(names, 2):
        pair = contrast(blocks, names[one], names[other], level)
        told = decide(pair["low"], pair["high"], 0.0, blocks.good) if pair["sound"] else "undecided"
        found[one, other] = {"better": one, "worse": other}.get(told, "")
    return found


def _sentence(study: str, fixed: Mapping[tuple[str, str], str], tuned: Mapping[tuple[str, str], str]) -> str:
    """Which conditions change places between the two."""
    if not fixed:
        return f"{study} and this search have fewer than two conditions in common, so there is no ranking to compare."
    turned = [pair for pair in fixed if fixed[pair] and tuned[pair] and fixed[pair] != tuned[pair]]
    if turned:
        swaps = [f"{_other(pair, fixed[pair])} is better than {fixed[pair]} once both are tuned" for pair in turned]
        changed = f"{plural(len(turned), 'pair')} of conditions change{'s' * (len(turned) == 1)} places"
        return f"Against {study}, {changed}: {'; '.join(swaps)}."
    kept = sum(bool(fixed[pair]) and fixed[pair] == tuned[pair] for pair in fixed)
    lost = sum(bool(fixed[pair]) and not tuned[pair] for pair in fixed)
    new = sum(bool(tuned[pair]) and not fixed[pair] for pair in fixed)
    return (
        f"Against {study} no two conditions are seen to change places: of {plural(len(fixed), 'pair')}, {kept} "
        f"{'has' if kept == 1 else 'have'} the same order in both, {lost} only in {study}, {new} only once tuned."
    )


def _other(pair: tuple[str, str], one: str) -> str:
    return pair[1] if pair[0] == one else pair[0]


def _note(search: Search, fixed: Blocks, tuned: Blocks) -> str:
    """In what the two studies differ besides the tuning."""
    mine, theirs = RunConfig(**search.study.base), RunConfig(**fixed.study.base)
    names = [name for name in FIELDS if name not in ("seed", "data_dir", "dataset", *search.study.factors, *search.space)]
    differ = [f"{name} {theirs.label(name)} and {mine.label(name)}" for name in names if theirs.label(name) != mine.label(name)]
    data = [sorted(set(blocks.cells.dataset)) for blocks in (fixed, tuned)]
    differ += [f"dataset {', '.join(data[0])} and {', '.join(data[1])}"] if data[0] != data[1] else []
    return f"Besides, the two differ in {'; '.join(differ)}: a place may change for that too." if differ else ""
