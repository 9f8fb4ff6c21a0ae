"""Runs cells: from a config to a finished run in the store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from harness.checkpoint import SUFFIX, Checkpoint
from harness.config import FIELDS, RunConfig
from harness.ending import ending
from harness.errors import InputError, refusal
from harness.layerlist import LayerList
from harness.plan import Plan, prepare
from harness.pruning import Rule
from harness.recorder import BEST, LAST, PREVIOUS, Recorder, RunResult
from harness.results import EpochRecord
from harness.store import Store, in_one_line
from harness.study import SINGLE, Cell, Variant
from harness.tracking import RunLog
from harness.training import Stack, exact_arithmetic
from harness.training import train as train_stack

Report = Callable[[EpochRecord, int], None]  # a record, and how many epochs there will be
Ended = RunResult | Exception


def train(
    config: RunConfig,
    *,
    probe: bool = True,
    report: Report = lambda record, epochs: None,
    say: Callable[[str], None] = print,
    run_id: str | None = None,
) -> RunResult:
    """Train one combination into the MLflow store (MLFLOW_TRACKING_URI, else ./mlflow.db).

    `report` is told each epoch, `say` the lines that a person should see; `run_id` is a run that `mlflow run` has begun.
    `probe=False` leaves the health of layers out; weights and losses are the same to the bit.

    Raises InputError (also DataError, StoreError) before anything is written, WriteError when the disk or the store takes no
    more. A run that diverges is a result.
    """
    plan = prepare(config, say)
    store = Store.holding(run_id) if run_id else Store()
    store.say = say
    with in_one_line(store.uri), exact_arithmetic(), ExitStack() as held:
        with store.uncut():  # an interrupt comes when there is somebody to end the run
            log = RunLog(store, store.get(run_id) if run_id else store.create(SINGLE, plan.cell.name))
            held.enter_context(log.alone())
            if run_id:
                log.adopt(plan.cell.name)
            held.enter_context(ending(log, say))
        say(f"run      {log.id}  {plan.cell.name} on {plan.data.name}")
        recorder = Recorder(log, plan, probe)
        recorder.begin()
        return _alone(Stack.of(plan.arch, [plan.config], plan.data), recorder, report, say)


def resume(
    run_id: str,
    *,
    data_dir: str | None = None,
    probe: bool = True,
    report: Report = lambda record, epochs: None,
    say: Callable[[str], None] = print,
) -> RunResult:
    """Go on with a run that was killed, in the same MLflow run, to the digests of a run that never was.

    It starts from the last checkpoint, from the one before where that is damaged or not its own, or from the beginning where
    there is none. Raises InputError for a run that is finished, unknown, held by another process, or whose data is no longer
    what it was.
    """
    store = Store.holding(run_id)
    store.say = say
    with in_one_line(store.uri), RunLog.of(store, run_id).alone(), tempfile.TemporaryDirectory() as folder:
        log = RunLog.of(store, run_id)  # as it is now that nobody else holds it
        log.check_unfinished()
        plan = _planned(log, folder, data_dir, say)
        log.resume()
        with ending(log, say), exact_arithmetic():
            stack, recorder = Stack.of(plan.arch, [plan.config], plan.data), Recorder(log, plan, probe)
            last, refused = recorder.last()
            if last is None:
                say(f"resume: from the beginning: {refused or 'there is no checkpoint yet'}")
            else:
                recorder.restore(stack, 0, last)
                instead = f", by {PREVIOUS}: {refused}" if refused else ""
                say(f"resume: after epoch {last.epoch} of {plan.config.epochs}{instead}")
            return _alone(stack, recorder, report, say)


def _alone(stack: Stack, recorder: Recorder, report: Report, say: Callable[[str], None]) -> RunResult:
    """Train a stack of one; what goes wrong is the caller's to hear."""

    def tell(done: EpochRecord) -> None:
        report(done, recorder.plan.config.epochs)
        if recorder.ends_with(done):
            say("writing  figures and the model")

    ((_, result),) = run(stack, [recorder], tell)
    if isinstance(result, Exception):
        raise result
    return result


def run(
    stack: Stack, recorders: Sequence[Recorder], tell: Callable[[EpochRecord], None], rule: Rule | None = None
) -> Iterator[tuple[int, Ended]]:
    """Train what is left of a stack, each lane into its own run; yields (lane, what it came to) as lanes end.

    A lane whose run cannot be written ends with its error and the others go on. `tell` hears each epoch of each lane. A rule
    may end them all at the end of an epoch, also of the one at which they were restored.
    """
    ended = set[int]()
    for lane, recorder in enumerate(recorders):  # restored at its last epoch, from which the steps of others would move it
        if recorder.history and recorder.ends_with(recorder.history[-1]):
            ended.add(lane)
            yield lane, _finished(stack, recorder, lane)
    records = train_stack(stack, recorders[0].probe)
    while len(ended) < len(recorders) and not _given_up(recorders, rule):
        if (done := next(records, None)) is None:
            break
        if done.lane not in ended and (result := _recorded(stack, recorders[done.lane], done, tell)) is not None:
            ended.add(done.lane)
            yield done.lane, result
    for lane, recorder in enumerate(recorders):  # given up
        if lane not in ended:
            yield lane, _finished(stack, recorder, lane)


def _given_up(recorders: Sequence[Recorder], rule: Rule | None) -> bool:
    """Whether the lanes are the seeds of a trial that is worth no more epochs."""
    if rule is None:
        return False
    curves = {}
    for recorder in recorders:
        past = recorder.history
        diverged = past[-1].epoch if past and past[-1].diverged else None
        curves[recorder.plan.config.seed] = rule.cost({done.epoch: done.curves[rule.curve] for done in past}, diverged)
    return rule.ends(curves) is not None


def _finished(stack: Stack, recorder: Recorder, lane: int) -> Ended:
    """Write a run's end."""
    try:
        return recorder.finish(stack, lane)
    except Exception as error:
        return error


def _recorded(stack: Stack, recorder: Recorder, done: EpochRecord, tell: Callable[[EpochRecord], None]) -> Ended | None:
    """Write an epoch, and the run's end with its last one."""
    try:
        recorder.epoch(stack, done.lane, done)
        tell(done)
    except Exception as error:
        return error
    return _finished(stack, recorder, done.lane) if recorder.ends_with(done) else None


def _planned(log: RunLog, folder: str, data_dir: str | None, say: Callable[[str], None]) -> Plan:
    """The plan of a run that had begun, on the data that it had. Raises InputError when the data is another."""
    params: dict[str, Any] = {name: text for name, text in log.run.data.params.items() if name in FIELDS}
    config = RunConfig.from_json(log.fetch("config.json", folder).read_bytes())
    if isinstance(config.network, LayerList) and params["network"].startswith("{"):
        params["network"] = config.network  # whose text may have been too long for a param
    tags, asked = log.run.data.tags, RunConfig(**params)
    row = Variant(tags["variant"], asked, tags["condition"], tags.get("factor", ""), tags.get("level", ""))
    cell = Cell(tags["study"], row, asked.seed)
    plan = prepare(config.replace(data_dir=data_dir) if data_dir else config, say, cell)
    if plan.data.digest != (wanted := tags.get("data_digest")):
        raise InputError(f"run {log.id} had data {wanted}, but {plan.data.name} here is {plan.data.digest}")
    if (began := tags.get("code_digest")) not in (None, plan.tags["code_digest"]):
        raise InputError(
            f"run {log.id} began with other code, numerics, torch or numpy (code_digest {began}): half a run each is none; "
            f"start afresh"
        )
    return plan


def load_model(run: str | Path, which: str = "last") -> nn.Module:
    """The trained network of a run (its id), or of a `.safetensors` file, as a torch module in eval mode.

    `which` is `last` or `best`. Raises InputError when there is no such run, CheckpointError when its file is damaged.
    """
    if which not in ("last", "best"):
        raise InputError(refusal("which", which, ["last", "best"]))
    if Path(run).suffix == SUFFIX:
        return Checkpoint.load(Path(run)).module()
    log = RunLog.of(Store.holding(str(run)), str(run))
    with tempfile.TemporaryDirectory() as folder:
        return Checkpoint.load(log.fetch(LAST if which == "last" else BEST, folder)).module()
