"""The trials of a search as last launched: what each came to, what it cost, and the best so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness import frames
from harness.errors import InputError
from harness.frames import each
from harness.launched import Launched
from harness.space import Search
from harness.study import Variant


@dataclass(frozen=True)
class Trials:
    """A search, and a row for each trial in the order in which they were asked for."""

    search: Search
    launched: Launched
    runs: pd.DataFrame
    history: pd.DataFrame
    table: pd.DataFrame  # variant, condition, trial, state, value, epochs, why; seconds of training; best so far
    settings: Mapping[str, Mapping[str, Any]]  # trial -> what it was asked to be

    @classmethod
    def last(cls, name: str) -> Trials:
        """From the store. Raises InputError when it has seen no search of this name."""
        launched = Launched.last(name)
        if "trials" not in launched.kept:
            raise InputError(f"{name} was launched as a study, not as a search")
        search, kept = Search(**launched.kept["search"]), launched.kept["trials"]
        runs, history = frames.runs(launched), frames.history(launched)
        table = pd.DataFrame([{key: value for key, value in trial.items() if key != "setting"} for trial in kept])
        table = table.astype({"value": float, "epochs": "Int64"})
        cost = history.groupby("variant")["time/epoch_seconds"].sum() if len(history) else pd.Series(dtype=float)
        whole = table.value.where(table.state == "complete").groupby(table.condition)
        best = (whole.cummin() if search.direction == "minimize" else whole.cummax()).groupby(table.condition).ffill()
        table = table.assign(seconds=table.variant.map(cost).fillna(0.0), best=best)
        return cls(search, launched, runs, history, table, {trial["variant"]: trial["setting"] for trial in kept})

    def of(self, row: Variant) -> pd.DataFrame:
        """The trials of a condition."""
        return self.table[self.table.condition == row.name]

    def ranked(self, row: Variant) -> pd.DataFrame:
        """Those that came to their end, the best first and the earlier of two; then pruned ones, and the rest."""
        mine = self.of(row)
        rank = mine.state.map({"complete": 0, "pruned": 1}).fillna(2)
        signed = mine.value if self.search.direction == "minimize" else -mine.value
        order = pd.DataFrame({"rank": rank, "value": signed}).sort_values(["rank", "value"], kind="stable").index
        return mine.loc[order]

    @property
    def best(self) -> dict[str, Any]:
        """For each condition that has one, its best trial."""
        first = {row.name: next(each(self.ranked(row)), None) for row in self.search.study.rows}
        return {name: trial for name, trial in first.items() if trial is not None and trial.state == "complete"}

    def base(self, row: Variant) -> Any:
        """The trial that is the base's own setting; None where there is none."""
        start = self.search.start(row)
        return next((trial for trial in each(self.of(row)) if self.settings[trial.variant] == start), None)

    def run_ids(self, trial: str) -> tuple[str, ...]:
        """The runs of a trial."""
        return tuple(self.runs.run_id[(self.runs.variant == trial) & self.runs.run_id.notna()])
