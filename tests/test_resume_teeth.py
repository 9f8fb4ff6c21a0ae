"""The tests of resuming have teeth: whatever of a run's state is left out of it, the resumed run is another."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path

import harness
from harness import training
from harness.checkpoint import Checkpoint, state_digest
from harness.components.optimizers import OPTIMIZERS
from harness.network import Network
from harness.progress import Progress
from harness.recorder import Recorder
from harness.results import EpochRecord
from harness.study import Study
from harness.training import Stack

EPOCHS, STOP = 4, 2
BASE: dict[str, Any] = {
    "dataset": "mnist_5k",
    "epochs": EPOCHS,
    "max_batches": 3,
    "hidden_dim": 8,
    "norm": "batchnorm",
    "dropout": 0.3,
    "validation": 0.1,
    "optimizer": "adam",
    "lr": 0.01,
}
WILD: dict[str, Any] = {  # from 4 nats over 20,000 in the third epoch, above the bound and finite for ever
    "dataset": "mnist_5k", "epochs": EPOCHS, "max_batches": 1, "hidden_dim": 8, "lr": 10000.0,
}  # fmt: skip
MOMENTS = {moment for rule in OPTIMIZERS.values() for moment in rule.moments}
ALONE = ("weights", "start curves", "diverged of the last record", "probe")  # cases with a run of their own
QUICK = ("weights", "history", "best so far", "position of the dropout stream", "start curves")  # one of each kind
Patch = pytest.MonkeyPatch
Outcome = dict[str, object]


def study_of(name: str, base: Mapping[str, Any]) -> Study:
    return Study(name=name, question="?", design="list", seeds=[0], base=base, variants=[{"name": "only"}])


def launch(study: Study, probe: bool, stop: int | None = None) -> None:
    """Up to its end, or to an interrupt after an epoch."""

    def watch(now: Progress) -> None:
        if now.epoch == stop:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        harness.run_study(study, workers=0, probe=probe, watch=watch, say=lambda line: None)


def outcome(study: Study, place: Path) -> Outcome:
    """What a study's run came to, by its parts."""
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name(study.name)
    (run,) = client.search_runs([experiment.experiment_id], f"tags.study = '{study.name}'")
    artifacts = Path(local_file_uri_to_path(run.info.artifact_uri))
    table = list(csv.DictReader((artifacts / "history.csv").read_text(encoding="utf-8").splitlines()))
    keys = sorted(run.data.metrics)
    history = {key: client.get_metric_history(run.info.run_id, key) for key in keys}
    return {
        "status": run.info.status,
        "diverged": run.data.tags.get("diverged"),
        "weights": run.data.tags["state_digest"],
        "curves": run.data.tags["history_digest"],
        "best": state_digest(Checkpoint.load(artifacts / "checkpoints" / "best.safetensors").state),
        "rows": {key: [(m.step, 0 if key.startswith("time/") else m.value) for m in history[key]] for key in keys},
        "columns": [*table[0]],
        "trace": json.loads((artifacts / "record.json").read_text(encoding="utf-8"))["trace"],
        "times": [row["time/epoch_seconds"] != "" for row in table],
    }


@pytest.fixture(scope="module")
def whole(place: Path) -> Callable[[Mapping[str, Any], bool], Outcome]:
    """What a run comes to that nobody interrupts; each is trained once."""
    known: dict[str, Outcome] = {}

    def of(base: Mapping[str, Any], probe: bool) -> Outcome:
        key = json.dumps([base, probe])
        if key not in known:
            launch(study := study_of(f"whole-{len(known)}", base), probe)
            known[key] = outcome(study, place)
        return known[key]

    return of


# what is left out, and how


def lost(**values: Any) -> Callable[[Patch], None]:
    """A checkpoint in which fields are what they are before training, or what `values` makes of the checkpoint."""

    def apply(patch: Patch) -> None:
        load = Checkpoint.load

        def without(path: Path) -> Checkpoint:
            last = load(path)
            return replace(last, **{name: value(last) if callable(value) else value for name, value in values.items()})

        patch.setattr(Checkpoint, "load", without)

    return apply


def zeroed(*endings: str) -> Callable[[Checkpoint], Any]:
    def of(last: Checkpoint) -> Any:
        found = [name for name in last.state if name.endswith(endings)]
        assert found
        return {name: torch.zeros_like(t) if name in found else t for name, t in last.state.items()}

    return of


def without_moment(moment: str) -> Callable[[Checkpoint], Any]:
    def of(last: Checkpoint) -> Any:
        assert any(t.any() for t in last.moments[moment].values())
        return {k: {n: torch.zeros_like(t) if k == moment else t for n, t in s.items()} for k, s in last.moments.items()}

    return of


def records(**values: Any) -> Callable[[Checkpoint], Any]:
    """The history, its records without something."""
    return lambda last: [replace(record, **values) for record in last.history]


def after(change: Callable[[Recorder, Stack, int], None]) -> Callable[[Patch], None]:
    """A change to what has been restored."""

    def apply(patch: Patch) -> None:
        restore = Recorder.restore

        def then(self: Recorder, stack: Stack, lane: int, last: Checkpoint) -> None:
            restore(self, stack, lane, last)
            change(self, stack, lane)

        patch.setattr(Recorder, "restore", then)

    return apply


def stream_from_the_start(wanted: str) -> Callable[[Patch], None]:
    """A stream that knows how many epochs this process has trained, not how many the run has."""

    def apply(patch: Patch) -> None:
        real = training.stream

        def stream(seed: int, name: str, *index: int) -> Any:
            late = name == wanted and index[0] > STOP
            return real(seed, name, *((index[0] - STOP, *index[1:]) if late else index))

        patch.setattr(training, "stream", stream)

    return apply


def best_forgotten(patch: Patch) -> None:
    """The epochs before are there, but do not count when the best one is chosen."""
    epoch = Recorder.epoch

    def forgetful(self: Recorder, stack: Stack, lane: int, done: EpochRecord) -> None:
        kept = self.history
        self.history = [replace(r, curves={**r.curves, self.chosen_by: math.inf}) if r.epoch <= STOP else r for r in kept]
        epoch(self, stack, lane, done)
        self.history = [*kept, done]

    patch.setattr(Recorder, "epoch", forgetful)


@dataclass(frozen=True)
class Case:
    """How an item of state is left out, and which parts of the outcome must then be otherwise."""

    leave_out: Callable[[Patch], None]
    differs: tuple[str, ...]
    base: Mapping[str, Any] = field(default_factory=lambda: BASE)
    begun: bool = True  # with the probe
    stop: int = STOP  # the epoch after which the run is interrupted


LEARNED = ("weights", "curves")
CASES: dict[str, Case] = {
    "weights": Case(lost(state=zeroed(".weight")), LEARNED),
    "biases": Case(lost(state=zeroed(".bias")), LEARNED),
    "running mean": Case(lost(state=zeroed("running_mean")), LEARNED),
    "running variance": Case(lost(state=zeroed("running_var")), LEARNED),
    "steps": Case(lost(steps=0), LEARNED),
    "epoch": Case(lost(epoch=0), ("rows", "curves")),
    "epoch before": Case(lost(epoch=STOP - 1), LEARNED),
    "history": Case(lost(history=lambda last: last.history[:1]), ("curves",)),
    "last record": Case(lost(history=lambda last: last.history[:-1]), ("curves",)),
    "health of the past": Case(lost(history=records(health={})), ("columns",)),
    "times of the past": Case(lost(history=records(seconds=None)), ("times",)),
    "digests of the past": Case(lost(history=records(state_digest="")), ("trace",)),
    "best so far": Case(best_forgotten, ("best",), base={**WILD, "lr": 300.0}),
    "position of the shuffle stream": Case(stream_from_the_start("shuffle"), LEARNED),
    "position of the dropout stream": Case(stream_from_the_start("dropout"), LEARNED),
    "start curves": Case(after(lambda recorder, stack, k: stack.start.clear()), ("diverged", "rows"), base=WILD),
    "diverged of the last record": Case(lost(history=records(diverged=False)), ("diverged",), base=WILD, stop=3),
    "probe": Case(after(lambda recorder, stack, k: setattr(recorder, "probe", True)), ("rows",), begun=False),
    **{
        f"{moment} of {optimizer}": Case(lost(moments=without_moment(moment)), LEARNED, base={**BASE, "optimizer": optimizer})
        for optimizer, rule in OPTIMIZERS.items()
        for moment in rule.moments
    },
}


def resumed(name: str, case: Case, place: Path, leave_out: Callable[[Patch], None] = lambda patch: None) -> Outcome:
    study = study_of(name, case.base)
    launch(study, case.begun, case.stop)
    with Patch.context() as patch:
        leave_out(patch)
        launch(study, probe=True)
    return outcome(study, place)


Whole = Callable[[Mapping[str, Any], bool], Outcome]


def items(names: Iterable[str]) -> list[Any]:
    """For a parametrized test: two trainings each."""
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("item", items(CASES))
def test_run_resumed_without_an_item_of_its_state_is_another(item: str, whole: Whole, place: Path) -> None:
    case = CASES[item]
    wanted = whole(case.base, case.begun)
    found = resumed(f"without-{list(CASES).index(item)}", case, place, case.leave_out)
    different = {part for part in wanted if found[part] != wanted[part]}
    assert {*case.differs} <= different


@pytest.mark.parametrize("item", items(item for item in CASES if item in ALONE or item.split()[0] in MOMENTS))
def test_run_resumed_with_all_of_it_is_the_same(item: str, whole: Whole, place: Path) -> None:
    case = CASES[item]
    wanted = whole(case.base, case.begun)
    assert wanted["status"] == "FINISHED"
    assert resumed(f"with-{list(CASES).index(item)}", case, place) == wanted


# nothing is forgotten: each field is left out above, or has a reason not to be

KEPT = {
    Checkpoint: {
        "config": "refused where it differs",
        "data_digest": "refused where it differs",
        "epoch": "epoch",
        "steps": "steps",
        "state": "weights",
        "moments": "mean of adam",
        "history": "history",
        "chosen_by": "said by the best checkpoint alone",
    },
    EpochRecord: {
        "epoch": "best so far",
        "curves": "history",
        "lane": "where a run lies in a stack is no part of it",
        "health": "health of the past",
        "seconds": "times of the past",
        "diverged": "diverged of the last record",
        "state_digest": "digests of the past",
    },
    Stack: {
        "arch": "of the config",
        "configs": "of the config",
        "data": "of the config",
        "network": "weights",
        "kept": "mean of adam",
        "optimizer": "of the config",
        "updates": "views of network and kept",
        "counter": "scratch",
        "train": "of the config",
        "held_out": "of the config",
        "epoch": "epoch",
        "steps": "steps",
        "start": "start curves",
        "probed": "of the config",
        "diverged": "said by the last record",
        "evaluation": "of the process",
        "lanes": "views of network",
    },
    Network: {
        "arch": "of the config",
        "weights": "weights",
        "gradients": "written anew in each step",
        "buffers": "running mean",
        "rngs": "position of the dropout stream",
        "_sites": "scratch",
        "_forward": "scratch",
        "_backward": "scratch",
    },
    Recorder: {
        "log": "the store's",
        "plan": "of the config",
        "probe": "probe",
        "models": "of the command",
        "history": "history",
        "lost": "found at the end",
        "clock": "of the process",
    },
}
REASONS = {
    "refused where it differs", "said by the best checkpoint alone", "where a run lies in a stack is no part of it",
    "of the config", "views of network and kept", "views of network", "written anew in each step", "scratch", "the store's",
    "of the command", "of the process", "found at the end", "said by the last record",
}  # fmt: skip


@pytest.mark.parametrize("kind", KEPT, ids=lambda kind: kind.__name__)
def test_each_field_of_the_state_is_left_out_above_or_has_its_reason(kind: type[Any]) -> None:
    assert [item.name for item in fields(kind)] == list(KEPT[kind])
    assert set(KEPT[kind].values()) <= {*CASES, *REASONS}
