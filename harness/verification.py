"""Trains a run again from its record and says whether it has the same bits; if not, what differs first, and why."""

from __future__ import annotations

import csv
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import betaincinv

from harness import record, trace
from harness.checkpoint import state_digest
from harness.config import RunConfig, slug
from harness.errors import DataError, InputError, MissingArtifact, StoreAway, StoreError, WriteError, refusal
from harness.launched import last_study
from harness.plan import Plan, prepare
from harness.results import CURVES, EpochRecord, same, ulps
from harness.store import Store, in_one_line
from harness.study import Study
from harness.tracking import RunLog
from harness.training import Stack, exact_arithmetic, finals, train

RTOL = 1e-5  # of the first losses, where bits differ
METRIC, MATTERS = "final/test_loss", 0.02  # nats: what conclusions are about, for a run of no study that says so
LEVELS = ("same bits", "same first losses", "same conclusions", "another result")
Say = Callable[[str], None]
Row = Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """What came of training a run again."""

    run_id: str
    name: str
    level: str  # of LEVELS
    first: str = ""  # the first thing that differs; empty for the same bits
    causes: Sequence[str] = ()  # what else differs between then and now, the likeliest cause first

    @property
    def exact(self) -> bool:
        return not self.first

    @property
    def tag(self) -> str:
        """For the run's tag `verified`."""
        return "bit-exact" if self.exact else slug(f"{self.level} - differs in {self.first}")[:250]

    def lines(self) -> Iterator[str]:
        """The verdict for a person."""
        if self.exact:
            yield f"BIT-EXACT {self.run_id}  {self.name}"
            # the environment is what a worker has and a terminal has not: here it moved nothing
            yield from (f"although  {cause}" for cause in self.causes if not cause.startswith("environment: "))
            return
        yield f"DIFFERS   {self.run_id}  {self.name}"
        yield f"first     {self.first}"
        yield f"level     {self.level}"
        title = "cause"
        for cause in self.causes or ("none that the record knows: same code, data, libraries and CPU",):
            yield f"{title:<9} {cause}"
            title = "or"


@dataclass(frozen=True)
class Past:
    """What the store holds of a run that ended."""

    log: RunLog
    record: Mapping[str, Any]
    curves: Sequence[Row]  # of each epoch

    @classmethod
    def of(cls, log: RunLog) -> Past:
        """Raises InputError for a run that has not finished, or whose record this version cannot read."""
        if log.run.info.status != "FINISHED":
            raise InputError(f"run {log.id} is {log.run.info.status}; only a FINISHED run can be verified")
        with tempfile.TemporaryDirectory() as folder:
            try:
                content = json.loads(log.fetch("record.json", folder).read_text(encoding="utf-8"))
                text = log.fetch("history.csv", folder).read_text(encoding="utf-8")
            except (MissingArtifact, ValueError) as error:
                raise InputError(f"run {log.id} has no record that can be read: {error}") from None
        if not isinstance(content, dict) or content.get("schema") != record.SCHEMA:
            schema = content.get("schema") if isinstance(content, dict) else None
            raise InputError(f"run {log.id} has a record of schema {schema!r}; this version of harness reads {record.SCHEMA}")
        try:
            rows = [{name: float(row[name]) for name in CURVES if row.get(name)} for row in csv.DictReader(text.splitlines())]
            content["trace"]["epochs"], content["config"]["seed"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"run {log.id} has a damaged record: {type(error).__name__}: {error}") from None
        return cls(log, content, rows)

    @property
    def config(self) -> RunConfig:
        return RunConfig(**self.record["config"])

    def conclusions(self) -> tuple[str, float]:
        """The metric that its study draws conclusions about, as last launched, and the smallest difference that matters.

        METRIC and MATTERS for a run of no study, and of one that declares none.
        """
        study = last_study(self.log.store, self.log.run.data.tags.get("study", ""))
        return (study.metric, study.matters) if study and study.matters else (METRIC, MATTERS)

    def contradictions(self) -> Iterator[str]:
        """Where the record is not what the run's tags say: one of the two was altered."""
        said = {"config_digest": self.config.digest, "history_digest": self.record["trace"]["metrics"]}
        if self.record["trace"]["epochs"]:
            said["state_digest"] = self.record["trace"]["epochs"][-1]
        tags, params = self.log.run.data.tags, self.log.run.data.params
        for name, text in self.config.text().items():
            if name not in ("dataset", "network", "device", "data_dir") and params.get(name, text) != text:
                with_what = RunConfig(**{name: params[name]}).text()[name]
                if with_what != text:
                    yield f"config: {name} is {text} in the record, {params[name]} among the run's params"
        for name, digest in said.items():
            if tags.get(name) != digest:
                yield f"record: {name} is {digest[:12]} in the record, {str(tags.get(name))[:12]} among the run's tags"


def verify(run_id: str, *, data_dir: str | None = None, tolerance: bool = False, say: Say = print) -> Verdict:
    """Train a run again and compare: beginnings, then weights and curves of each epoch, to the last bit.

    It stops at the first difference, but with `tolerance` goes to the end to say what is the same in spite of it. The run's
    tag `verified` gets the verdict; nothing else is written. `latest` is the run begun last of those that finished. Raises
    InputError for a run that cannot be verified.
    """
    store = Store.there()
    if store is None:
        raise InputError("there is no store here; set MLFLOW_TRACKING_URI to the one that has the run")
    past = Past.of(RunLog(store, store.latest() if run_id == "latest" else store.get(run_id)))
    say(f"verify    {past.log.id}  {past.log.run.info.run_name}, {past.config.epochs} epoch{'s' * (past.config.epochs > 1)}")
    return _verified(past, data_dir, tolerance, say)


def _verified(past: Past, data_dir: str | None, tolerance: bool, say: Say) -> Verdict:
    config, name = past.config, str(past.log.run.info.run_name)
    try:
        with exact_arithmetic():
            plan = prepare(config.replace(data_dir=data_dir or config.data_dir), say)
            causes = [*past.contradictions(), *record.differences(past.record, _now(plan))]
            first, level = _compared(past, plan, tolerance)
    except DataError as error:
        first, level, causes = "the data", LEVELS[-1], [f"data: {error}"]
    verdict = Verdict(past.log.id, name, level, first, causes)
    try:
        with in_one_line(past.log.store.uri):
            past.log.tags({"verified": verdict.tag})
    except (WriteError, StoreAway) as error:  # the verdict stands all the same
        say(f"lost      the tag verified: {error}")
    return verdict


def sample(study: Study | str | Path, count: int, *, data_dir: str | None = None, say: Say = print) -> list[Verdict | None]:
    """Verify `count` finished runs of a study, drawn at random; all of them where there are no more.

    None stands for one that cannot be trained again, for it has no record.
    """
    name = study.name if isinstance(study, Study) else str(study)
    if count < 1:
        raise InputError(refusal("sample", count, "a whole number from 1"))
    store = Store.there()
    runs = store.runs(name, study=name) if store else []
    ids = [run.info.run_id for run in runs if run.info.status == "FINISHED"]
    if store is None or not ids:
        raise InputError(f"study {name} has no finished run in this store")
    drawn = random.SystemRandom().sample(ids, min(count, len(ids)))  # whoever made the runs cannot know which
    verdicts = list[Verdict | None]()
    for run_id in drawn:
        try:
            past = Past.of(RunLog.of(store, run_id))
        except StoreError:
            raise
        except InputError as error:  # it cannot be repeated, which is no reason to leave the others
            verdicts.append(None)
            say(f"REFUSED   {error}")
            continue
        verdicts.append(found := _verified(past, data_dir, False, say))
        for line in found.lines():
            say(line)
    exact = sum(verdict is not None and verdict.exact for verdict in verdicts)
    say(f"sample    {supported(exact, len(drawn), len(ids))}")
    return verdicts


def supported(exact: int, drawn: int, runs: int) -> str:
    """What a random sample says of all runs: an upper bound on the share that cannot be repeated (Clopper & Pearson 1934)."""
    found = f"{exact} of {drawn} bit-exact"
    if drawn == runs:
        return f"{found}: all runs there are"
    most = float(betaincinv(drawn - exact + 1, exact, 0.95)) if exact else 1.0
    return f"{found}, drawn from {runs}: at most {most:.0%} of such runs cannot be repeated, at 95% confidence"


def _now(plan: Plan) -> dict[str, Any]:
    data = {"name": plan.data.name, "digest": plan.data.digest, "files": dict(plan.data.files)}
    return {"data": data, **record.surroundings(plan.config)}


def _compared(past: Past, plan: Plan, tolerance: bool) -> tuple[str, str]:
    """The first thing that differs, empty for none, and the level of sameness."""
    traced, then = trace.beginnings(plan.arch, plan.config, plan.data), past.record["trace"]
    first = next((name for name in trace.BEGINNINGS if traced[name] != then.get(name)), "")
    if first == "first_losses":
        first = f"first_losses, at step {_unlike(traced[first], then[first]) + 1}"
    if first and not tolerance:
        return first.replace("_", " "), LEVELS[-1]
    stack = Stack.of(plan.arch, [plan.config], plan.data)
    for done in train(stack, probe=False):
        first = first or _epoch(past, done, state_digest(stack.network.state(0)))
        if first and not tolerance:
            return first, LEVELS[-1]
        if past.log.run.data.tags.get("pruned") == f"epoch {done.epoch}":  # a search has given it up there
            break
    ended = {f"final/{name.replace('/', '_')}": value for name, value in finals(stack, 0, done).items()}
    metrics = past.log.run.data.metrics
    first = first or next(
        (
            f"{name}, by {ulps(value, metrics[name])} ulp"
            for name, value in ended.items()
            if name in metrics and not same(value, metrics[name])
        ),
        "",
    )
    epochs = max(len(past.curves), len(past.record["trace"]["epochs"])) - 1  # fewer are named above
    if not first and epochs != done.epoch:
        first = f"the number of epochs: {done.epoch}, then {epochs}"
    return first.replace("_", " "), _level(past, first, traced["first_losses"], ended) if first else LEVELS[0]


def _level(past: Past, first: str, losses: Sequence[str], ended: Mapping[str, float]) -> str:
    then = np.array([float.fromhex(text) for text in past.record["trace"]["first_losses"]])
    now = np.array([float.fromhex(text) for text in losses])
    if len(now) == len(then) and np.allclose(now, then, rtol=RTOL, atol=0, equal_nan=True):
        return LEVELS[1]
    metric, matters = past.conclusions()
    difference = abs(ended.get(metric, np.nan) - past.log.run.data.metrics.get(metric, np.nan))
    return LEVELS[2] if difference < matters else LEVELS[3]


def _epoch(past: Past, done: EpochRecord, digest: str) -> str:
    """What differs in an epoch, empty for nothing: its weights, and the metric that is furthest off."""
    epochs = past.record["trace"]["epochs"]
    if done.epoch >= min(len(epochs), len(past.curves)):
        return f"epoch {done.epoch}: the run had none"
    then = past.curves[done.epoch]
    off = {name: ulps(value, then[name]) for name, value in done.curves.items() if not same(value, then.get(name, np.nan))}
    worst = max(off, key=lambda name: off[name], default="")
    parts = ["weights"] if digest != epochs[done.epoch] else []
    parts += [f"{worst}, by {off[worst]} ulp"] if worst else []
    return f"epoch {done.epoch}: {' and '.join(parts)}" if parts else ""


def _unlike(now: Sequence[object], then: Sequence[object]) -> int:
    return next((i for i, (a, b) in enumerate(zip(now, then, strict=False)) if a != b), min(len(now), len(then)))
