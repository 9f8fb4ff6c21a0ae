"""Drives a study to what it wants: its cells planned, a launch at a time, again where seeds are to be added."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import Timeout

from harness import engine, frames
from harness.cells import Launch, StudyResult
from harness.errors import InputError
from harness.plan import Plan, prepare_all
from harness.progress import Say, Watch
from harness.sequential import grown
from harness.store import Store, in_one_line
from harness.study import Study
from harness.tracking import RunLog


def run_study(
    study: Study | str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    share: bool = False,
    fail_fast: bool = False,
    models: bool = False,
    probe: bool = True,
    overrides: Mapping[str, Any] = {},
    looks: int = 1,
    launcher: str | None = None,
    say: Say = print,
    watch: Watch = lambda progress: None,
) -> StudyResult:
    """Train the cells of a study that the store does not have; what is there is left as it is.

    `workers` processes train (as many as cores; 0: this process), or those of a Dask `scheduler`. `share` trains cells of
    equal configs once and copies the run. `models` logs every network as an MLflow model too. A cell that fails does not
    stop the others, unless `fail_fast`. `overrides` are those that made the study out of its file, for `status` to take
    them up; `looks` is how many looks at growing data are planned (`until_decided`); `launcher` is a run that `mlflow run` has
    begun, to be told where to look.

    Raises InputError before anything is written. An interrupt marks what is unfinished KILLED; its checkpoints stay.
    """
    began = time.monotonic()
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds it out
        raise InputError('a worker imported your script, which called run_study again: put it under if __name__ == "__main__":')
    study = study if isinstance(study, Study) else Study.read(study)
    if workers is not None and workers < 0:
        raise InputError(f"workers={workers} is not allowed; allowed: a whole number from 0")
    plans = prepare_all(study.cells, say)
    with engine.opened(workers, scheduler, [plan.config for plan in plans]) as hands, ExitStack() as held:
        store = Store.holding(launcher) if launcher else Store()
        if launcher:
            held.enter_context(RunLog.of(store, launcher).alone())  # so that others see that it has a process
            RunLog.of(store, launcher).check_unused()
        with in_one_line(store.uri):
            came = driven(
                store, study, plans, hands, say, watch,
                share=share, fail_fast=fail_fast, models=models, probe=probe, overrides=overrides, looks=looks,
            )  # fmt: skip
        if launcher:
            store.update(launcher, name=f"study-{study.name}")
            RunLog.of(store, launcher).tags({"mlflow.note.content": f"Its runs: [{study.name}]({came.chart})"})
        return replace(came, seconds=time.monotonic() - began)


def driven(
    store: Store,
    study: Study,
    plans: Sequence[Plan],
    hands: engine.Engine,
    say: Say,
    watch: Watch,
    *,
    share: bool = False,
    fail_fast: bool = False,
    models: bool = False,
    probe: bool = True,
    overrides: Mapping[str, Any] = {},
    looks: int = 1,
) -> StudyResult:
    """Launch a study whose cells are planned, in an open store and with whoever trains."""
    began = time.monotonic()
    with alone(store, study.name, say):
        launch = Launch(store, study, plans, say, watch)
        with launch.reported(overrides, looks):
            works = launch.schedule(max(hands.workers, 1), share, probe, models)
            if works and hands.workers:
                say("workers  start; runs that train together end together, so the first results take a while")
            with closing(hands.trained(works, launch.heard)) as trained:
                for work, came in trained:
                    launch.ended(work, came)
                    if fail_fast and launch.failed:
                        break
            if not (fail_fast and launch.failed):
                launch.copy()
            launch.leave()
            return launch.result(time.monotonic() - began, hands.spread)


def until_decided(study: Study, looks: Sequence[int], launch: Callable[[Study, int], StudyResult], say: Say) -> StudyResult:
    """Launch a study with as many seeds as its first look has, then with those of the next, until nothing is left to decide.

    How many looks there may be is fixed before the first, and the intervals of each are as wide as all of them together need
    (Bonferroni), so that to look again makes no false verdict likelier than to look once. All variants get the new seeds:
    contrasts stay paired. Started again it takes the same looks, and trains what the store does not have. It stops too where
    a run failed, and where only contrasts are open that no seed decides: a run of theirs diverged, or their runs are the same.

    `launch` trains a study of which so many looks are planned. What was trained, and the seconds, are those of all looks.
    """
    trained, took = 0, 0.0
    for number, seeds in enumerate(looks, 1):
        result = launch(grown(study, seeds), len(looks))
        trained, took = trained + result.trained, took + result.seconds
        contrasts, table = frames.compare(study.name), result.table.set_index("variant")
        broken = table.index[table.diverged > 0]
        weights = frames.runs(study.name).groupby("variant").state_digest.agg(tuple)  # in the order of seeds
        undecided = contrasts[contrasts.verdict == "undecided"]
        same = undecided.variant.map(weights) == undecided.reference.map(weights)
        left = undecided[~undecided.variant.isin(broken) & ~undecided.reference.isin(broken) & ~same]
        say(f"look     {number} of {len(looks)}, {seeds} seeds: {len(undecided)} of {len(contrasts)} contrasts are undecided")
        if left.empty or result.failed:
            break
    return replace(result, trained=trained, seconds=took)


@contextmanager
def alone(store: Store, study: str, say: Say) -> Iterator[None]:
    """One launch of a study at a time: a second one waits, and then finds what is left to do."""
    name = store.study_lock(study)
    with ExitStack() as held:
        try:
            held.enter_context(store.locks.hold(name))
        except Timeout:
            say(f"waiting  {store.locks.holder(name)} works on {study}")
            held.enter_context(store.locks.hold(name, -1))
        yield
