"""The run of a study's own: what was launched, and what came out of it, for people to read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from harness import chart, frames, histograms, numerics
from harness.config import slug
from harness.histograms import Histograms
from harness.launched import STUDY_FILE, Launched, kept
from harness.numerics import option
from harness.store import Store
from harness.study import Study
from harness.survey import SETTLED
from harness.tracking import RunLog

PLOTS = "plots"
LONGEST = 8000  # characters of a tag that MLflow keeps


@dataclass(frozen=True)
class Report:
    """What a study's runs came to, as written to its report run."""

    study: Study
    table: pd.DataFrame  # the summary
    sentences: Sequence[str]  # the conclusions
    copies: str  # what runs of one config say of each other; empty where there are none
    agree: bool  # whether they have the same bits
    files: Mapping[str, bytes] = field(repr=False)  # the artifacts
    place: str  # of report.html: a path, or where the UI shows it
    link: str  # of the report run, under `mlflow ui`
    lost: Sequence[str] = ()  # figures that could not be drawn, and why


def begin(
    store: Store, study: Study, edition: str, cells: Mapping[str, object], overrides: Mapping[str, Any], looks: int
) -> RunLog:
    """The report run of a study's edition, RUNNING: it keeps what is launched, the digests of cells, how many looks.

    Looks that the launch before planned are not forgotten by one that plans fewer, where they share a cell: it was looked at.
    Nor is that it had fewer seeds.
    """
    log = open_run(store, study.name, edition)
    before, seen = kept(log) or {"cells": {}}, set[int]()
    if any(cells.get(name) == digests for name, digests in before["cells"].items()):
        looks = max(looks, before.get("looks", 1))
        seen = {*before.get("seen", []), len(before["study"]["seeds"])}
    keep(log, study, cells, overrides, {"looks": looks, "seen": sorted(seen)})
    log.tags({"launches": int(log.run.data.tags.get("launches", "0")) + 1})
    return log


def open_run(store: Store, name: str, edition: str) -> RunLog:
    """The report run of an edition of a study, found or created, RUNNING.

    The caller holds the study: a report run that is RUNNING was left so by a driver that was killed.
    """
    reports = store.runs(name, report=name)
    found = [run for run in reports if run.data.tags.get("edition") == edition]
    for run in reports:
        if run.info.status == "RUNNING":
            store.end(run.info.run_id, "KILLED")
    tags = {"report": name, "edition": edition}
    run = found[0] if found else store.create(name, f"{name}-report", "harness study", tags)
    log = RunLog(store, run)
    log.forget_error()
    store.update(log.id, status="RUNNING")
    return log


def keep(
    log: RunLog, study: Study, cells: Mapping[str, object], overrides: Mapping[str, Any], more: Mapping[str, object] = {}
) -> None:
    """Write down what is launched, in the file that reading back begins with."""
    as_asked = {"study": json.loads(study.json_text()), "overrides": dict(overrides), "numerics": numerics.current()}
    content = {**as_asked, "cells": cells, **more}
    log.text(STUDY_FILE, json.dumps(content, indent=2) + "\n")
    log.tags({"launched": time.time_ns() // 1_000_000})


def write(name: str, launcher: str | None = None, spread: Callable[..., Iterable[Any]] = map) -> Report:
    """Write the report of a study as last launched, from whatever its store has, into its report run.

    It is a function of the store: written twice it has the same bytes. `launcher` is a run that `mlflow run` has begun, to be
    told where to look; `spread` does what `map` does, maybe in other processes. Raises InputError when the store has seen no
    launch.
    """
    from harness import figures
    from harness.analysis import analyse
    from harness.origin import origin
    from harness.page import Page

    launched = Launched.last(name)
    runs, history, log = frames.runs(launched), frames.history(launched), launched.report
    table, (copies, agree) = frames.summary(launched), compared(runs)
    (analysis,) = spread(partial(analyse, launched.study, runs, history), [launched.looks], [launched.seen])
    lost: list[str] = []
    seen = launched.parsed(histograms.FILE, runs.run_id.dropna(), Histograms.parse)
    drawings = figures.drawings(analysis, seen, lost.append, spread)
    page = Page.of(
        analysis,
        drawings=drawings,
        origin=origin(launched, runs, history),
        copies=copies,
        chart=chart.shared(log.run.info.experiment_id, f"{launched.study.name}-{log.run.data.tags.get('edition', '')}"),
        links={run_id: launched.store.page(log.run.info.experiment_id, run_id) for run_id in runs.run_id.dropna()},
        again=launched.again("study"),
        checked=f"harness verify --study {launched.study.name}{option(launched.numerics)}",
    )
    files = {
        "report.html": page.html().encode(),
        "report.md": page.markdown().encode(),
        "summary.csv": table.to_csv(index=False).encode(),
        "contrasts.csv": _csv(analysis.contrasts),
        **{f"{PLOTS}/{drawing.name}.{kind}": getattr(drawing, kind) for drawing in drawings for kind in ("png", "svg")},
    }
    publish(log, files)
    note = _note(launched.study, runs, table, copies, analysis.sentences)
    log.tags({"mlflow.note.content": note, **({"copies": slug(copies)} if copies else {})})
    if launcher:
        launched.store.update(launcher, name=f"report-{launched.study.name}")
        RunLog.of(launched.store, launcher).tags({"mlflow.note.content": f"The report: [{launched.study.name}]({log.page})"})
    place = log.place("report.html")
    return Report(launched.study, table, analysis.sentences, copies, agree, files, place, log.page, tuple(lost))


def publish(log: RunLog, files: Mapping[str, bytes]) -> None:
    """Write the artifacts of a report run."""
    log.drop(f"{PLOTS}/*")  # a figure of before, for which there may be no data now
    for artifact, content in files.items():
        log.file(artifact, partial(_bytes, content))


def _bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _csv(contrasts: pd.DataFrame) -> bytes:
    return contrasts.assign(run_ids=contrasts.run_ids.map(" ".join)).to_csv(index=False).encode()


def _note(study: Study, runs: pd.DataFrame, table: pd.DataFrame, copies: str, sentences: Sequence[str]) -> str:
    """The description of the report run. MLflow's UI folds all but its first lines: they hold the verdicts' count.

    What is longer than MLflow keeps loses its table, then its last conclusions; the page has all.
    """
    failed = "".join(f"\n- {run.variant}-s{run.seed}: {run.reason}" for run in frames.each(runs[runs.state == "failed"]))
    parts = [
        f"**{sentences[0]}**",
        study.question,
        f"Study `{study.name}`, {study.design}: {len(study.rows)} variants x {len(study.seeds)} seeds.",
        "All of it: `report.html` among the artifacts.",
        f"**Copies**: {copies}" if copies else "",
        f"**Failed**:{failed}" if failed else "",
        "\n".join(f"- {sentence}" for sentence in sentences[1:]),
        frames.text(frames.outline(table), "markdown"),
    ]
    parts = [part for part in parts if part]
    text = "\n\n".join(parts)
    if len(text) > LONGEST:
        text = "\n\n".join(parts[:-1])
    return text if len(text) <= LONGEST else text[:LONGEST].rpartition("\n")[0]


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
