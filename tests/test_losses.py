"""Losses that leave the finite numbers, really and at a chosen epoch: a result of that run, and of no other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.file_utils import local_file_uri_to_path

import harness
from harness import data
from harness.architecture import architecture
from harness.cells import StudyResult
from harness.checkpoint import Checkpoint, state_digest
from harness.progress import Progress
from harness.results import history_digest
from harness.study import Study
from harness.training import Stack, exact_arithmetic, train

EPOCHS = 4
TANH = {"act": "tanh", "init": "normal"}  # its gradients are at most 1: weights grow to lr and stay
LINEAR = {"act": "identity", "init": "kaiming"}  # its weights feed on each other: the larger the lr, the sooner
RATES = (0.01, 0.01, 0.02, 0.02, 0.01, 0.1)  # of the lanes that are resumed: two of them share an update with others
VARIANTS = {
    "calm": {**TANH, "lr": 0.01},
    "large": {**TANH, "lr": 300.0},
    "huge at 1": {**TANH, "lr": 1e36},
    "inf at 1": {**TANH, "lr": 1e38},
    "nan at 1": {**TANH, "lr": 3e38},
    "decay at 1": {**TANH, "weight_decay": 1e38},
    "calm line": {**LINEAR, "lr": 0.05},
    "large line": {**LINEAR, "lr": 0.4},  # to 20,000 nats, below 10,000 times the loss of guessing
    "line at 3": {**LINEAR, "lr": 0.5},
    "line at 2": {**LINEAR, "lr": 1.0},
    "line at 1": {**LINEAR, "lr": 1e20},
}
ENDS = {name: int(name[-1]) for name in VARIANTS if name[-1].isdigit()}  # the epoch in which it diverges
GOOD = [name for name in VARIANTS if name not in ENDS]


def study_of(name: str, **variants: dict[str, object]) -> Study:
    return Study(
        name=name,
        question="What becomes of it?",
        design="list",
        seeds=[0],
        base={"dataset": "mnist_5k", "epochs": EPOCHS, "max_batches": 4, "hidden_dim": 8},
        variants=[{"name": variant, **values} for variant, values in variants.items()],
    )


STUDY = study_of("leaving", **VARIANTS)


@pytest.fixture(scope="module")
def launched(place: Path) -> StudyResult:
    """In this process: those of one activation train as one stack."""
    return harness.run_study(STUDY, workers=0, probe=False, say=lambda line: None)


def runs(study: str, place: Path) -> dict[str, Run]:
    """The run of each variant."""
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name(study).experiment_id], f"tags.study = '{study}'")
    return {run.data.tags["variant"]: run for run in found}


def alone(study: Study, variant: str) -> tuple[str, str]:
    """The digests of a variant that trains by itself."""
    (config,) = (cell.config for cell in study.cells if cell.variant.name == variant)
    with exact_arithmetic():
        stack = Stack.of(architecture(config), [config], data.load("mnist_5k", "unused"))
        records = list(train(stack, probe=False))
        return state_digest(stack.network.state(0)), history_digest(records)


def digests(run: Run) -> tuple[str, str]:
    return run.data.tags["state_digest"], run.data.tags["history_digest"]


def test_each_run_that_diverges_is_a_result_of_its_epoch_and_the_study_goes_on(place: Path, launched: StudyResult) -> None:
    assert (launched.trained, launched.failed) == (len(VARIANTS), {})
    found = runs("leaving", place)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    told = {name: run.data.tags["diverged"] for name, run in found.items() if "diverged" in run.data.tags}
    assert told == {name: f"epoch {epoch}" for name, epoch in ENDS.items()}


@pytest.mark.parametrize("name", GOOD)
def test_neighbour_of_diverging_lanes_has_the_bits_of_the_run_alone(name: str, place: Path, launched: StudyResult) -> None:
    assert digests(runs("leaving", place)[name]) == alone(STUDY, name)


def test_losses_are_read_back_as_what_they_were(launched: StudyResult) -> None:
    curves = harness.history("leaving").set_index(["variant", "epoch"])["test/loss"]
    assert curves["inf at 1"][1] == math.inf
    assert math.isnan(curves["nan at 1"][1])
    assert math.isnan(curves["decay at 1"][1])
    assert 1e36 < curves["huge at 1"][1] < 1e37
    assert 1e4 < curves["large line"][EPOCHS] < 2.3e4
    assert {name: max(curves[name].index) for name in VARIANTS} == {**dict.fromkeys(VARIANTS, EPOCHS), **ENDS}
    rows = harness.runs("leaving").set_index("variant")
    assert rows["final/test_loss"]["inf at 1"] == math.inf
    assert dict(rows.state) == {name: "diverged" if name in ENDS else "finished" for name in VARIANTS}
    assert {name: int(epoch) for name, epoch in rows.diverged_epoch.dropna().items()} == ENDS


def test_no_loss_of_a_diverged_run_is_averaged(launched: StudyResult) -> None:
    table = harness.summary("leaving").set_index("variant")
    for name in VARIANTS:
        assert (table.n[name], table.diverged[name]) == ((0, 1) if name in ENDS else (1, 0))
        assert pd.isna(table.test_loss_mean[name]) == (name in ENDS)
    by = harness.summary("leaving", by="act").set_index("act")
    assert dict(by.diverged) == {"tanh": 4, "identity": 3}
    assert by.test_loss_mean.map(math.isfinite).all()


LARGEST = {  # what the largest number of a tensor becomes
    "huge": ("linear2.weight", 1e30),
    "inf": ("linear2.bias", 3e38),
    "nan": ("linear2.weight", 1.5e38),
    # tanh holds it: the loss stays finite, and the run goes on. No sum of 784 such numbers overflows, in whatever order a
    # processor adds them: of two that did, one up and one down, the sum would be none
    "flat": ("linear1.weight", 1e35),
}


def test_lane_resumed_with_weights_that_overflow_diverges_and_its_neighbours_keep_their_bits(place: Path) -> None:
    """All stop after epoch 2; then the output weights of some checkpoints are multiplied, and the study goes on as a stack."""
    study = study_of("resumed", **{name: {"lr": lr} for name, lr in zip(("calm", *LARGEST, "warm"), RATES, strict=True)})

    def stop(now: Progress) -> None:
        if now.epoch == 2 * len(study.cells):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harness.run_study(study, workers=0, probe=False, watch=stop, say=lambda line: None)
    for name, (tensor, largest) in LARGEST.items():
        path = Path(local_file_uri_to_path(runs("resumed", place)[name].info.artifact_uri), "checkpoints/last.safetensors")
        last = Checkpoint.load(path)
        assert last.epoch == 2
        grown = last.state[tensor] * (largest / last.state[tensor].abs().max())
        assert grown.isfinite().all()
        replace(last, state={**last.state, tensor: grown}).save(path)

    result = harness.run_study(study, workers=0, probe=False, say=lambda line: None)
    assert (result.trained, result.failed) == (len(study.cells), {})
    found = runs("resumed", place)
    assert {run.data.tags["attempt"] for run in found.values()} == {"2"}
    told = {name: run.data.tags["diverged"] for name, run in found.items() if "diverged" in run.data.tags}
    assert told == dict.fromkeys(("huge", "inf", "nan"), "epoch 3")
    curves = harness.history("resumed").set_index(["variant", "epoch"])["test/loss"]
    assert curves["huge"][3] > 1e25
    assert curves["inf"][3] == math.inf
    assert math.isnan(curves["nan"][3])
    assert curves["flat"][EPOCHS] < 10
    for name in ("calm", "warm"):
        assert digests(found[name]) == alone(study, name)


@pytest.mark.parametrize("epoch", [1, 2])
def test_lane_that_diverged_when_a_study_was_stopped_ends_where_it_diverged(epoch: int, place: Path) -> None:
    """Stopped before that lane's run was finished, or after: its neighbour's later steps are not its own."""
    variants: dict[str, dict[str, object]] = {"calm": {**TANH, "lr": 0.01}, "hot": {**TANH, "lr": 1e36}}
    study = study_of(f"stopped-{epoch}", **variants)

    def stop(now: Progress) -> None:
        if now.passed.get("calm-s0" if epoch == 2 else "hot-s0") == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harness.run_study(study, workers=0, probe=False, watch=stop, say=lambda line: None)
    left = runs(study.name, place)
    assert left["calm"].info.status == "KILLED"
    assert left["hot"].info.status == ("KILLED" if epoch == 1 else "FINISHED")
    result = harness.run_study(study, workers=0, probe=False, say=lambda line: None)
    assert (result.trained, result.failed) == (2 if epoch == 1 else 1, {})
    found = runs(study.name, place)
    assert {name: run.data.tags.get("diverged") for name, run in found.items()} == {"calm": None, "hot": "epoch 1"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for name in variants:
        assert digests(found[name]) == alone(study, name)


def test_lane_whose_end_cannot_be_written_leaves_its_neighbours_alone(place: Path) -> None:
    """Stopped when it had diverged, and what is left of it is its last files."""
    study = study_of("unwritten", calm={**TANH, "lr": 0.01}, hot={**TANH, "lr": 1e36})

    def stop(now: Progress) -> None:
        if now.passed.get("hot-s0") == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harness.run_study(study, workers=0, probe=False, watch=stop, say=lambda line: None)
    artifacts = Path(local_file_uri_to_path(runs(study.name, place)["hot"].info.artifact_uri))
    (artifacts / "history.csv").mkdir()
    result = harness.run_study(study, workers=0, probe=False, say=lambda line: None)
    assert (result.trained, list(result.failed)) == (1, ["hot-s0"])
    calm = runs(study.name, place)["calm"]
    assert (calm.data.tags["attempt"], digests(calm)) == ("2", alone(study, "calm"))
