"""A study's runs as blocks: the runs of one seed share weights and batches, so a seed is a block and a variant a treatment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from harness.study import Study

OUTCOMES = ("finished", "diverged", "failed", "missing")  # what has no number yet, running and stale cells too, is missing


@dataclass(frozen=True)
class Blocks:
    """One cell for each distinct variant and seed; variants of one config are one, for they compute the same thing."""

    study: Study
    cells: pd.DataFrame  # rows of `frames.runs` with `outcome` of OUTCOMES and `value`, the metric, NaN unless finished
    copies: Mapping[str, tuple[str, ...]]  # distinct variant -> the other names of its config, in the study's order
    disagreements: tuple[tuple[str, int], ...] = ()  # variant and seed of which copies ended otherwise

    @classmethod
    def of(cls, study: Study, runs: pd.DataFrame) -> Blocks:
        """From one row per cell of the study, as `frames.runs` gives them, in any order."""
        places = {row.name: place for place, row in enumerate(study.rows)}
        runs = runs.assign(place=runs.variant.map(places)).sort_values(["place", "seed"], kind="stable")
        copies = copies_of(runs, study.reference)
        cells = _with_outcome(runs, study.metric).assign(given=runs.variant, variant=runs.variant.map(distinct_names(copies)))
        # of copies the one that came furthest, among equals the variant itself
        rank = cells.outcome.map(OUTCOMES.index) * 2 + cells.given.ne(cells.variant)
        chosen = cells.assign(rank=rank).sort_values("rank", kind="stable").drop_duplicates(["variant", "seed"])
        place = chosen.variant.map({name: place for place, name in enumerate(copies)})
        chosen = chosen.assign(place=place).sort_values(["place", "seed"], ignore_index=True)
        return cls(study, chosen.drop(columns=["place", "rank"]), copies, _disagreements(cells))

    @property
    def names(self) -> list[str]:
        """The distinct variants, in the study's order."""
        return list(self.copies)

    @property
    def reference(self) -> str:
        """The variant that the others are compared with."""
        return self.study.reference

    @property
    def good(self) -> int:
        """The sign of a difference for the better: -1 for a loss, 1 for an accuracy."""
        return -1 if self.study.metric.endswith("_loss") else 1

    @property
    def unit(self) -> str:
        """The metric's, as it follows a number: of an accuracy there is none."""
        return " nats" if self.good < 0 else ""

    @cached_property
    def values(self) -> pd.DataFrame:
        """The metric, a row a seed, a column a distinct variant; NaN where a run gave no number."""
        return self.cells.pivot(index="seed", columns="variant", values="value").sort_index()[self.names]

    @cached_property
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """How many cells of each distinct variant had each outcome."""
        found = Counter(zip(self.cells.variant, self.cells.outcome, strict=True))
        return {name: {outcome: found[name, outcome] for outcome in OUTCOMES} for name in self.names}

    @property
    def whole(self) -> tuple[str, ...]:
        """The variants of which no run diverged or failed, and at least one has a number."""
        return tuple(name for name, n in self.counts.items() if n["finished"] and not n["diverged"] + n["failed"])

    def run_ids(self, *names: str) -> tuple[str, ...]:
        """The runs whose numbers stand behind a statement on these variants: of seeds that each of them has."""
        seeds = self.values[list(names)].dropna().index
        return tuple(self.cells.run_id[self.cells.variant.isin(names) & self.cells.seed.isin(seeds)])


def copies_of(runs: pd.DataFrame, reference: str) -> dict[str, tuple[str, ...]]:
    """The name under which each config goes, the reference's its own, and the others that it has.

    `runs` has a row for every cell of the study, those of a variant in the order of its seeds.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, digests in runs.groupby("variant", sort=False).config_digest:
        groups.setdefault(tuple(digests), []).append(str(name))
    distinct = [(reference if reference in names else names[0], names) for names in groups.values()]
    return {first: tuple(name for name in names if name != first) for first, names in distinct}


def distinct_names(copies: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The name under which each variant goes."""
    return {name: distinct for distinct, others in copies.items() for name in (distinct, *others)}


def _with_outcome(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Runs with what became of each, and its number where it has one."""
    number, finished = runs[metric].astype(float), runs.state.eq("finished")
    outcome = runs.state.where(runs.state.isin(OUTCOMES), "missing")
    outcome = outcome.mask(finished & np.isinf(number), "diverged").mask(finished & np.isnan(number), "missing")
    return runs.assign(outcome=outcome, value=number.where(outcome.eq("finished")))


def _disagreements(cells: pd.DataFrame) -> tuple[tuple[str, int], ...]:
    """Variants and seeds of which copies came to an end, but not to the same one."""
    ended = cells[cells.outcome.isin(["finished", "diverged"])]
    found = ended.groupby(["variant", "seed"], sort=False)[["outcome", "value", "state_digest"]].nunique(dropna=True)
    return tuple((str(name), int(seed)) for name, seed in found.index[found.gt(1).any(axis=1)])
