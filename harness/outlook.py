"""Where a study stands and what a launch of it would do. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness import engine, frames, launched
from harness.plan import Plan, prepare_all
from harness.progress import Say
from harness.stacks import makespan, pack
from harness.store import Store
from harness.study import Study
from harness.survey import STATES, Standing, leaders, survey


def preview(study: Study, workers: int | None, scheduler: str | None, share: bool, say: Say) -> str:
    """What a launch would do: each cell, what is there of it, and the expected time. Writes nothing."""
    plans = {plan.cell.name: plan for plan in prepare_all(study.cells, say)}
    standings = _standings(Store.there(), study, list(plans.values()))
    todo = [plans[standing.cell.name] for standing in standings if not standing.settled]
    if share:
        leads = leaders(standings, {name: plan.config.digest for name, plan in plans.items()})
        todo = [plan for plan in todo if leads[plan.config.digest] == plan.cell.name]
    with engine.opened(workers, scheduler, [plan.config for plan in todo]) as hands:
        stacks = pack(todo, max(hands.workers, 1))
    rows = [{"cell": standing.cell.name, "state": standing.state, "why": standing.reason} for standing in standings]
    return f"{frames.text(pd.DataFrame(rows), 'table')}\n{outlook(study, todo, stacks, max(hands.workers, 1))}"


def status(study: Study, overrides: Mapping[str, Any], say: Say) -> str:
    """Where each variant of a study stands, and why; without overrides with those of its last launch."""
    lines = []
    store = Store.there()
    if not overrides and (overrides := launched.last_overrides(store, study.name) if store else {}):
        lines.append(f"as last launched, with{launched.options(overrides)}")
    study = study.override(**overrides)
    standings = _standings(store, study, prepare_all(study.cells, say))
    states = [state for state in STATES if state != "pruned" or any(standing.state == state for standing in standings)]
    counts = [
        {"variant": row.name, **{state: sum(s.state == state for s in standings if s.cell.variant == row) for state in states}}
        for row in study.rows
    ]
    lines.append(frames.text(pd.DataFrame(counts), "table"))
    lines += [f"{s.cell.name}: {s.state}{f', {s.reason}' if s.reason else ''}" for s in standings if s.state != "finished"]
    settled = sum(standing.settled for standing in standings)
    return "\n".join([*lines, f"{settled} of {len(standings)} cells are settled"])


def outlook(study: Study, todo: Sequence[Plan], stacks: Sequence[Sequence[Plan]], workers: int) -> str:
    """One line: how many cells are to be trained, in how many stacks, and about how long that takes."""
    if not todo:
        return f"{study.name}: none of {len(study.cells)} cells to train"
    about = makespan(stacks, workers)
    return (
        f"{study.name}: {len(todo)} of {len(study.cells)} cells to train, in {len(stacks)} stacks on {workers} "
        f"worker{'s' if workers > 1 else ''}, about {f'{about / 60:.0f} min' if about > 90 else f'{about:.0f} s'}"
    )


def _standings(store: Store | None, study: Study, plans: Sequence[Plan]) -> list[Standing]:
    runs = store.runs(study.name, study=study.name) if store else []
    return survey([(plan.cell, plan.tags) for plan in plans], runs, store.locks.held if store else lambda run_id: False)
