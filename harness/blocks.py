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

    @classmethod
    def of(cls, study: Study, runs: pd.DataFrame) -> Blocks:
        """From one row per cell of the study, as `frames.runs` gives them."""
        digests = runs.sort_values("seed").groupby("variant", sort=False).config_digest.agg(tuple)
        names: dict[tuple[str, ...], list[str]] = {}
        for row in study.rows:
            names.setdefault(digests[row.name], []).append(row.name)
        first = {name: _first(same, study.reference) for same in names.values() for name in same}
        cells = runs.assign(given=runs.variant, variant=runs.variant.map(first))
        number = cells[study.metric].astype(float)
        finished = cells.state.eq("finished")
        outcome = cells.state.where(cells.state.isin(OUTCOMES), "missing")
        outcome = outcome.mask(finished & np.isinf(number), "diverged").mask(finished & np.isnan(number), "missing")
        cells = cells.assign(outcome=outcome, value=number.where(outcome.eq("finished")))
        # of copies the one that came furthest; among equals the first, which is the variant itself where it has one
        cells = cells.assign(rank=outcome.map(OUTCOMES.index), other=cells.given.ne(cells.variant))
        cells = cells.sort_values(["rank", "other"], kind="stable").drop_duplicates(["variant", "seed"])
        order = {name: place for place, name in enumerate(dict.fromkeys(first.values()))}
        cells = cells.sort_values(
            ["variant", "seed"], key=lambda column: column.map(order) if column.name == "variant" else column
        )
        copies = {first[same[0]]: tuple(name for name in same if name != first[same[0]]) for same in names.values()}
        return cls(study, cells.drop(columns=["rank", "other"]).reset_index(drop=True), copies)

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

    @cached_property
    def values(self) -> pd.DataFrame:
        """The metric, a row a seed, a column a distinct variant; NaN where a run gave no number."""
        return self.cells.pivot(index="seed", columns="variant", values="value").sort_index()[self.names]

    @cached_property
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """How many cells of each distinct variant had each outcome."""
        found = Counter(zip(self.cells.variant, self.cells.outcome, strict=True))
        return {name: {outcome: found[name, outcome] for outcome in OUTCOMES} for name in self.names}

    def run_ids(self, *names: str) -> tuple[str, ...]:
        """The runs whose numbers stand behind a statement on these variants."""
        cells = self.cells[self.cells.variant.isin(names) & self.cells.outcome.eq("finished")]
        return tuple(cells.run_id)


def _first(same: list[str], reference: str) -> str:
    """Under which of its names a config goes."""
    return reference if reference in same else same[0]
