"""Writes one run: what is known before training, each epoch with its checkpoints, and what is known at the end."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from harness import chart, health, record, trace
from harness.architecture import as_module, initial_state
from harness.checkpoint import Checkpoint, state_digest
from harness.components.layers import Linear
from harness.config import RunConfig
from harness.errors import CheckpointError, MissingArtifact
from harness.histograms import FILE as HISTOGRAMS
from harness.histograms import Histogram, Histograms
from harness.network import Network
from harness.numerics import option
from harness.plan import Plan
from harness.results import EpochRecord, history_csv, history_digest
from harness.tracking import RunLog
from harness.training import Stack, finals, sample_counts

LAST, BEST = "checkpoints/last.safetensors", "checkpoints/best.safetensors"
# The one before the last, while a run trains and where artifacts are local. Elsewhere it would double what is sent with
# every epoch; there a file is replaced as a whole, and to begin anew costs time and no result.
PREVIOUS = "checkpoints/previous.safetensors"


@dataclass(frozen=True)
class RunResult:
    """A run that ended: what it was, what came out and where it lies."""

    run_id: str
    name: str
    config: RunConfig = field(repr=False)  # resolved
    history: Sequence[EpochRecord] = field(repr=False)
    final: Mapping[str, float]  # "final/test_loss": ..., and best/test_accuracy
    diverged: int | None  # the epoch
    pruned: int | None  # the epoch after which it was given up
    state_digest: str
    history_digest: str
    store: str
    page: str  # of the run, under `mlflow ui`
    chart: str  # of the run beside others
    lost: Sequence[str] = ()  # figures that could not be drawn or written, and why


@dataclass
class Recorder:
    """The writer of one lane's run; `history` has its epochs so far."""

    log: RunLog
    plan: Plan
    probe: bool = True
    models: bool = True  # whether the trained network is logged as an MLflow model too
    history: list[EpochRecord] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    clock: record.Clock = field(default_factory=record.Clock)

    @property
    def chosen_by(self) -> str:
        """The metric that makes a checkpoint the best one."""
        return "val/loss" if self.plan.config.validation else "test/loss"

    def begin(self) -> None:
        """Record params, tags, data and the config that a resume reads."""
        config, data = self.plan.config, self.plan.data
        commit = record.code().get("commit")
        self.log.text("config.json", config.json_text())
        self._record()
        self.log.params(self.plan.cell.config.text())
        counts, contexts = sample_counts(config, data), {"train": "training", "val": "validation", "test": "testing"}
        used = {context: counts[part] for part, context in contexts.items() if counts[part]}
        self.log.datasets(data.name, used, data.digest, data.files)
        # with these, the run is one that can be resumed
        self.log.tags(
            {"attempt": self.log.attempt, **self.plan.tags, **({"mlflow.source.git.commit": commit} if commit else {})}
        )

    def last(self) -> tuple[Checkpoint | None, str]:
        """The checkpoint to go on from, which is the last one or the one before it, and why a later one was refused.

        None where there is none: the run starts from the beginning.
        """
        refused: list[Exception] = []
        with tempfile.TemporaryDirectory() as folder:
            for name in (LAST, PREVIOUS):
                try:
                    found = Checkpoint.load(self.log.fetch(name, folder))
                    self._check(name, found)
                except (CheckpointError, MissingArtifact) as error:
                    refused.append(error)
                    continue
                if name == PREVIOUS:
                    self.log.move(PREVIOUS, LAST)  # or the next one written would keep the refused one in its place
                return found, "; ".join(map(str, refused))
        return None, "; ".join(str(error) for error in refused if isinstance(error, CheckpointError))

    def _check(self, name: str, found: Checkpoint) -> None:
        """Raise CheckpointError for a whole checkpoint that is not this run's, or cannot be what its history tells of."""
        if (found.config.digest, found.data_digest) != (self.plan.config.digest, self.plan.data.digest):
            raise CheckpointError(f"{name} belongs to another config or other data")
        tensors = [tensor for state in (found.state, *found.moments.values()) for tensor in state.values()]
        if not found.history[-1].diverged and any(tensor.isnan().any() for tensor in tensors):
            raise CheckpointError(f"{name} has weights or moments that are no numbers, but a history of finite losses")

    def restore(self, stack: Stack, lane: int, last: Checkpoint) -> None:
        """Put a lane, and this history, where a checkpoint of this run left them."""
        stack.restore(lane, last.epoch, last.steps, last.state, last.moments)
        self.history = list(last.history)
        for done in self.history:
            self.log.epoch(done)  # rows that waited when its process was killed, or in a journal that is lost
        self.probe = self.probe and bool(self.history[0].health)  # as the run was begun
        stack.start[lane] = self.history[0].curves
        if self.history[-1].diverged:
            stack.diverged.add(lane)

    def epoch(self, stack: Stack, lane: int, done: EpochRecord) -> None:
        """Log an epoch's metrics, which may wait, and write its checkpoints: first the best, if it is that, then the last."""
        self.log.check_mine()
        best = min((past.curves[self.chosen_by] for past in self.history if past.epoch), default=math.inf)
        state, moments, steps = stack.network.state(lane), stack.moments(lane), stack.steps
        self.history.append(replace(done, state_digest=state_digest(state)))
        self.log.epoch(done)
        if done.epoch == 0:
            return
        last = Checkpoint(self.plan.config, self.plan.data.digest, done.epoch, steps, state, moments, self.history)
        if done.curves[self.chosen_by] < best or done.epoch == 1:
            self.log.file(BEST, replace(last, moments={}, chosen_by=self.chosen_by).save)
        self.log.file(LAST, partial(last.save, keep=Path(PREVIOUS).name))

    def ends_with(self, done: EpochRecord) -> bool:
        """Whether this is the run's last epoch."""
        return done.epoch == self.plan.config.epochs or done.diverged

    def finish(self, stack: Stack, lane: int) -> RunResult:
        """Write final metrics, digests, figures, the model and the description.

        A run that ends before its last epoch and did not diverge was given up: it has no final metrics, which would pass for
        those of a whole run.
        """
        log, plan, history, end, state = self.log, self.plan, self.history, self.history[-1], stack.network.state(lane)
        log.check_mine()
        final = {f"final/{name.replace('/', '_')}": value for name, value in finals(stack, lane, end).items()}
        final["best/test_accuracy"] = max(done.curves["test/accuracy"] for done in history if done.epoch)
        digests = {"state_digest": state_digest(state), "history_digest": history_digest(history)}
        pruned = None if self.ends_with(end) else end.epoch
        log.metrics(final if pruned is None else {}, end.epoch)
        log.text("history.csv", history_csv(history))
        self._record(stack.evaluation[lane])
        self._figures(stack, lane)
        result = RunResult(
            run_id=log.id,
            name=plan.cell.name,
            config=plan.config,
            history=tuple(history),
            final=final,
            diverged=end.epoch if end.diverged else None,
            pruned=pruned,
            **digests,
            store=log.store.uri,
            page=log.page,
            chart=chart.filtered(log.run.info.experiment_id, {"study": plan.cell.study}),
            lost=tuple(self.lost),
        )
        if self.models:
            log.model(as_module(plan.arch, state, stack.steps), plan.data.test[:4].images.cpu(), end.epoch)
        log.tags(
            {
                **digests,
                **({"diverged": f"epoch {end.epoch}"} if end.diverged else {}),
                **({"pruned": f"epoch {pruned}"} if pruned is not None else {}),
                "mlflow.note.content": describe(plan, result),
            }
        )
        log.drop(PREVIOUS, "checkpoints/.*")  # the latter of processes that were killed in the middle of writing
        log.finish("FINISHED")
        return result

    @cached_property
    def _beginnings(self) -> Mapping[str, Any]:
        return trace.beginnings(self.plan.arch, self.plan.config, self.plan.data)

    def _record(self, evaluation: float | None = None) -> None:
        """Write `record.json` as of now: whole when the run ends, and already there should it not."""
        plan, traced = self.plan, trace.whole(self._beginnings, self.history)
        text = record.as_json(plan.config, plan.data, record.surroundings(plan.config), traced, self.clock, evaluation)
        self.log.text("record.json", text)

    def _figures(self, stack: Stack, lane: int) -> None:
        """Draw the run. A figure that cannot be drawn or written costs itself, not the run."""
        figures: dict[str, Callable[[], Callable[[Path], object]]] = {"plots/history.png": self._curves}
        if self.history[0].health:
            found = cache(partial(self._histograms, stack, lane))
            figures[HISTOGRAMS] = lambda: lambda path: path.write_text(found().json_text(), encoding="utf-8")
            figures["plots/activations.png"] = lambda: self._activations(found())
        for artifact, draw in figures.items():
            try:
                self.log.file(artifact, draw())
            except Exception as error:
                with suppress(OSError):
                    self.log.drop(artifact)  # half of it
                self.lost.append(" ".join(f"{artifact}: {type(error).__name__}: {error}".split())[:300])

    @property
    def _title(self) -> str:
        plan = self.plan
        return f"{plan.cell.name} on {plan.data.name}" + (", diverged" if self.history[-1].diverged else "")

    def _curves(self) -> Callable[[Path], object]:
        from harness import plots  # half a second that a study's driver, which draws nothing, need not wait for

        return plots.history(self.history, self._title)

    def _activations(self, found: Histograms) -> Callable[[Path], object]:
        from harness import plots

        return plots.activations(found.outputs, self._title)

    def _histograms(self, stack: Stack, lane: int) -> Histograms:
        plan, end = self.plan, stack.network.state(lane)
        start = Network.zeros(plan.arch, 1, plan.config.device)
        begun = initial_state(plan.arch, plan.config.init, plan.config.seed)  # once more, from its stream
        start.load(0, begun)
        inputs, _ = stack.probe(lane)
        before, after = health.outputs(start, inputs), health.outputs(stack.lanes[lane], inputs)
        names = [placed.name for placed in plan.arch.layers if isinstance(placed.layer, Linear)]
        return Histograms(
            {name: Histogram.of(*(state[f"{name}.weight"].numpy() for state in (begun, end))) for name in names},
            {name: Histogram.of(before[name], after[name]) for name in before},
        )


def describe(plan: Plan, result: RunResult) -> str:
    """Four lines of Markdown: what the run was, what came out, its bits, the command that repeats it; and what was lost."""
    config, final, data = plan.config, result.final, plan.data
    network = f"{config.hidden_dim} hidden units" if config.network == "mlp" else f"{len(plan.arch.layers)} layers"
    options = {
        **config.changed(),
        "network": plan.cell.config.text()["network"],
        "dataset": data.name,
        "seed": str(config.seed),
    }
    parts = (part for name, text in options.items() if name != "data_dir" for part in (f"--{name.replace('_', '-')}", text))
    counts = sample_counts(config, data)
    held_out = f", {counts['val']:,} validation" if counts["val"] else ""
    outcome = f"diverged in epoch {result.diverged} of {config.epochs}: " if result.diverged else ""
    if result.pruned is not None:
        outcome = f"given up by the search after epoch {result.pruned} of {config.epochs}: "
    lines = [
        f"**{plan.cell.variant.name}**, seed {config.seed}: {network}, {plan.arch.parameters:,} parameters, "
        f"{config.optimizer} at lr {config.lr:g}, batch {config.batch_size}, {config.epochs} epochs of {data.name} "
        f"({counts['train']:,} training{held_out} and {counts['test']:,} test samples).",
        f"**Out came** {outcome}test loss {final['final/test_loss']:.4f} nats, accuracy {final['final/test_accuracy']:.4f}; "
        f"train loss {final['final/train_loss']:.4f}, accuracy {final['final/train_accuracy']:.4f}; one seed.",
        f"**Bits**: weights `{result.state_digest[:16]}`, curves `{result.history_digest[:16]}`.",
        f"**Again**: `{shlex.join(['harness', 'train', *parts])}{option()}`",
        *(f"**Lost**: {figure}" for figure in result.lost),
    ]
    return "\n\n".join(lines)
