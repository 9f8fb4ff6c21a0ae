"""Runs a search: rounds of trials, each asked for when all earlier ones are told; then the comparison of what was found."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import chart, driver, engine, findings, pruning, report, stacks
from harness.asked import Asked
from harness.cells import Launch, StudyResult
from harness.data import Data
from harness.driver import alone
from harness.ending import fail
from harness.engine import Engine
from harness.errors import InputError
from harness.plan import Plan, prepare, prepare_all
from harness.progress import Progress, Say, Watch
from harness.proposals import Proposer
from harness.pruning import Trial
from harness.space import Search
from harness.store import Store, in_one_line
from harness.study import Cell, Study, Variant
from harness.survey import IDENTITY
from harness.tracking import RunLog
from harness.worker import Work


@dataclass(frozen=True)
class SearchResult:
    """What a search came to."""

    search: Search
    trials: tuple[Asked, ...]
    trained: int  # runs, now
    best: Mapping[str, Asked]  # condition -> its best trial
    warnings: tuple[str, ...]  # best settings at an end of the space
    failed: Mapping[str, str]  # trial -> why
    final: StudyResult | None  # the comparison on fresh seeds; None where trials failed
    report_run_id: str
    store: str
    chart: str
    page: str  # the report, as a path or a link; empty where no setting could be tried
    seconds: float


def run_search(
    search: Search | str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    overrides: Mapping[str, Any] = {},
    launcher: str | None = None,
    say: Say = print,
    watch: Watch = lambda progress: None,
) -> SearchResult:
    """Find the best setting of each condition on validation data, then compare them on fresh seeds and the test set.

    What the store has of the search already is not trained again: it is asked and told anew, from the same seed, so it goes
    on as if it had never stopped. Arguments are those of `run_study`. Raises InputError before anything is written.
    """
    began = time.monotonic()
    search = search if isinstance(search, Search) else Search.read(search)
    if workers is not None and workers < 0:
        raise InputError(f"workers={workers} is not allowed; allowed: a whole number from 0")
    plans = prepare_all(search.study.cells, say)
    with engine.opened(workers, scheduler, [plan.config for plan in plans]) as hands, ExitStack() as held:
        store = Store.holding(launcher) if launcher else Store()
        if launcher:
            held.enter_context(RunLog.of(store, launcher).alone())
            RunLog.of(store, launcher).check_unused()
        with in_one_line(store.uri), alone(store, search.name, say):
            hunt = Hunt(store, search, plans[0], hands, say, watch)
            return hunt.run(overrides, began, launcher)


class Hunt:
    """One launch of a search."""

    def __init__(self, store: Store, search: Search, first: Plan, hands: Engine, say: Say, watch: Watch) -> None:
        self.store, self.search, self.hands, self.say, self.watch = store, search, hands, say, watch
        self.proposers = {row.name: Proposer(search, row) for row in search.study.rows}
        self.trials: list[Asked] = []
        self.cells: dict[str, Any] = {}  # cell -> the tags that tell its run from others
        self.dataset, self.loaded = first.data.name, dict[tuple[str, ...], Data]()
        self.edition = hashlib.sha256(f"{search.digest} {first.data.digest}".encode()).hexdigest()[:8]
        self.trained, self.seconds, self.began = 0, 0.0, time.monotonic()

    def run(self, overrides: Mapping[str, Any], began: float, launcher: str | None) -> SearchResult:
        """All rounds, the comparison at the end, and what there is to be said of both."""
        search, name = self.search, self.search.name
        of, each = len(search.study.rows), search.budget
        budget = f"{search.settings.seconds:g} s of training" if search.settings.seconds else f"{of * each} trials"
        sampler, pruner, seeds = search.settings.sampler, search.settings.pruner, len(search.study.seeds)
        self.say(f"search   {name}: {budget} x {seeds} seeds, sampler {sampler}, pruner {pruner}, by {search.study.metric}")
        with ExitStack() as guard:
            with self.store.uncut():  # an interrupt comes when there is somebody to end the run
                log = report.open_run(self.store, name, self.edition)
                guard.enter_context(self._guarded(log))
            while round_ := self._ask():
                self._keep(log, overrides)
                self._train(round_)
                self._keep(log, overrides)
                if any(trial.state == "failed" for trial in round_):  # what it would have come to, later trials depend on
                    break
            failed = {trial.name: trial.why for trial in self.trials if trial.state == "failed"}
            best = {row: trial for row in self.proposers if (trial := self.best(row)) is not None}
            final = None if failed or not best else self._compared(best)
            warned = tuple(f"{row}: {line}" for row, trial in best.items() for line in search.edges(trial.setting))
            link = self._charted(log.run.info.experiment_id)
            self.say("writing  the report of the search")
            page = findings.write(name).place if self.cells else ""
            result = SearchResult(
                search=search,
                trials=tuple(self.trials),
                trained=self.trained,
                best=best,
                warnings=warned,
                failed=failed,
                final=final,
                report_run_id=log.id,
                store=self.store.uri,
                chart=link,
                page=page,
                seconds=time.monotonic() - began,
            )
            if launcher:
                self.store.update(launcher, name=f"search-{name}")
                RunLog.of(self.store, launcher).tags({"mlflow.note.content": f"Its runs: [{name}]({link})"})
            log.finish("FAILED" if failed or final is None or final.failed else "FINISHED")
        return result

    @contextmanager
    def _guarded(self, log: RunLog) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            fail(log, error)
            self.say(f"stopped  {self.search.name}; the same command goes on from there")
            raise

    def _charted(self, experiment: str) -> str:
        """Prepare the chart page of the trials, without the test set; the link to it."""
        view = f"{self.search.name}-{self.edition}"
        tags = {"study": self.search.name, "edition": self.edition}
        self.store.share(experiment, view, chart.view(tags, [trial.name for trial in self.trials], ("val", "train")))
        return chart.shared(experiment, view)

    def best(self, row: str) -> Asked | None:
        """The best trial of a condition so far."""
        mine = {trial.number: trial for trial in self.trials if trial.condition.name == row}
        found = pruning.best([trial.came for trial in mine.values() if trial.came is not None])
        return mine[found.number] if found else None

    def _ask(self) -> list[Asked]:
        """The trials of the next round; none when the budget is spent."""
        search, settings = self.search, self.search.settings
        asked = len(self.trials) // len(self.proposers)
        if settings.seconds is not None and self.seconds >= settings.seconds:
            return []
        if (count := min(settings.batch, search.budget - asked)) <= 0:
            return []
        round_ = []
        for row in search.study.rows:
            for _ in range(count):
                number, setting = self.proposers[row.name].ask()
                name = f"{f'{row.name} ' if search.study.factors else ''}trial {number:03d}"
                round_.append(Asked(row, number, setting, name))
        self.trials += round_
        for trial, variant in zip(round_, self._unfolded().rows[-len(round_) :], strict=True):
            self._plan(trial, replace(variant, trial=trial.number, search=search.digest))
        return round_

    def _unfolded(self) -> Study:
        rows = [{"name": trial.name, **self.search.levels(trial.condition), **trial.setting} for trial in self.trials]
        return self.search.unfolded(rows)

    def _plan(self, trial: Asked, variant: Variant) -> None:
        """Plan a trial's runs, and by which rule they end."""
        for seed in self.search.study.seeds:
            cell = Cell(self.search.name, variant, seed)
            try:
                plan = prepare(cell.config.replace(dataset=self.dataset), self.say, cell, self.loaded)
            except InputError as error:
                trial.plans, trial.why = [], str(error)
                return
            trial.plans.append(plan)
            self.cells[cell.name] = {name: str(plan.tags[name]) for name in (*IDENTITY, "dataset")}
        past = [t.came for t in self.trials if t.condition.name == trial.condition.name and t.came is not None]
        trial.rule = pruning.rule(self.search, trial.condition.name, trial.number, trial.plans[0].config.epochs, past)

    def _train(self, round_: list[Asked]) -> None:
        """Train what the store has not got of a round; then tell the samplers what its trials came to, in order."""
        plans = [plan for trial in round_ for plan in trial.plans]
        launch = Launch(
            self.store, self._unfolded(), plans, lambda line: None, lambda now: self._seen(now, launch, round_), self.edition
        )
        try:
            todo = {plan.cell.name for plan in launch.claim()}
            works = []
            for trial in round_:
                if mine := [plan for plan in trial.plans if plan.cell.name in todo]:
                    there = {plan.cell.seed: self._curve(launch, trial, plan) for plan in trial.plans if plan not in mine}
                    assert trial.rule is not None
                    rule = replace(trial.rule, known=there)
                    work = Work(self.store.uri, tuple(map(launch.lane, mine)), rule=rule)
                    works.append((stacks.seconds(mine), work))
            longest_first = [work for _, work in sorted(works, key=lambda pair: -pair[0])]
            with closing(self.hands.trained(longest_first, launch.heard)) as trained:
                for work, came in trained:
                    launch.ended(work, came)
        finally:
            launch.leave()
        self.trained += launch.trained
        for trial in round_:
            self._told(trial, launch)

    def _seen(self, now: Progress, launch: Launch, round_: Sequence[Asked]) -> None:
        """Show how far the search is, where one of its rounds says how far that is."""
        left = set(launch.left.values())
        open_ = [trial for trial in round_ if any(plan.cell.name in left for plan in trial.plans)]
        done, expected = len(self.trials) - len(open_), max(self._expected(), len(self.trials))
        each = len(self.search.study.seeds) * round_[0].condition.config.epochs  # given up early is done, too
        midway = {plan.cell.name: now.passed.get(plan.cell.name, 0) for trial in open_ for plan in trial.plans}
        passed = {"trials that are done": done * each, **midway}
        self.watch(
            Progress(expected, done, expected * each, now.failed, passed, now.running, self.began, what="trials", part=now.part)
        )

    def _expected(self) -> int:
        """How many trials there will be: a budget in seconds buys as many as it did so far."""
        search, told = self.search, sum(trial.state != "asked" for trial in self.trials)
        most, budget = search.budget * len(self.proposers), search.settings.seconds
        if budget is None:
            return most
        return min(most, math.ceil(told * budget / self.seconds)) if self.seconds else len(self.trials)

    def _told(self, trial: Asked, launch: Launch) -> None:
        """What a trial's runs came to, from the store."""
        if trial.plans:
            trial.why = next((launch.failed[p.cell.name] for p in trial.plans if p.cell.name in launch.failed), "")
            if trial.why:
                return self._line(trial)
            assert trial.rule is not None
            curves = {plan.cell.seed: self._curve(launch, trial, plan) for plan in trial.plans}
            ended = trial.rule.ends(curves)
            last = ended or trial.rule.epochs
            if short := [seed for seed, curve in curves.items() if max(curve, default=0) < last]:
                trial.why = f"the run of seed {short[0]} ends before epoch {last}; delete it and launch again"
                return self._line(trial)
            curves = {seed: {epoch: cost for epoch, cost in curve.items() if epoch <= last} for seed, curve in curves.items()}
            trial.came = Trial(trial.number, curves, ended)
            if self.search.settings.seconds is not None:
                runs = [launch.runs[plan.cell.name] for plan in trial.plans]
                self.seconds += sum(sum(run.points("time/epoch_seconds").values()) for run in runs)
        self.proposers[trial.condition.name].tell(trial.number, trial.came)
        self._line(trial)

    def _curve(self, launch: Launch, trial: Asked, plan: Plan) -> dict[int, float]:
        """The costs of a run that ended."""
        assert trial.rule is not None
        log = RunLog.of(self.store, launch.runs[plan.cell.name].id)
        diverged = log.run.data.tags.get("diverged", "").removeprefix("epoch ")
        return trial.rule.cost(log.points(self.search.curve), int(diverged) if diverged else None)

    def _line(self, trial: Asked) -> None:
        of, done = self.search.budget * len(self.proposers), self.trials.index(trial) + 1
        if trial.came is None:
            said = f"{trial.state}: {trial.why}"
        else:
            leads, pruned = self.best(trial.condition.name) is trial, trial.came.pruned
            ended = f"  given up after epoch {pruned}" if pruned is not None else "  best so far" if leads else ""
            value = f"validation {self.search.study.metric.rpartition('_')[2]} {abs(trial.came.cost):.4g}"
            said = f"{value if math.isfinite(trial.came.cost) else 'diverged'}{ended}"
        self.say(f"{done:>{len(str(of))}}/{of}  {trial.name}  {said}")

    def _compared(self, best: Mapping[str, Asked]) -> StudyResult:
        """The ordinary study at the end: what was chosen, on seeds that chose nothing."""
        study = self.search.final({row: trial.setting for row, trial in best.items()})
        self.say(f"compare  {study.name}: on {len(study.seeds)} fresh seeds and the test set")
        plans = prepare_all(study.cells, self.say)
        return driver.driven(self.store, study, plans, self.hands, self.say, self.watch)

    def _keep(self, log: Any, overrides: Mapping[str, Any]) -> None:
        """Write down, in the report run, what was asked so far and what it came to: `results` reads it."""
        planned = [trial for trial in self.trials if trial.plans]
        rows = [{"name": trial.name, **self.search.levels(trial.condition), **trial.setting} for trial in planned]
        found = {row: trial for row in self.proposers if (trial := self.best(row)) is not None}
        commands = {row: self.search.command(trial.condition, trial.setting) for row, trial in found.items()}
        content = {
            "search": json.loads(self.search.model_dump_json()),
            "trials": [t.kept for t in self.trials],
            "best": commands,
        }
        if rows:
            report.keep(log, self.search.unfolded(rows), self.cells, overrides, content)
