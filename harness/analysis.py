"""What a study's runs say: every number of the conclusions, from the frames of a study; nothing is read, drawn or written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.blocks import Blocks
from harness.contrasts import compared
from harness.intervals import rate_interval, t_interval
from harness.study import Study


@dataclass(frozen=True)
class Omnibus:
    """Whether variants differ at all: F of variant in the blocked model, and how often chance does as well."""

    statistic: float
    p: float
    permutations: int
    n_seeds: int
    n_variants: int


@dataclass(frozen=True)
class Analysis:
    """The frames have plain columns."""

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


def analyse(study: Study, runs: pd.DataFrame, history: pd.DataFrame, *, looks: int = 1) -> Analysis:
    """The analysis of a study as last launched. The same frames give the same numbers, to the bit."""
    blocks = Blocks.of(study, runs)
    return Analysis(
        study=study,
        runs=runs,
        history=history,
        variants=variants(blocks),
        contrasts=compared(blocks, looks),
        omnibus=None,
        anova=None,
        stability=pd.DataFrame(
            columns=[
                *("variant", "n", "spread", "spread_low", "spread_high", "fluctuation", "drawdown", "gap"),
                *("target", "epochs_to_target", "n_target"),
            ]
        ),
        health=pd.DataFrame(columns=["variant", "layer", "epoch", "n", "saturated", "dead", "mean", "std", "grad_norm"]),
        separation=pd.DataFrame(columns=["measure", "epoch", "correlation", "p", "p_holm", "n"]),
        limits=(),
        sentences=(),
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
