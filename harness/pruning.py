"""When a trial is given up: a rule in plain numbers, made of the trials before it, which a worker follows by itself.

Costs are values of the search's metric, turned so that less is better. A trial's cost at an epoch is the mean over its
seeds; a run that diverged costs infinitely much from then on. A rule depends on nothing but trials of earlier batches, so
it does not matter who follows it, or when: the driver finds the same epoch from the curves in the store.
"""

from __future__ import annotations

import binascii
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.space import Search

STARTUP = 5  # complete trials before the median prunes, as in Optuna
HALVING = 3  # of the trials at a rung one in so many goes on
P_VALUE = 0.1  # below which Wilcoxon's test ends a trial
Curve = Mapping[int, float]  # epoch -> cost


@dataclass(frozen=True)
class Trial:
    """What a trial came to."""

    number: int
    curves: Mapping[int, Curve]  # of each seed, up to the last epoch that counts
    pruned: int | None = None  # after which epoch

    @property
    def cost(self) -> float:
        """Its cost after its last epoch."""
        return mean(self.curves, self.last)

    @property
    def last(self) -> int:
        """The last epoch of all of its runs."""
        return min(max(curve) for curve in self.curves.values())


@dataclass(frozen=True)
class Rule:
    """Up to which cost a trial goes on, at each epoch at which it may end."""

    curve: str  # the metric, "val/loss"
    sign: int  # 1 where less is better, -1 where more is
    epochs: int
    bounds: Mapping[int, float] = field(default_factory=dict)  # epoch -> cost
    at_best: bool = False  # whether the least cost so far is what counts, not that of the epoch
    rival: Mapping[int, Curve] = field(default_factory=dict)  # the best trial before, to be compared with seed by seed
    known: Mapping[int, Curve] = field(default_factory=dict)  # of this trial: runs that have ended already

    def cost(self, points: Mapping[int, float], diverged: int | None) -> dict[int, float]:
        """The curve of a run from its metric by epoch (from 1) and the epoch in which it diverged."""
        costs = {epoch: self.sign * value for epoch, value in points.items() if epoch}
        if diverged is not None:
            costs |= dict.fromkeys(range(diverged, self.epochs + 1), math.inf)
        return {epoch: cost if math.isfinite(cost) else math.inf for epoch, cost in sorted(costs.items())}

    def ends(self, curves: Mapping[int, Curve]) -> int | None:
        """The first epoch after which a trial of these curves, one a seed, is given up; None for one that goes on."""
        curves = {**self.known, **curves}
        reached = min((max(curve, default=0) for curve in curves.values()), default=0)
        return next((epoch for epoch in range(1, min(reached, self.epochs - 1) + 1) if self._prunes(curves, epoch)), None)

    def _prunes(self, curves: Mapping[int, Curve], epoch: int) -> bool:
        if self.rival:
            return self._worse(curves, epoch)
        cost = min(mean(curves, past) for past in range(1, epoch + 1)) if self.at_best else mean(curves, epoch)
        return cost > self.bounds.get(epoch, math.inf)

    def _worse(self, curves: Mapping[int, Curve], epoch: int) -> bool:
        """Whether Wilcoxon's signed-rank test over seeds says that this epoch is worse than the rival's."""
        from scipy.stats import wilcoxon  # half a second that only this needs to wait for

        differences = [curves[seed][epoch] - self.rival[seed][epoch] for seed in sorted(curves)]
        if not all(map(math.isfinite, differences)):
            return sum(differences) == math.inf
        p = wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue
        return bool(p < P_VALUE and statistics.fmean(differences) > 0)


def mean(curves: Mapping[int, Curve], epoch: int) -> float:
    """The mean cost over seeds, in the order of seeds: sums of floats depend on it."""
    return statistics.fmean(curves[seed][epoch] for seed in sorted(curves))


def rule(search: Search, condition: str, number: int, epochs: int, past: Sequence[Trial]) -> Rule:
    """The rule of a search's pruner for a trial of a condition, made of that condition's trials before it."""
    made = Rule(search.curve, 1 if search.direction == "minimize" else -1, epochs)
    if search.settings.pruner == "median":
        return replace(made, bounds=median(past, epochs), at_best=True)
    if search.settings.pruner == "hyperband":
        return replace(made, bounds=hyperband(past, epochs, number, f"{search.name} {condition}"))
    if search.settings.pruner == "wilcoxon" and (rival := best(past)) is not None:
        return replace(made, rival=rival.curves)
    return made


def median(past: Sequence[Trial], epochs: int) -> dict[int, float]:
    """A trial must once have been as good as the median, at that epoch, of those that came to their end.

    As optuna.pruners.MedianPruner has it.
    """
    whole = [trial for trial in past if trial.pruned is None]
    if len(whole) < STARTUP:
        return {}
    return {epoch: statistics.median(mean(trial.curves, epoch) for trial in whole) for epoch in range(1, epochs)}


def hyperband(past: Sequence[Trial], epochs: int, number: int, name: str) -> dict[int, float]:
    """Successive halving in brackets of different patience: at a rung the best third of those that came there goes on.

    Li et al. 2018, arXiv:1603.06560, without waiting for a rung to fill (Li et al. 2020, arXiv:1810.05934), with the brackets
    of optuna.pruners.HyperbandPruner: a trial's is a hash of its number.
    """
    brackets = 0
    while HALVING ** (brackets + 1) <= epochs:
        brackets += 1
    brackets += 1
    shares = [math.ceil(brackets * HALVING ** (brackets - 1 - b) / (brackets - b)) for b in range(brackets)]

    def bracket(number: int) -> int:
        at = binascii.crc32(f"{name}_{number}".encode()) % sum(shares)
        return next(b for b in range(brackets) if at < sum(shares[: b + 1]))

    mine, bounds = bracket(number), dict[int, float]()
    rivals = [trial for trial in past if bracket(trial.number) == mine]
    epoch = HALVING**mine
    while epoch < epochs:
        there = sorted(mean(trial.curves, epoch) for trial in rivals if trial.last >= epoch)
        go_on = max((len(there) + 1) // HALVING, 1)
        if len(there) >= go_on:
            bounds[epoch] = there[go_on - 1]
        epoch *= HALVING
    return bounds


def best(past: Sequence[Trial]) -> Trial | None:
    """The trial of least cost that came to its end, the earlier one of two; None where there is none, or all diverged."""
    whole = [trial for trial in past if trial.pruned is None and math.isfinite(trial.cost)]
    return min(whole, key=lambda trial: (trial.cost, trial.number), default=None)
