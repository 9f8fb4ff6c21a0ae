"""What a worker does for a driver: train runs that are in the store already, from wherever they stand."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial

from harness.checkpoint import Checkpoint
from harness.config import RunConfig
from harness.ending import fail
from harness.errors import DataError, InputError, StoreError
from harness.launch import run
from harness.outage import WAIT, is_outage
from harness.plan import prepare
from harness.pruning import Rule
from harness.recorder import PREVIOUS, Recorder, RunResult
from harness.results import EpochRecord
from harness.store import Store
from harness.study import Cell
from harness.tracking import RunLog
from harness.training import Stack, exact_arithmetic

PATIENCE = 60  # seconds that a run may still be held by a worker whose driver is gone: it looks up once an epoch
Tell = Callable[[str, EpochRecord], None]


@dataclass(frozen=True)
class Lane:
    """A run in the store and what it is to train."""

    run_id: str
    cell: Cell
    config: RunConfig  # resolved
    data_digest: str
    code_digest: str


@dataclass(frozen=True)
class Work:
    """Runs to be trained as one stack."""

    store: str
    lanes: tuple[Lane, ...]
    probe: bool = True
    models: bool = False
    rule: Rule | None = None  # where they are the seeds of a trial that may be given up


@dataclass
class Taken:
    """A run that this process holds, where it stands."""

    lane: Lane
    recorder: Recorder
    last: Checkpoint | None

    @property
    def stands(self) -> tuple[int, bool]:
        """Its epoch and whether its layers are probed: what the lanes of a stack must share."""
        return (self.last.epoch, bool(self.last.history[0].health)) if self.last else (0, self.recorder.probe)


def work(what: Work, tell: Tell) -> dict[str, RunResult | str]:
    """Train runs to their ends: run id -> what it came to, or in one line why it failed. Finished ones are left out.

    It may be called again for the same runs at any time, also after a kill: each goes on from its last whole checkpoint.
    `tell` hears each epoch of each run; an interrupt that it raises leaves the runs KILLED, with their checkpoints.
    """
    ended: dict[str, RunResult | str] = {}
    if (store := _opened(what.store)) is None:
        raise InputError(f"{platform.node()} has no store at {what.store}: put it on a shared disk, or use a tracking server")
    with ExitStack() as held, exact_arithmetic():
        groups: dict[tuple[int, bool], list[Taken]] = {}
        for lane in what.lanes:
            log = store.outage.outlasted(partial(RunLog.of, store, lane.run_id))
            try:
                held.enter_context(log.alone(PATIENCE))
            except InputError as error:  # whoever holds it writes it
                ended[lane.run_id] = str(error)
                continue
            try:
                log = RunLog.of(store, lane.run_id)  # as it is now that nobody else holds it
                if log.run.info.status != "FINISHED":
                    taken = _take(log, lane, what)
                    groups.setdefault(taken.stands, []).append(taken)
            except Exception as error:
                ended[lane.run_id] = _failed(log, error)
        if what.rule and len(groups) > 1:  # after a kill; a rule looks at all seeds after each epoch, so all start again
            groups = {(0, what.probe): [_afresh(taken) for group in groups.values() for taken in group]}
        try:
            for group in groups.values():
                ended |= _train(group, what, tell)
        except KeyboardInterrupt:  # here, where the runs are held, so that whoever takes them up next has the last word
            for mine in (taken.recorder.log for group in groups.values() for taken in group):
                with suppress(Exception):  # it stands as after a kill by force
                    _interrupted(mine)
            raise
    return ended


def _interrupted(mine: RunLog) -> None:
    """Leave a run KILLED, with the rows of all its epochs, unless another process has it now."""
    log = RunLog.of(mine.store, mine.id)
    if log.attempt == mine.attempt:
        if log.run.info.status == "RUNNING":
            mine.finish("KILLED")
        else:  # it has ended, or its driver has ended it
            mine.flush()


def _opened(uri: str) -> Store | None:
    """The store, waited for in an outage: it has answered the driver."""
    end = time.monotonic() + WAIT
    while True:
        try:
            return Store.there(uri)
        except StoreError as error:
            if error.__cause__ is None or not is_outage(error.__cause__) or time.monotonic() > end:
                raise
        time.sleep(1)


def _take(log: RunLog, lane: Lane, what: Work) -> Taken:
    """Make a run RUNNING; with its last checkpoint or the one before, or begun where there is neither."""
    plan = prepare(lane.config, lambda line: None, lane.cell)
    if plan.data.digest != lane.data_digest:
        raise DataError(f"{plan.data.name} has digest {plan.data.digest} here, but {lane.data_digest} for the driver")
    if plan.tags["code_digest"] != lane.code_digest:
        raise InputError("the code here is not the driver's: it was changed meanwhile; the same command goes on")
    recorder = Recorder(log, plan, what.probe, what.models)
    log.resume()
    last, refused = recorder.last()
    if last is None:
        recorder.begin()
    if refused:
        stands = f"after epoch {last.epoch}, by {PREVIOUS}" if last else "from the beginning"
        logging.getLogger(__name__).warning("%s of run %s goes on %s: %s", lane.cell.name, log.id, stands, refused)
    return Taken(lane, recorder, last)


def _afresh(taken: Taken) -> Taken:
    """A run that has begun, from its beginning: what is in the store already is not written twice."""
    taken.recorder.history.clear()
    return replace(taken, last=None)


def _train(group: Sequence[Taken], what: Work, tell: Tell) -> dict[str, RunResult | str]:
    """Train runs that stand at one epoch as a stack. Where it breaks as a whole, its lanes train alone: one may be why."""
    ended: dict[str, RunResult | str] = {}
    try:
        plan = group[0].recorder.plan
        stack = Stack.of(plan.arch, [taken.recorder.plan.config for taken in group], plan.data)
        for k, taken in enumerate(group):
            if taken.last:
                taken.recorder.restore(stack, k, taken.last)
        recorders = [taken.recorder for taken in group]
        for k, result in run(stack, recorders, lambda done: tell(group[done.lane].lane.run_id, done), what.rule):
            log = group[k].recorder.log
            ended[log.id] = _failed(log, result) if isinstance(result, Exception) else result
    except Exception as error:
        left = [taken for taken in group if taken.recorder.log.id not in ended]
        if len(group) == 1:
            return ended | {taken.recorder.log.id: _failed(taken.recorder.log, error) for taken in left}
        alone = replace(what, rule=None)  # one seed does not speak for the trial; the driver finds its end from the curves
        for taken in left:
            ended |= _train([_take(RunLog.of(taken.recorder.log.store, taken.lane.run_id), taken.lane, what)], alone, tell)
    return ended


def _failed(log: RunLog, error: Exception) -> str:
    """Mark a run FAILED; why, in one line."""
    fail(log, error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
