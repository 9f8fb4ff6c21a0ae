"""Runs cells: from a config to a finished run in the store."""

from __future__ import annotations

import math
import shlex
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness import data as datasets
from harness import health, plots, record, tracking
from harness.architecture import Architecture, architecture, as_module
from harness.checkpoint import Checkpoint, state_digest
from harness.config import RunConfig
from harness.data import Data
from harness.errors import CheckpointError, InputError, refusal
from harness.results import EpochRecord, history_csv, history_digest
from harness.tracking import RunLog, Store
from harness.training import Stack, check, evaluate, exact_arithmetic
from harness.training import train as train_stack

LAST, BEST = "checkpoints/last.safetensors", "checkpoints/best.safetensors"
Report = Callable[[EpochRecord, int], None]  # a record, and how many epochs there will be


@dataclass(frozen=True)
class RunResult:
    """A run that ended: what it was, what came out and where it lies."""

    run_id: str
    name: str
    config: RunConfig  # resolved: what `auto` became, the layer list itself
    history: Sequence[EpochRecord]
    final: Mapping[str, float]  # "final/test_loss": ..., and best/test_accuracy
    diverged: int | None  # the epoch
    state_digest: str
    history_digest: str
    store: str
    page: str  # of the run, under `mlflow ui`
    chart: str  # of the run beside others


@dataclass(frozen=True)
class Plan:
    """A config that was checked against its data: all that a run needs before the store hears of it."""

    asked: RunConfig
    config: RunConfig  # resolved
    arch: Architecture
    data: Data

    @property
    def name(self) -> str:
        """The run's name, `<variant>-s<seed>`."""
        return f"{self.asked.condition}-s{self.asked.seed}"


def prepare(config: RunConfig, say: Callable[[str], None] = print) -> Plan:
    """Check a config and load its data. Raises InputError; writes nothing, unless the dataset is to be downloaded."""
    arch = architecture(config.with_layers())
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError(refusal("device", "cuda", "cpu, auto: torch finds no CUDA device on this machine"))
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    data = datasets.load(config.dataset, config.data_dir, config.normalize, say).to(device)
    resolved = config.with_layers().replace(dataset=data.name, device=device)
    check(arch, resolved, data)
    return Plan(config, resolved, arch, data)


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
    log = store.adopt(run_id, plan.name) if run_id else store.create(tracking.EXPERIMENT, plan.name)
    with log.alone(), _ending(log), exact_arithmetic():
        _begin(log, plan)
        return _run(log, plan, Stack.of(plan.arch, [plan.config], plan.data), [], probe, report)


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
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig.from_json(store.fetch(run_id, "config.json", folder).read_text(encoding="utf-8"))
        plan = prepare(config.replace(data_dir=data_dir) if data_dir else config, say)
        tags = store.get(run_id).data.tags
        if plan.data.digest != tags.get("data_digest"):
            raise InputError(
                f"run {run_id} had data {tags.get('data_digest')}, but {plan.data.name} here is {plan.data.digest}"
            )
        log = store.resume(run_id)
        with log.alone(), _ending(log), exact_arithmetic():
            log.tags({"attempt": int(tags.get("attempt", "1")) + 1})
            stack = Stack.of(plan.arch, [plan.config], plan.data)
            try:
                history = _restore(stack, plan, Checkpoint.load(store.fetch(run_id, LAST, folder)))
                say(f"resume: after epoch {stack.epoch} of {plan.config.epochs}")
            except (CheckpointError, InputError) as error:
                history = []
                say(f"resume: from the beginning: {error}")
            for done in history:
                log.epoch(done)
                report(done, plan.config.epochs)
            return _run(log, plan, stack, history, probe, report)


def load_model(run: str | Path, which: str = "last") -> nn.Module:
    """The trained network of a run (its id), or of a `.safetensors` file, as a torch module in eval mode.

    `which` is `last` or `best`. Raises InputError when there is no such run, CheckpointError when its file is damaged.
    """
    if which not in ("last", "best"):
        raise InputError(refusal("which", which, ["last", "best"]))
    if Path(run).suffix == ".safetensors":
        return Checkpoint.load(Path(run)).module()
    with tempfile.TemporaryDirectory() as folder:
        return Checkpoint.load(Store().fetch(str(run), LAST if which == "last" else BEST, folder)).module()


def _begin(log: RunLog, plan: Plan) -> None:
    """Record what is known before training: params, tags, data and the config that a resume reads."""
    config, asked, data = plan.config, plan.asked, plan.data
    factor, _, level = asked.condition.partition("=")
    one_factor = {"factor": factor, "level": level} if asked.condition.count("=") == 1 else {}
    commit = record.git_commit()
    log.text("config.json", config.json_text())
    log.params(asked.text())
    log.tags(
        {
            "dataset": data.name,
            "study": tracking.EXPERIMENT,
            "variant": asked.condition,
            "condition": asked.condition,
            **one_factor,
            "seed": config.seed,
            "cell": plan.name,
            "config_digest": config.digest,
            "data_digest": data.digest,
            "attempt": 1,
            "parameters": plan.arch.parameters,
            **({"mlflow.source.git.commit": commit[0]} if commit else {}),
        }
    )
    for context, split in (("training", data.train), ("testing", data.test)):
        log.dataset(data.name, context, data.digest, len(split), data.files)


def _restore(stack: Stack, plan: Plan, last: Checkpoint) -> list[EpochRecord]:
    """Put the stack where a checkpoint left it; returns the history so far. Raises CheckpointError for another run's."""
    if (last.config.digest, last.data_digest) != (plan.config.digest, plan.data.digest):
        raise CheckpointError(f"{LAST} belongs to another config or other data")
    stack.restore(0, last.epoch, last.steps, last.state, last.moments)
    if last.history[-1].diverged(plan.data.num_classes):
        stack.diverged.add(0)
    return list(last.history)


def _run(log: RunLog, plan: Plan, stack: Stack, history: list[EpochRecord], probe: bool, report: Report) -> RunResult:
    """Train what is left of a run, recording every epoch, then write what is known at the end."""
    chosen_by = "val/loss" if plan.config.validation else "test/loss"
    for done in train_stack(stack, probe):
        best = min((past.curves[chosen_by] for past in history if past.epoch), default=math.inf)
        history.append(done)
        log.epoch(done)
        if done.epoch:
            last = Checkpoint(
                plan.config, plan.data.digest, stack.epoch, int(stack.steps), stack.network.state(0), stack.moments(0), history
            )
            if done.curves[chosen_by] < best or done.epoch == 1:
                log.file(BEST, replace(last, moments={}, chosen_by=chosen_by).save)
            log.file(LAST, last.save)
        report(done, plan.config.epochs)
    return _finish(log, plan, stack, history, probe)


def _finish(log: RunLog, plan: Plan, stack: Stack, history: Sequence[EpochRecord], probe: bool) -> RunResult:
    """Write final metrics, digests, figures, the model and the description."""
    end, state = history[-1], stack.network.state(0)
    curves = {**end.curves, **evaluate(stack, 0, "train")}
    final = {f"final/{name.replace('/', '_')}": value for name, value in curves.items()}
    final["best/test_accuracy"] = max(done.curves["test/accuracy"] for done in history if done.epoch)
    result = RunResult(
        log.id,
        plan.name,
        plan.config,
        history,
        final,
        end.epoch if end.diverged(plan.data.num_classes) else None,
        state_digest(state),
        history_digest(history),
        log.store.uri,
        log.page,
        log.chart,
    )
    log.metrics(final, end.epoch)
    log.tags({"state_digest": result.state_digest, "history_digest": result.history_digest})
    if result.diverged:
        log.tags({"diverged": f"epoch {result.diverged}"})
    log.text("history.csv", history_csv(history))
    log.text("record.json", record.as_json(_facts(plan, result)))
    title = f"{plan.asked.condition}, seed {plan.config.seed}, {plan.data.name}"
    log.figure("plots/history.png", plots.history(history, title))
    if probe:
        start = Stack.of(plan.arch, [plan.config], plan.data)
        before, after = (health.histograms(each.lanes[0], each.probe(0)[0]) for each in (start, stack))
        log.figure("plots/activations.png", plots.activations(before, after, title))
    log.model(as_module(plan.arch, state, int(stack.steps)), plan.data.test.images[:4].cpu(), end.epoch)
    log.tags({"mlflow.note.content": describe(plan, result)})
    return result


def describe(plan: Plan, result: RunResult) -> str:
    """Four lines of Markdown: what the run was, what came out, its bits and the command that repeats it."""
    config, final, data = plan.config, result.final, plan.data
    network = f"{config.hidden_dim} hidden units" if config.network == "mlp" else f"{len(plan.arch.layers)} layers"
    options = {**config.changed(), "network": plan.asked.text()["network"], "dataset": data.name, "seed": str(config.seed)}
    parts = (part for name, text in options.items() if name != "data_dir" for part in (f"--{name}", text))
    outcome = f"diverged in epoch {result.diverged}: " if result.diverged else ""
    lines = [
        f"**{plan.asked.condition}**, seed {config.seed}: {network}, {plan.arch.parameters:,} parameters, "
        f"{config.optimizer} at lr {config.lr:g}, batch {config.batch_size}, {config.epochs} epochs of {data.name} "
        f"({len(data.train):,} training and {len(data.test):,} test samples).",
        f"**Out came** {outcome}test loss {final['final/test_loss']:.4f} nats, accuracy {final['final/test_accuracy']:.4f}; "
        f"train loss {final['final/train_loss']:.4f}, accuracy {final['final/train_accuracy']:.4f}; one seed.",
        f"**Bits**: weights `{result.state_digest[:16]}`, curves `{result.history_digest[:16]}`.",
        f"**Again**: `{shlex.join(['harness', 'train', *parts])}`",
    ]
    return "\n\n".join(lines)


def _facts(plan: Plan, result: RunResult) -> dict[str, Any]:
    """What record.json says of the run itself."""
    digests = {
        "config": plan.config.digest,
        "data": plan.data.digest,
        "state": result.state_digest,
        "history": result.history_digest,
    }
    return {"config": plan.config.model_dump(mode="json"), "digests": digests, "files": dict(plan.data.files)}


@contextmanager
def _ending(log: RunLog) -> Iterator[None]:
    """See that the run ends in one state: FINISHED, KILLED by the user, or FAILED with its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        log.finish("KILLED")
        raise
    except BaseException as error:
        with suppress(Exception):  # what broke the run may break this too; the first error is the one to show
            log.tags({"error": f"{type(error).__name__}: {error}"[:5000]})
            log.text("traceback.txt", traceback.format_exc())
        log.finish("FAILED")
        raise
    log.finish("FINISHED")
