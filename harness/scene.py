"""The trials of one condition as Optuna has them, for its figures and importances."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.canvas import UNITS
from harness.frames import each
from harness.ranges import WHOLE, Levels, Range
from harness.study import Variant
from harness.trials import Trials

optuna.logging.set_verbosity(optuna.logging.ERROR)
WIDE = 12  # times its least value: a loss that varies more is shown by its logarithm
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}  # all else counts as failed


class TooFew(ValueError):
    """Why there is no figure."""


@dataclass(frozen=True)
class Scene:
    """The trials of one condition as Optuna has them."""

    prefix: str  # of its files
    study: optuna.Study
    varied: tuple[str, ...]  # parameters with at least two values among its complete trials
    words: str  # the metric, as an axis says it
    wide: bool

    @classmethod
    def of(cls, trials: Trials, row: Variant) -> Self:
        """A condition's trials, rebuilt as Optuna's study under their own numbers."""
        search, mine = trials.search, trials.of(row)
        study = optuna.create_study(direction=search.direction, study_name=f"{search.name} {row.name}")
        for trial in each(mine):
            setting = dict(trials.settings[trial.variant])
            state = STATES.get(trial.state, TrialState.FAIL)
            value = trial.value if state is TrialState.COMPLETE else None
            kinds = {name: _distribution(name, search.space[name]) for name in setting}
            study.add_trial(create_trial(state=state, value=value, params=setting, distributions=kinds))
        whole = mine[mine.state == "complete"]
        seen: dict[str, set[Any]] = {}
        for name, _ in search.order:
            seen[name] = {trials.settings[trial][name] for trial in whole.variant if name in trials.settings[trial]}
        varied = tuple(name for name, values in seen.items() if len(values) > 1)
        what = search.study.metric.rpartition("_")[2]
        wide = what == "loss" and len(whole) > 0 and whole.value.min() > 0 and whole.value.max() > WIDE * whole.value.min()
        prefix = f"{re.sub(r'[^a-z0-9]+', '-', row.name.lower()).strip('-')}-" if search.study.factors else ""
        return cls(prefix, study, varied, f"validation {UNITS[what]}", bool(wide))

    @property
    def shown(self) -> dict[str, Any]:
        """What Optuna is told to show: the metric, or its logarithm."""
        return {"target": _logarithm, "target_name": f"log10 of {self.words}"} if self.wide else {"target_name": self.words}

    @property
    def count(self) -> int:
        return len(self.study.get_trials(states=(TrialState.COMPLETE,)))

    def check(self) -> None:
        """Raise TooFew where there is nothing that trials could be compared by."""
        if self.count < 2:
            raise TooFew(f"{self.count} trial{'s' * (self.count != 1)} came to an end; it takes two")
        if not self.varied:
            raise TooFew("no parameter has two values")

    def common(self, method: str) -> list[str]:
        """The parameters that a method can judge. Raises TooFew where there is none."""
        if method == "PED-ANOVA":
            return list(self.varied)
        whole = self.study.get_trials(states=(TrialState.COMPLETE,))
        if not (common := [name for name in self.varied if all(name in trial.params for trial in whole)]):
            raise TooFew("no parameter stands in each trial")
        if len({trial.value for trial in whole}) < 2:
            raise TooFew("all trials have one value")
        return common


def _distribution(name: str, asked: Range | Levels) -> BaseDistribution:
    if isinstance(asked, Levels):
        return CategoricalDistribution(asked.choices)
    if name in WHOLE:
        return IntDistribution(int(asked.low), int(asked.high), log=asked.log, step=int(asked.step or 1))
    return FloatDistribution(asked.low, asked.high, log=asked.log, step=asked.step)


def _logarithm(trial: FrozenTrial) -> float:
    assert trial.value is not None  # it is complete
    return float(np.log10(trial.value))
