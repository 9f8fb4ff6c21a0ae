"""One launch of a study: the runs that its cells stand on, found or created, and what became of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness import chart, report
from harness.conclusions import part_name
from harness.ending import fail
from harness.engine import Came
from harness.errors import TakenOver
from harness.outlook import outlook
from harness.plan import Plan
from harness.progress import Progress, Say, Watch
from harness.recorder import RunResult
from harness.results import EpochRecord
from harness.stacks import pack
from harness.store import UNFINISHED, Store
from harness.study import Study
from harness.survey import DIGESTS, Standing, leaders, survey
from harness.tracking import RunLog
from harness.worker import Lane, Work

SHARED = ("config.json", "history.csv", "record.json", "plots/history.png")  # files that a copied run has too


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


class Launch:
    """One launch of a study: the runs that it stands on, and those that it has trained."""

    def __init__(
        self, store: Store, study: Study, plans: Sequence[Plan], say: Say, watch: Watch, named: str | None = None
    ) -> None:
        self.store, self.study, self.say, self.watch = store, study, say, watch
        self.plans = {plan.cell.name: plan for plan in plans}
        self.edition = named or edition(study, plans)
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
        with ExitStack() as guard:
            with self.store.uncut():  # an interrupt comes when there is somebody to end the run
                self.report = report.begin(self.store, self.study, self.edition, digests, overrides, looks)
                guard.enter_context(self._guarded())
            yield

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.leave()
            fail(self.report, error)
            raise

    def leave(self) -> None:
        """End what was scheduled, or had begun, and is not trained any more."""
        left = len(self.left)
        for run_id in self.left:
            with suppress(Exception):  # one that was deleted meanwhile, a store that is gone: the first error is what to show
                if (status := self.store.get(run_id).info.status) in UNFINISHED:
                    self.store.end(run_id, "KILLED")
                left -= status == "FINISHED"  # in a stack that did not come back
        if left:
            self.say(f"killed   {left} cells are left; the same command goes on from there, and from their checkpoints")

    def schedule(self, workers: int, share: bool, probe: bool, models: bool) -> list[Work]:
        """Find or create the run of every cell, and cut what is to be trained into stacks."""
        todo = self.claim(share)
        stacks = pack(todo, workers)
        self.say(f"study    {outlook(self.study, todo, stacks, workers)}")
        return [Work(self.store.uri, tuple(map(self.lane, stack)), probe, models) for stack in stacks]

    def claim(self, share: bool = False) -> list[Plan]:
        """Find or create the run of every cell; which of them are to be trained."""
        runs = self.store.runs(self.study.name, study=self.study.name)
        wanted = [(plan.cell, plan.tags) for plan in self.plans.values()]
        standings = survey(wanted, runs, self.store.locks.held)
        todo = []
        leads = leaders(standings, {name: plan.config.digest for name, plan in self.plans.items()})
        for standing in standings:
            plan, name = self.plans[standing.cell.name], standing.cell.name
            if standing.settled:
                self.runs[name] = RunLog(self.store, standing.run)
                continue
            leader = leads[plan.config.digest] if share else name
            with self.store.uncut():  # see `reported`
                self.runs[name] = log = self._run(plan, standing)
                self.left[log.id] = name
            if leader == name:
                todo.append(plan)
            else:
                self.twins[name] = leader
        self._tidy(runs)
        epochs, part = sum(plan.config.epochs for plan in todo), part_name(self.study.shown)
        self.progress = Progress(len(self.plans), len(self.plans) - len(self.left), epochs, part=part)
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
            self.progress.running[cell] = done.curves[f"{self.study.shown}/loss"]
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
            log, other = (RunLog.of(self.store, self.runs[cell].id) for cell in (name, leader))
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
        loss, accuracy = (metrics[f"{self.study.shown}/{what}"] for what in ("loss", "accuracy"))
        numbers = f"{part_name(self.study.shown)} loss {loss:.4g}  accuracy {accuracy:.4f}"
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

    def result(self, seconds: float, spread: Callable[..., Iterable[Any]]) -> StudyResult:
        """Write the report, with the help of whoever trained, and end its run."""
        self.say("writing  the report")
        came = report.write(self.study.name, spread=spread)
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
