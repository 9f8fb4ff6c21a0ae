"""A search on real digits: the same trials however it is run, what may befall a trial, and what is left in the store."""

from __future__ import annotations

import re
import shutil
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from harness import frames, launched, pruning
from harness.errors import InputError
from harness.progress import Progress
from harness.pruning import Trial
from harness.screen import found
from harness.search import SearchResult, run_search
from harness.space import Search
from harness.store import Store
from harness.tracking import RunLog

SPACE: dict[str, Any] = {
    "optimizer": {"choices": ["sgd", "adam"]},
    "lr": {"low": 1e-3, "high": 10.0, "log": True},
    "weight_decay": {"low": 0.0, "high": 0.1, "when": {"optimizer": ["adam"]}},
}
STEPS = {"lr": {"low": 0.1, "high": 0.2, "step": 0.1}, "optimizer": {"choices": ["sgd", "momentum", "adam"]}}


def tiny(
    space: dict[str, Any] = SPACE,
    seeds: Sequence[int] = (0, 1),
    factors: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
    **search: Any,
) -> Search:
    study = {"factors": factors} if factors else {}
    base = {"dataset": "mnist_5k", "epochs": 3, "max_batches": 2, "validation": 0.2, "hidden_dim": 16, **(base or {})}
    settings = {"trials": 10, "batch": 5, "pruner": "median", "final_seeds": [7, 8], **search}
    return Search.of(name="tiny", question="Which?", seeds=list(seeds), base=base, search=settings, space=space, **study)


def told(result: SearchResult) -> list[Any]:
    return [(trial.name, dict(trial.setting), trial.state, trial.came and trial.came.cost) for trial in result.trials]


def quiet(line: str) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path, own_store: str) -> Path:
    return tmp_path


@pytest.fixture
def other(tmp_path: Path, empty_store: Path) -> str:
    """The URI of a second store beside the first."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}"


@pytest.mark.slow
def test_search_that_stops_anywhere_goes_on_to_the_same_trials(
    store: Path, other: str, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
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
def test_progress_counts_the_trials_of_the_whole_search(store: Path) -> None:
    seen: list[tuple[Any, ...]] = []

    def watch(now: Progress) -> None:
        if now.what == "trials":
            seen.append((now.settled, now.epoch))
            assert (now.cells, now.epochs, now.part) == (10, 10 * 2 * 3, "validation")

    run_search(tiny(), workers=0, say=quiet, watch=watch)
    assert seen == sorted(seen)
    assert {trials for trials, _ in seen} == set(range(11))
    assert seen[-1] == (10, 60)


@pytest.mark.slow
def test_budget_in_seconds_ends_after_the_round_that_spends_it(store: Path) -> None:
    few = run_search(tiny(trials=10_000, seconds=1e-9), workers=0, say=quiet)
    assert (len(few.trials), few.trained) == (5, 10)
    again = run_search(tiny(trials=11, seconds=1e-9), workers=0, say=quiet)  # trials are named alike under any budget
    assert (again.trained, told(again)) == (0, told(few))
    spent = sum(
        sum(run.points("time/epoch_seconds").values()) for run in (RunLog.of(Store(), run_id) for run_id in ids("tiny"))
    )
    more = run_search(tiny(trials=10_000, seconds=1.001 * spent), workers=0, say=quiet)
    assert len(more.trials) > len(few.trials)
    assert told(more)[:5] == told(few)


def ids(study: str) -> list[str]:
    return [run.info.run_id for run in Store().runs(study, study=study)]


def test_each_condition_is_tuned_with_a_budget_of_its_own_and_compared_on_fresh_seeds(store: Path) -> None:
    space = {"lr": SPACE["lr"], "weight_decay": {**SPACE["weight_decay"], "when": {"optimizer": ["adamw"]}}}
    both = run_search(tiny(space, factors={"optimizer": ["sgd", "adamw"]}, trials=6, batch=3), workers=0, say=quiet)
    by = {row: [trial for trial in both.trials if trial.condition.name == row] for row in both.best}
    assert {row: len(trials) for row, trials in by.items()} == {"optimizer=sgd": 6, "optimizer=adamw": 6}
    assert {name for trial in by["optimizer=sgd"] for name in trial.setting} == {"lr"}
    assert {name for trial in by["optimizer=adamw"] for name in trial.setting} == {"lr", "weight_decay"}
    runs = Store().runs("tiny", study="tiny")
    assert len(runs) == 2 * 6 * 2
    for trial in (trial for trial in both.trials if trial.state == "complete"):
        mine = [run.data.metrics["final/val_loss"] for run in runs if run.data.tags["cell"].startswith(f"{trial.name}-s")]
        assert (len(mine), trial.came and trial.came.cost) == (2, statistics.fmean(mine)), "test data chooses nothing"
    assert {run.data.tags["cell"].split()[0] for run in runs} == set(by)
    final = both.final
    assert final is not None
    assert (final.study.metric, final.study.seeds) == ("final/test_loss", (7, 8))
    assert [(row.name, row.config.optimizer) for row in final.study.rows] == [(row, row.partition("=")[2]) for row in by]
    for row in final.study.rows:
        best = both.best[row.name]
        assert best.came is not None
        assert best.came.cost == min(trial.came.cost for trial in by[row.name] if trial.state == "complete" and trial.came)
        assert {name: getattr(row.config, name) for name in best.setting} == best.setting
    assert len(frames.compare("tiny-best")) == 1
    assert set(frames.trials("tiny")[1]) == set(by)


def test_setting_that_the_data_refuses_costs_nothing_and_the_search_goes_on(store: Path) -> None:
    """The last batch of 3,200 in batches of 3,199 is one sample, of which batchnorm has no variance."""
    space = {"norm": {"choices": ["none", "batchnorm"]}, "batch_size": {"choices": [100, 3199]}}
    result = run_search(tiny(space, [0], sampler="grid", trials=4, batch=2, pruner="none"), workers=0, say=quiet)
    states = {tuple(trial.setting.values()): trial.state for trial in result.trials}
    refused = [setting for setting, state in states.items() if state != "complete"]
    assert len(states) == 4
    assert [set(setting) for setting in refused] == [{"batchnorm", 3199}]
    assert states[refused[0]] == "refused"
    assert (result.failed, result.trained) == ({}, 3)
    table, _ = frames.trials("tiny")
    (why,) = table.why[table.state == "refused"]
    assert "batchnorm" in why
    assert result.final is not None


@pytest.mark.slow
def test_trial_that_fails_ends_the_search_after_its_round_and_is_tried_again(store: Path, other: str) -> None:
    """A file where the checkpoints of a run should go; when it is out of the way, all is as if it had never been there."""
    blocked: list[Path] = []

    def block(now: Progress) -> None:
        for run in Store().runs("tiny", study="tiny"):
            folder = store / "mlruns" / "tiny" / run.info.run_id / "artifacts" / "checkpoints"
            if run.data.tags["trial"] == "6" and not blocked and folder.is_dir():
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()
                folder.write_text("in the way", encoding="utf-8")
                blocked.append(folder)

    stopped = run_search(tiny(trials=15), workers=0, say=quiet, watch=block)
    assert list(stopped.failed) == ["trial 006"]
    assert "checkpoints" in stopped.failed["trial 006"]
    assert stopped.final is None
    assert [trial.name for trial in stopped.trials if trial.state == "failed"] == ["trial 006"]
    assert len(stopped.trials) == 10, "what comes later depends on it"
    assert launched.is_search("tiny")
    blocked[0].unlink()
    mended = run_search(tiny(trials=15), workers=0, say=quiet)
    assert mended.failed == {}
    assert mended.final is not None
    assert told(mended)[:6] == told(stopped)[:6]
    assert mended.trained <= 2 + 5 * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", other)
        assert told(run_search(tiny(trials=15), workers=0, say=quiet)) == told(mended)


@pytest.mark.slow
def test_wilcoxon_ends_what_all_seeds_say_is_worse_than_the_best(store: Path) -> None:
    """Three seeds could not say so: the least p of their test is 0.125."""
    steps = {"lr": {"choices": [0.001, 0.1, 0.3, 1e-6]}}
    asked = tiny(steps, range(5), sampler="grid", trials=4, batch=1, pruner="wilcoxon")
    result = run_search(asked, workers=0, say=quiet)
    by = {trial.setting["lr"]: trial for trial in result.trials}
    assert by[0.001].state == "complete", "the first has no rival"
    assert by[0.1].state == "complete"
    assert by[1e-6].state == "pruned"
    lost = by[1e-6].came
    assert lost is not None
    assert lost.pruned is not None
    rival = result.best["best"].came
    assert rival is not None
    at = lost.pruned
    assert len(lost.curves) == 5
    better = sum(rival.curves[seed][at] < lost.curves[seed][at] for seed in range(5))
    assert better >= 4, "or five seeds could not say so"
    with pytest.raises(InputError, match=r"wilcoxon needs 4 seeds; with 3 its least p is 0\.125"):
        tiny(steps, range(3), sampler="grid", pruner="wilcoxon")


@pytest.mark.slow
def test_trials_are_the_same_at_any_number_of_workers(store: Path, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process and in two of their own; in one of its own, which is killed again and again: test_search_kills.py."""
    here = told(run_search(tiny(), workers=0, say=quiet))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    assert told(run_search(tiny(), workers=2, say=quiet)) == here


def test_search_that_stops_in_its_second_round_goes_on_to_the_same_trials(
    store: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few trials of one seed and epoch; more of them in the slow test above."""

    def stop(progress: Progress) -> None:
        if progress.settled >= 3:
            raise KeyboardInterrupt

    small = tiny(seeds=[0], trials=4, batch=2, base={"epochs": 1}, pruner="none")
    whole = run_search(small, workers=0, say=quiet)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    with pytest.raises(KeyboardInterrupt):
        run_search(small, workers=0, say=quiet, watch=stop)
    on = run_search(small, workers=0, say=quiet)
    assert told(on) == told(whole)
    assert 0 < on.trained < whole.trained


@pytest.mark.parametrize(
    "sampler", ["grid", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "cmaes", "qmc"))]
)
def test_every_sampler_searches(sampler: str, store: Path) -> None:
    space = STEPS if sampler in ("grid", "qmc") else SPACE
    result = run_search(tiny(space, [0], sampler=sampler, trials=6, batch=3, pruner="none"), workers=0, say=quiet)
    assert [trial.state for trial in result.trials] == ["complete"] * 6
    if sampler == "grid":
        assert len({tuple(trial.setting.items()) for trial in result.trials}) == 6
        (warned,) = result.warnings
        assert re.fullmatch(r"best: lr=0\.[12] lies at the (low|high) end of 0\.1 to 0\.2", warned)
        assert f"edge     {warned}; the space may be too small" in found(result)
        note = RunLog.of(Store(), result.report_run_id).run.data.tags["mlflow.note.content"]
        assert f"{warned.removeprefix('best: ')}: the space may be too small." in note


@pytest.mark.parametrize("draw", range(6))
@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_rules_are_those_of_optuna(pruner: str, draw: int) -> None:
    epochs = 9
    drawn = np.random.default_rng(draw)
    curves = (drawn.uniform(size=(24, epochs)) + drawn.uniform(size=(24, 1))).tolist()  # they cross
    search = tiny(pruner=pruner, base={"epochs": epochs})
    made = optuna.pruners.MedianPruner() if pruner == "median" else optuna.pruners.HyperbandPruner(max_resource=epochs)
    study = optuna.create_study(pruner=made, study_name="tiny best", sampler=optuna.samplers.RandomSampler(seed=0))
    past: list[Trial] = []
    ends = []
    for number, values in enumerate(curves):
        rule = pruning.rule(search, "best", number, epochs, past)
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


def test_rules_of_a_search_that_compares_with_the_best_or_with_nothing() -> None:
    past = [Trial(0, {seed: {1: 0.5, 2: 0.4} for seed in range(5)}), Trial(1, {seed: {1: 0.6, 2: 0.3} for seed in range(5)})]
    worse = {seed: {1: 9.0 + seed, 2: 9.0} for seed in range(5)}
    rule = pruning.rule(tiny(seeds=range(5), pruner="wilcoxon"), "best", 2, 3, past)
    assert rule.rival == past[1].curves, "the one of the least cost at its end"
    assert rule.ends(worse) == 1
    assert pruning.rule(tiny(seeds=range(5), pruner="wilcoxon"), "best", 0, 3, []).ends(worse) is None
    assert pruning.rule(tiny(pruner="none"), "best", 2, 3, past).ends(worse) is None
    by_accuracy = tiny().study.model_copy(update={"metric": "final/val_accuracy"})
    more = pruning.rule(tiny().model_copy(update={"study": by_accuracy}), "best", 0, 3, [])
    assert (more.curve, more.sign) == ("val/accuracy", -1)
