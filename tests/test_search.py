"""A search on real digits: the same trials however it is run, and what it leaves in the store."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from harness import frames, pruning
from harness.pruning import Trial
from harness.search import SearchResult, run_search
from harness.space import Search
from harness.store import Store

SPACE: dict[str, Any] = {
    "optimizer": {"choices": ["sgd", "adam"]},
    "lr": {"low": 1e-3, "high": 10.0, "log": True},
    "weight_decay": {"low": 0.0, "high": 0.1, "when": {"optimizer": ["adam"]}},
}
STEPS = {"lr": {"low": 0.1, "high": 0.3, "step": 0.1}, "optimizer": {"choices": ["sgd", "adam"]}}


def tiny(space: dict[str, Any] = SPACE, seeds: Sequence[int] = (0, 1), **search: Any) -> Search:
    base = {"dataset": "mnist_5k", "epochs": 3, "max_batches": 2, "validation": 0.2, "hidden_dim": 16}
    settings = {"trials": 10, "batch": 5, "pruner": "median", "final_seeds": [7, 8], **search}
    return Search.of(name="tiny", question="Which?", seeds=list(seeds), base=base, search=settings, space=space)


def told(result: SearchResult) -> list[Any]:
    return [(trial.name, dict(trial.setting), trial.state, trial.came and trial.came.cost) for trial in result.trials]


def quiet(line: str) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    return tmp_path


def test_search_that_stops_anywhere_goes_on_to_the_same_trials(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(KeyboardInterrupt):
        pass

    def stop(progress: Any) -> None:
        if progress.epoch >= 4:
            raise Stop

    whole = run_search(tiny(), workers=0, say=quiet)
    assert {trial.state for trial in whole.trials} >= {"complete", "pruned"}
    again = run_search(tiny(), workers=0, say=quiet)
    assert (again.trained, told(again)) == (0, told(whole))
    assert again.final is not None
    assert again.final.trained == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(KeyboardInterrupt):
        run_search(tiny(), workers=0, say=quiet, watch=stop)
    few = run_search(tiny(trials=3), workers=0, say=quiet)
    assert told(few) == told(whole)[:3]
    assert told(run_search(tiny(), workers=0, say=quiet)) == told(whole)

    table, commands = frames.trials("tiny")
    assert table.variant[0] == whole.best["best"].name
    assert not [name for name in table if "test" in name]
    assert commands["best"].startswith("mlflow run . --env-manager local -P ")
    runs = Store().runs("tiny", study="tiny")
    assert len(runs) == 20
    assert {run.data.tags["trial"] for run in runs} == {str(number) for number in range(10)}
    pruned = [run for run in runs if "pruned" in run.data.tags]
    assert pruned
    assert not any(name.startswith("final/") for run in pruned for name in run.data.metrics)
    assert set(frames.runs("tiny").state) >= {"finished", "pruned"}
    assert list(frames.summary("tiny-best").variant) == ["base", "best"]


@pytest.mark.slow
def test_trials_are_the_same_at_any_number_of_workers(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for workers in (0, 1, 2):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store{workers}.db")
        found.append(told(run_search(tiny(), workers=workers, say=quiet)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("sampler", ["random", "cmaes", "qmc", "grid"])
def test_every_sampler_searches(sampler: str, store: Path) -> None:
    space = STEPS if sampler in ("grid", "qmc") else SPACE
    result = run_search(tiny(space, [0], sampler=sampler, trials=6, batch=3, pruner="none"), workers=0, say=quiet)
    assert [trial.state for trial in result.trials] == ["complete"] * 6
    if sampler == "grid":
        assert len({tuple(trial.setting.items()) for trial in result.trials}) == 6


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_rules_are_those_of_optuna(pruner: str) -> None:
    epochs = 9
    curves = [[1 / (1 + (k * 7 % 11)) + 0.1 * (epoch * k % 3) for epoch in range(1, epochs + 1)] for k in range(14)]
    made = optuna.pruners.MedianPruner() if pruner == "median" else optuna.pruners.HyperbandPruner(max_resource=epochs)
    study = optuna.create_study(pruner=made, study_name="x", sampler=optuna.samplers.RandomSampler(seed=0))
    past: list[Trial] = []
    ends = []
    for number, values in enumerate(curves):
        bounds = pruning.median(past, epochs) if pruner == "median" else pruning.hyperband(past, epochs, number, "x")
        rule = pruning.Rule("val/loss", 1, epochs, bounds, pruner == "median")
        whole = {0: dict(enumerate(values, 1))}
        mine = rule.ends(whole)
        trial, theirs = study.ask(), None
        for epoch, value in whole[0].items():
            trial.report(value, epoch)
            with warnings.catch_warnings(action="ignore"):
                if epoch < epochs and trial.should_prune():
                    theirs = epoch
                    break
        study.tell(trial, state=optuna.trial.TrialState.PRUNED) if theirs else study.tell(trial, values[-1])
        assert mine == theirs, number
        ends.append(mine)
        past.append(Trial(number, {0: {e: v for e, v in whole[0].items() if e <= (mine or epochs)}}, mine))
    assert any(ends)
