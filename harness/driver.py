"""Drives a study to what it wants: looks at what is there, creates the runs that are not, has them trained, says what came."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import Timeout

from harness import chart, engine, frames, report
from harness.engine import Came
from harness.errors import InputError, TakenOver
from harness.plan import Plan, prepare_all
from harness.recorder import RunResult, fail
from harness.results import EpochRecord
from harness.sequential import grown
from harness.stacks import makespan, pack
from harness.store import Store, in_one_line
from harness.study import Study
from harness.survey import DIGESTS, STATES, Standing, survey
from harness.tracking import RunLog
from harness.worker import Lane, Work

Say = Callable[[str], None]
SHARED = ("config.json", "history.csv", "record.json", "plots/history.png")  # files that a copied run has too


@dataclass
class Progress:
    """How far a launch is; whoever watches is shown it after each epoch of each run."""

    cells: int
    settled: int  # before this launch, and since
    epochs: int  # of all runs to be trained
    failed: int = 0
    passed: dict[str, int] = field(default_factory=dict)  # cell -> its epochs, of these
    running: dict[str, float] = field(default_factory=dict)  # cell -> test (validation) loss of its last epoch
    began: float = field(default_factory=time.monotonic)
    what: str = "cells"  # that are counted; a search counts trials
    part: str = "test"  # that the losses are of

    @property
    def epoch(self) -> int:
        """How many of the epochs are done."""
        return sum(self.passed.values())

    @property
    def seconds_left(self) -> float | None:
        """By the epochs that are done; None before the first."""
        return (time.monotonic() - self.began) * (self.epochs / self.epoch - 1) if self.epoch else None


Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class StudyResult:
    """What a launch came to."""

    study: Study
    trained: int
    settled: int  # cells with a finished run, also from before
    failed: Mapping[str, str]  # cell -> why
    copies: str  # what runs of one config say of each other; empty where there are none
    agree: bool  # whether they have the same bits
    table: pd.DataFrame  # the summary
    sentences: Sequence[str]  # the conclusions
    page: str  # the report, as a path or a link
    report_run_id: str
    store: str
    chart: str
    seconds: float


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
        store = Store()
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
                say("workers  start; the first results take some seconds")
            with closing(hands.trained(works, launch.heard)) as trained:
                for work, came in trained:
                    launch.ended(work, came)
                    if fail_fast and launch.failed:
                        break
            if not (fail_fast and launch.failed):
                launch.copy()
            launch.leave()
            return launch.result(time.monotonic() - began)


def until_decided(study: Study, looks: Sequence[int], launch: Callable[[Study, int], StudyResult], say: Say) -> StudyResult:
    """Launch a study with as many seeds as its first look has, then with those of the next, until nothing is left to decide.

    How many looks there may be is fixed before the first, and the intervals of each are as wide as all of them together need
    (Bonferroni), so that to look again makes no false verdict likelier than to look once. All variants get the new seeds:
    contrasts stay paired. Started again it takes the same looks, and trains what the store does not have. It stops too where
    a run failed, and where only contrasts are open that no seed decides, because a run of theirs diverged.

    `launch` trains a study of which so many looks are planned.
    """
    for number, seeds in enumerate(looks, 1):
        result = launch(grown(study, seeds), len(looks))
        contrasts, table = frames.compare(study.name), result.table.set_index("variant")
        broken = table.index[table.diverged > 0]
        undecided = contrasts[contrasts.verdict == "undecided"]
        left = undecided[~undecided.variant.isin(broken) & ~undecided.reference.isin(broken)]
        say(f"look     {number} of {len(looks)}, {seeds} seeds: {len(undecided)} of {len(contrasts)} contrasts are undecided")
        if left.empty or result.failed:
            break
    return result


def preview(study: Study, workers: int | None, scheduler: str | None, share: bool, say: Say) -> str:
    """What a launch would do: each cell, what is there of it, and the expected time. Writes nothing."""
    plans = {plan.cell.name: plan for plan in prepare_all(study.cells, say)}
    standings = _standings(Store.there(), study, list(plans.values()))
    todo = [plans[standing.cell.name] for standing in standings if not standing.settled]
    if share:
        todo = list({plan.config.digest: plan for plan in reversed(todo)}.values())
    with engine.opened(workers, scheduler, [plan.config for plan in todo]) as hands:
        stacks = pack(todo, max(hands.workers, 1))
    rows = [{"cell": standing.cell.name, "state": standing.state, "why": standing.reason} for standing in standings]
    return f"{frames.text(pd.DataFrame(rows), 'table')}\n{_outlook(study, todo, stacks, max(hands.workers, 1))}"


def status(study: Study, overrides: Mapping[str, Any], say: Say) -> str:
    """Where each variant of a study stands, and why; without overrides with those of its last launch."""
    lines = []
    store = Store.there()
    if not overrides and (overrides := frames.last_overrides(store, study.name) if store else {}):
        given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in overrides.items())
        lines.append(f"as last launched, with {given}")
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


def _standings(store: Store | None, study: Study, plans: Sequence[Plan]) -> list[Standing]:
    runs = store.runs(study.name, study=study.name) if store else []
    return survey([(plan.cell, plan.tags) for plan in plans], runs, store.locks.held if store else lambda run_id: False)


def _outlook(study: Study, todo: Sequence[Plan], stacks: Sequence[Sequence[Plan]], workers: int) -> str:
    if not todo:
        return f"{study.name}: all {len(study.cells)} cells are there"
    about = makespan(stacks, workers)
    return (
        f"{study.name}: {len(todo)} of {len(study.cells)} cells to train, in {len(stacks)} stacks on {workers} "
        f"worker{'s' if workers > 1 else ''}, about {f'{about / 60:.0f} min' if about > 90 else f'{about:.0f} s'}"
    )


class Launch:
    """One launch of a study: the runs that it stands on, and those that it has trained."""

    def __init__(
        self, store: Store, study: Study, plans: Sequence[Plan], say: Say, watch: Watch, named: str | None = None
    ) -> None:
        self.store, self.study, self.say, self.watch = store, study, say, watch
        self.plans = {plan.cell.name: plan for plan in plans}
        self.edition = named or edition(study, plans)
        self.part = "val" if study.metric.startswith("final/val") else "test"  # where nothing may be seen of the test set
        self.shown = "test" if self.part == "test" else "validation"
        self.runs: dict[str, RunLog] = {}  # cell -> its run: settled, or to be trained
        self.left: dict[str, str] = {}  # run id -> cell, of runs that have not ended
        self.twins: dict[str, str] = {}  # cell -> the cell that trains for it
        self.failed: dict[str, str] = {}  # cell -> why
        self.progress = Progress(len(plans), 0, 0)
        self.trained = 0

    @contextmanager
    def reported(self, overrides: Mapping[str, Any], looks: int) -> Iterator[None]:
        """The report run around a launch; an interrupt leaves no run RUNNING that is not trained."""
        digests = {name: {key: str(plan.tags[key]) for key in (*DIGESTS, "dataset")} for name, plan in self.plans.items()}
        self.report = report.begin(self.store, self.study, self.edition, digests, overrides, looks)
        try:
            yield
        except BaseException as error:
            self.leave()
            fail(self.report, error)
            raise

    def leave(self) -> None:
        """End what was scheduled, or had begun, and is not trained any more."""
        for run_id in self.left:
            with suppress(
                Exception
            ):  # one that was deleted meanwhile, a store that is gone: the first error is the one to show
                self.store.end(run_id, "KILLED")
        if self.left:
            self.say(
                f"killed   {len(self.left)} cells are left; the same command goes on from there, and from their checkpoints"
            )

    def schedule(self, workers: int, share: bool, probe: bool, models: bool) -> list[Work]:
        """Find or create the run of every cell, and cut what is to be trained into stacks."""
        todo = self.claim(share)
        stacks = pack(todo, workers)
        self.say(f"study    {_outlook(self.study, todo, stacks, workers)}")
        return [Work(self.store.uri, tuple(map(self.lane, stack)), probe, models) for stack in stacks]

    def claim(self, share: bool = False) -> list[Plan]:
        """Find or create the run of every cell; which of them are to be trained."""
        runs = self.store.runs(self.study.name, study=self.study.name)
        wanted = [(plan.cell, plan.tags) for plan in self.plans.values()]
        standings = survey(wanted, runs, self.store.locks.held)
        todo = []
        leaders = {self.plans[s.cell.name].config.digest: s.cell.name for s in reversed(standings) if s.settled}
        for standing in standings:
            plan, name = self.plans[standing.cell.name], standing.cell.name
            if standing.settled:
                self.runs[name] = RunLog(self.store, standing.run)
                continue
            leader = leaders.setdefault(plan.config.digest, name) if share else name
            self.runs[name] = log = self._run(plan, standing)
            self.left[log.id] = name
            if leader == name:
                todo.append(plan)
            else:
                self.twins[name] = leader
        self._tidy(runs)
        self.progress = Progress(
            len(self.plans), len(self.plans) - len(self.left), sum(p.config.epochs for p in todo), part=self.shown
        )
        return todo

    def lane(self, plan: Plan) -> Lane:
        """What a worker is told of a run to be trained."""
        return Lane(self.runs[plan.cell.name].id, plan.cell, plan.config, plan.data.digest, str(plan.tags["code_digest"]))

    def _run(self, plan: Plan, standing: Standing) -> RunLog:
        """The run that a cell goes on with, or a new one."""
        if standing.run is not None:
            return RunLog(self.store, standing.run)
        tags = {**plan.tags, "edition": self.edition}
        log = RunLog(self.store, self.store.create(self.study.name, plan.cell.name, "harness study", tags))
        self.store.update(log.id, status="SCHEDULED")
        log.run = self.store.get(log.id)
        return log

    def _tidy(self, runs: Sequence[Any]) -> None:
        """Runs that cells stand on carry this edition, those they stood on before do not; a run that nobody trains ends."""
        current = {log.id: log for log in self.runs.values()}
        for run in runs:
            run_id, tags = run.info.run_id, run.data.tags
            if run_id in current:
                if tags.get("edition") != self.edition:
                    current[run_id].tags({"edition": self.edition})
                continue
            if tags.get("edition") == self.edition and tags.get("cell") in self.runs:
                RunLog(self.store, run).tags({"edition": "superseded"})
            if run.info.status in ("RUNNING", "SCHEDULED") and not self.store.locks.held(run_id):
                self.store.end(run_id, "KILLED")

    def heard(self, run_id: str, done: EpochRecord) -> None:
        """An epoch of a run."""
        if (cell := self.left.get(run_id)) is not None:
            self.progress.passed[cell] = done.epoch
            self.progress.running[cell] = done.curves[f"{self.part}/loss"]
            self.watch(self.progress)

    def ended(self, work: Work, came: Came) -> None:
        """A stack that came back: each of its runs is finished, now or in an attempt before, or failed."""
        runs = self.store.outage.outlasted(lambda: {lane.run_id: self.store.get(lane.run_id) for lane in work.lanes})
        for lane in work.lanes:
            run, why = runs[lane.run_id], came.get(lane.run_id)
            if run.info.status == "FINISHED":
                for figure in why.lost if isinstance(why, RunResult) else ():
                    self.say(f"lost     {figure} of {lane.cell.name}")
                self.trained += 1
                self._settled(lane.cell.name, run)
            else:
                why = why if isinstance(why, str) else "its worker stopped"
                left = not why.startswith(TakenOver.__name__) and not self.store.locks.held(lane.run_id)
                if run.info.status != "FAILED" and left:  # the worker died with it
                    fail(RunLog(self.store, run), RuntimeError(why))
                self._failed(lane.cell.name, why)

    def copy(self) -> None:
        """Give each cell that another one trained for the metrics, digests and small files of that run."""
        for name, leader in self.twins.items():
            log, other = self.runs[name], RunLog.of(self.store, self.runs[leader].id)
            if other.run.info.status != "FINISHED":
                why = f"{leader}, which trains for it, has not finished"
                fail(log, RuntimeError(why))
                self._failed(name, why)
                continue
            log.params(self.plans[name].cell.config.text())
            log.copy(other, SHARED)
            came = ("state_digest", "history_digest", "diverged", "attempt", "mlflow.note.content")
            log.tags({"shared_with": other.id, **{tag: other.run.data.tags[tag] for tag in came if tag in other.run.data.tags}})
            log.finish("FINISHED")
            self._settled(name, self.store.get(log.id))

    def _settled(self, name: str, run: Any) -> None:
        del self.left[run.info.run_id]
        self.progress.settled += 1
        metrics, diverged = run.data.metrics, run.data.tags.get("diverged")
        numbers = f"{self.shown} loss {metrics[f'{self.part}/loss']:.4g}  accuracy {metrics[f'{self.part}/accuracy']:.4f}"
        self._line(name, f"{numbers}{f'  diverged in {diverged}' if diverged else ''}")

    def _failed(self, name: str, why: str) -> None:
        del self.left[self.runs[name].id]
        self.progress.failed += 1
        self.failed[name] = why
        self._line(name, f"failed: {why}")

    def _line(self, name: str, text: str) -> None:
        self.progress.running.pop(name, None)
        if name not in self.twins:
            self.progress.passed[name] = self.plans[name].config.epochs
        done, of, width = self.progress.settled + self.progress.failed, len(self.plans), max(map(len, self.plans))
        left = f"  {self.progress.seconds_left:.0f} s left" if self.progress.seconds_left is not None and done < of else ""
        self.say(f"{done:>{len(str(of))}}/{of}  {name:<{width}}  {text}{left}")
        self.watch(self.progress)

    def result(self, seconds: float) -> StudyResult:
        """Write the report and end its run."""
        came = report.write(self.study.name)
        self.report.finish("FAILED" if self.failed or not came.agree else "FINISHED")
        for lost in came.lost:
            self.say(f"lost     {lost}")
        link = self._charted()
        return StudyResult(
            study=self.study,
            trained=self.trained,
            settled=self.progress.settled,
            failed=self.failed,
            copies=came.copies,
            agree=came.agree,
            table=came.table,
            sentences=came.sentences,
            page=came.place,
            report_run_id=self.report.id,
            store=self.store.uri,
            chart=link,
            seconds=seconds,
        )

    def _charted(self) -> str:
        """Prepare the chart page of this edition; the link to it."""
        experiment, name = self.report.run.info.experiment_id, f"{self.study.name}-{self.edition}"
        parts = ("test", "val", "train") if any(plan.config.validation for plan in self.plans.values()) else ("test", "train")
        tags = {"study": self.study.name, "edition": self.edition}
        self.store.share(experiment, name, chart.view(tags, [row.name for row in self.study.rows], parts))
        return chart.shared(experiment, name)


def edition(study: Study, plans: Sequence[Plan]) -> str:
    """Eight digits of what cells share: an experiment may hold a study with 2 epochs and with 10, on this data and that."""
    shared = {name: text for name, text in plans[0].config.text().items() if name not in (*study.varied, "seed", "data_dir")}
    data = sorted({plan.data.digest for plan in plans})
    return hashlib.sha256(json.dumps([shared, data], sort_keys=True).encode()).hexdigest()[:8]


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
