"""What a study's runs say: every number of the conclusions, from the frames of a study; nothing is read, drawn or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.blocks import Blocks
from harness.conclusions import limits, sentences
from harness.contrasts import compared
from harness.intervals import rate_interval, t_interval
from harness.separation import health, separation
from harness.stability import stability
from harness.study import Study
from harness.variance import Omnibus, factors


@dataclass(frozen=True)
class Analysis:
    """Every number and sentence of a study's conclusions; frames have plain columns, which docs/statistics.md explains."""

    study: Study
    runs: pd.DataFrame
    history: pd.DataFrame
    variants: pd.DataFrame
    contrasts: pd.DataFrame
    omnibus: Omnibus | None
    anova: pd.DataFrame | None
    stability: pd.DataFrame
    health: pd.DataFrame
    separation: pd.DataFrame
    limits: tuple[str, ...]
    sentences: tuple[str, ...]


def analyse(study: Study, runs: pd.DataFrame, history: pd.DataFrame, looks: int = 1, seen: Sequence[int] = ()) -> Analysis:
    """The analysis of a study as last launched. The same frames give the same numbers, to the bit."""
    blocks = Blocks.of(study, runs)
    contrasts, anova, measured = compared(blocks, looks), factors(blocks), health(blocks, history)
    return Analysis(
        study=study,
        runs=runs,
        history=history,
        variants=variants(blocks),
        contrasts=contrasts,
        omnibus=Omnibus.test(blocks),
        anova=anova,
        stability=stability(blocks, history),
        health=measured,
        separation=separation(blocks, measured),
        limits=limits(blocks, contrasts, anova, looks, seen),
        sentences=sentences(blocks, contrasts),
    )


def variants(blocks: Blocks) -> pd.DataFrame:
    """One row for each distinct variant."""
    rows: list[dict[str, Any]] = []
    for name in blocks.names:
        cells = blocks.cells[blocks.cells.variant.eq(name)]
        values = cells.value.dropna()
        mean, std, low, high = (float(value) for value in t_interval(values))
        counts = blocks.counts[name]
        ends = rate_interval(counts["diverged"], counts["diverged"] + counts["finished"])
        rows.append(
            {
                "variant": name,
                "condition": cells.condition.iloc[0],
                "is_base": name == blocks.reference,
                "copies": blocks.copies[name],
                "n": len(values),
                "mean": mean,
                "std": std,
                "low": low,
                "high": high,
                "min": float(values.min()),
                "max": float(values.max()),
                "diverged": counts["diverged"],
                "failed": counts["failed"],
                "missing": counts["missing"],
                "divergence_low": ends[0],
                "divergence_high": ends[1],
                "run_ids": blocks.run_ids(name),
            }
        )
    return pd.DataFrame(rows)
