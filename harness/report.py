"""The run of a study's own: what was launched, and what came out of it, for people to read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness import frames
from harness.config import slug
from harness.frames import Launched
from harness.study import Study
from harness.survey import SETTLED
from harness.tracking import RunLog, Store


@dataclass(frozen=True)
class Report:
    """What a study's runs came to, as written to its report run."""

    study: Study
    table: pd.DataFrame  # the summary
    copies: str  # what runs of one config say of each other; empty where there are none
    agree: bool  # whether they have the same bits


def begin(store: Store, study: Study, edition: str, cells: Mapping[str, object], overrides: Mapping[str, Any]) -> RunLog:
    """The report run of a study's edition, found or created, RUNNING: it keeps what is launched, with the digests of cells.

    The caller holds the study: a report run that is RUNNING was left so by a driver that was killed.
    """
    reports = store.runs(study.name, report=study.name)
    found = [run for run in reports if run.data.tags.get("edition") == edition]
    for run in reports:
        if run.info.status == "RUNNING":
            store.end(run.info.run_id, "KILLED")
    tags = {"report": study.name, "edition": edition}
    log = RunLog(store, found[0]) if found else store.create(study.name, f"{study.name}-report", "harness study", tags)
    log.forget_error()
    store.update(log.id, status="RUNNING")
    content = {"study": json.loads(study.json_text()), "overrides": dict(overrides), "cells": cells}
    log.text(frames.STUDY_FILE, json.dumps(content, indent=2) + "\n")
    log.tags({"launched": time.time_ns() // 1_000_000})
    return log


def write(name: str) -> Report:
    """Write the report of a study as last launched, from whatever its store has, into its report run.

    Raises InputError when the store has seen no launch of it.
    """
    launched = Launched.last(name)
    runs, study, log = frames.runs(launched), launched.study, launched.report
    table = frames.summary(launched)
    copies, agree = compared(runs)
    log.text("summary.csv", table.to_csv(index=False))
    failed = "".join(f"\n- {run.variant}-s{run.seed}: {run.reason}" for run in runs[runs.state == "failed"].itertuples())
    note = [
        f"**{study.question}**",
        f"Study `{study.name}`, {study.design}: {len(study.rows)} variants x {len(study.seeds)} seeds.",
        frames.text(frames.outline(table), "markdown"),
        f"**Copies**: {copies}" if copies else "",
        f"**Failed**:{failed}" if failed else "",
    ]
    content = "\n\n".join(part for part in note if part)
    log.tags({"mlflow.note.content": content, **({"copies": slug(copies)} if copies else {})})
    return Report(study, table, copies, agree)


def compared(runs: pd.DataFrame) -> tuple[str, bool]:
    """What runs of one config that were trained apart say of each other, and whether they have the same bits."""
    apart = runs[runs.state.isin(SETTLED) & runs.shared_with.isna()]
    bits = apart.state_digest + " " + apart.history_digest
    groups = [group for _, group in bits.groupby(apart.config_digest) if len(group) > 1]
    if not groups:
        return "", True
    distinct, agree = pd.concat(groups).nunique(), all(group.nunique() == 1 for group in groups)
    verdict = f"copies agree bit for bit: {len(groups)} configs" if agree else f"copies of {len(groups)} configs DISAGREE"
    cells = (runs.variant + "-s" + runs.seed.astype(str)).loc
    wrong = sorted(cells[at] for group in groups if group.nunique() > 1 for at in group.index)
    remedy = f" ({', '.join(wrong)}); delete these runs and launch again" if wrong else ""
    return f"{sum(map(len, groups))} runs, {distinct} distinct digests: {verdict}{remedy}", agree
