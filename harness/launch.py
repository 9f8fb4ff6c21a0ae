"""Runs cells: from a config to a finished run in the store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from harness import tracking
from harness.checkpoint import Checkpoint
from harness.config import FIELDS, RunConfig
from harness.errors import CheckpointError, InputError, MissingArtifact, refusal
from harness.layerlist import LayerList
from harness.plan import Plan, prepare
from harness.recorder import BEST, LAST, Recorder, RunResult, ending
from harness.results import EpochRecord
from harness.tracking import Store
from harness.training import Stack, exact_arithmetic
from harness.training import train as train_stack

Report = Callable[[EpochRecord, int], None]  # a record, and how many epochs there will be


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

    Raises InputError (also DataError, StoreError) before anything is written. A run that diverges is a result.
    """
    plan = prepare(config, say)
    store = Store()
    log = store.open(run_id) if run_id else store.create(tracking.EXPERIMENT, plan.name)
    with log.alone(), exact_arithmetic():
        if run_id:
            log.adopt(plan.name)
        with ending(log, say):
            say(f"run      {log.id}  {plan.name} on {plan.data.name}")
            recorder = Recorder(log, plan, probe)
            recorder.begin()
            return run(Stack.of(plan.arch, [plan.config], plan.data), [recorder], report, say)[0]


def resume(
    run_id: str,
    *,
    data_dir: str | None = None,
    probe: bool = True,
    report: Report = lambda record, epochs: None,
    say: Callable[[str], None] = print,
) -> RunResult:
    """Go on with a run that was killed, in the same MLflow run, to the digests of a run that never was.

    It starts from the last checkpoint that is whole, or from the beginning where there is none. Raises InputError for a run
    that is finished, unknown, held by another process, or whose data is no longer what it was.
    """
    store = Store()
    with store.open(run_id).alone(), tempfile.TemporaryDirectory() as folder:
        log = store.open(run_id)  # as it is now that nobody else holds it
        log.check_unfinished()
        plan = _planned(log, folder, data_dir, say)
        log.resume()
        with ending(log, say), exact_arithmetic():
            stack, recorder = Stack.of(plan.arch, [plan.config], plan.data), Recorder(log, plan, probe)
            try:
                recorder.restore(stack, 0, Checkpoint.load(log.fetch(LAST, folder)))
                say(f"resume: after epoch {stack.epoch} of {plan.config.epochs}")
            except (CheckpointError, MissingArtifact) as error:
                say(f"resume: from the beginning: {error}")
            return run(stack, [recorder], report, say)[0]


def run(stack: Stack, recorders: Sequence[Recorder], report: Report, say: Callable[[str], None]) -> list[RunResult]:
    """Train what is left of a stack, each lane into its own run; a lane's run is written out as soon as it ends."""
    epochs, results = stack.configs[0].epochs, dict[int, RunResult]()
    for done in train_stack(stack, recorders[0].probe):
        recorders[done.lane].epoch(stack, done.lane, done)
        report(done, epochs)
        if done.epoch == epochs or done.diverged:
            say("writing  figures and the model")
            results[done.lane] = recorders[done.lane].finish(stack, done.lane)
    return [results.get(lane) or recorder.finish(stack, lane) for lane, recorder in enumerate(recorders)]


def _planned(log: tracking.RunLog, folder: str, data_dir: str | None, say: Callable[[str], None]) -> Plan:
    """The plan of a run that had begun, on the data that it had. Raises InputError when the data is another."""
    params: dict[str, Any] = {name: text for name, text in log.run.data.params.items() if name in FIELDS}
    config = RunConfig.from_json(log.fetch("config.json", folder).read_text(encoding="utf-8"))
    plan = prepare(config.replace(data_dir=data_dir) if data_dir else config, say)
    if plan.data.digest != (wanted := log.run.data.tags.get("data_digest")):
        raise InputError(f"run {log.id} had data {wanted}, but {plan.data.name} here is {plan.data.digest}")
    if isinstance(config.network, LayerList) and params["network"].startswith("{"):
        params["network"] = config.network  # whose text may have been too long for a param
    return replace(plan, asked=RunConfig(**params))


def load_model(run: str | Path, which: str = "last") -> nn.Module:
    """The trained network of a run (its id), or of a `.safetensors` file, as a torch module in eval mode.

    `which` is `last` or `best`. Raises InputError when there is no such run, CheckpointError when its file is damaged.
    """
    if which not in ("last", "best"):
        raise InputError(refusal("which", which, ["last", "best"]))
    if Path(run).suffix == ".safetensors":
        return Checkpoint.load(Path(run)).module()
    with tempfile.TemporaryDirectory() as folder:
        return Checkpoint.load(Store().open(str(run)).fetch(LAST if which == "last" else BEST, folder)).module()
