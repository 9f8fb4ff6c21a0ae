"""Proposes settings: Optuna's samplers, asked and told. The only module that speaks to Optuna, but for its figures."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from harness.pruning import Trial, mean
from harness.ranges import WHOLE, Levels, Range
from harness.space import Search
from harness.study import Variant

optuna.logging.set_verbosity(optuna.logging.ERROR)
SAMPLERS: Mapping[str, Callable[[int, bool], BaseSampler]] = {
    "tpe": lambda seed, conditions: TPESampler(
        seed=seed, group=conditions
    ),  # Bergstra et al. 2011; several are asked at a time
    "random": lambda seed, conditions: RandomSampler(seed=seed),
    "cmaes": lambda seed, conditions: CmaEsSampler(seed=seed, warn_independent_sampling=False),  # Hansen & Ostermeier 2001
    "grid": lambda seed, conditions: RandomSampler(seed=seed),  # which draws nothing: each point is enqueued
    "qmc": lambda seed, conditions: QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False),  # Sobol 1967
}


class Proposer:
    """The trials of one condition: what to try next, given what the ones before came to.

    What it proposes depends on the search, the condition and what it was told, in order. So a search that starts again
    asks and tells as it did, and needs no state of a sampler to be kept.
    """

    def __init__(self, search: Search, row: Variant) -> None:
        self.search, self.row = search, row
        settings = search.settings
        seed = int.from_bytes(hashlib.sha256(f"{settings.seed} {row.name}".encode()).digest()[:4])
        with warnings.catch_warnings(action="ignore"):  # that groups of conditional parameters are experimental
            sampler = SAMPLERS[settings.sampler](seed, any(asked.when for asked in search.space.values()))
        self.study = optuna.create_study(direction=search.direction, sampler=sampler, study_name=f"{search.name} {row.name}")
        self.running: dict[int, optuna.Trial] = {}

    def ask(self) -> tuple[int, dict[str, Any]]:
        """The number and the setting of the next trial."""
        number, start = len(self.study.get_trials(deepcopy=False)), self.search.start(self.row)
        if self.search.settings.sampler == "grid":
            self.study.enqueue_trial(self.search.grid(number))
        elif number == 0 and start is not None:
            self.study.enqueue_trial(start)
        self.running[number] = trial = self.study.ask()
        setting: dict[str, Any] = {}
        for name, asked in self.search.order:
            if self.search.applies(asked, self.row, setting):
                setting[name] = _suggested(trial, name, asked)
        return number, setting

    def tell(self, number: int, came: Trial | None) -> None:
        """What a trial came to; None for a setting that its data refuses."""
        trial = self.running.pop(number)
        if came is None:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        sign = 1 if self.search.direction == "minimize" else -1
        for epoch in range(1, came.last + 1):
            trial.report(sign * mean(came.curves, epoch), epoch)
        if came.pruned is not None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, sign * came.cost)


def _suggested(trial: optuna.Trial, name: str, asked: Range | Levels) -> Any:
    if isinstance(asked, Levels):
        return trial.suggest_categorical(name, asked.choices)
    if name in WHOLE:
        return trial.suggest_int(name, int(asked.low), int(asked.high), log=asked.log, step=int(asked.step or 1))
    return trial.suggest_float(name, asked.low, asked.high, log=asked.log, step=asked.step)
