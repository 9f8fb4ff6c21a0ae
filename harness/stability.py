"""Stability of training: how far seeds lie apart, how a curve swings, what it lost again, and when it was good enough."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from harness.blocks import Blocks
from harness.intervals import std_interval

COLUMNS = (
    *("variant", "n", "spread", "spread_low", "spread_high", "fluctuation", "n_fluctuation", "drawdown", "n_drawdown"),
    *("gap", "n_gap", "target", "target_value", "epochs_to_target", "n_target"),
)


def stability(blocks: Blocks, history: pd.DataFrame) -> pd.DataFrame:
    """One row for each distinct variant; each number with its n, runs of which none diverged but for `n_target`.

    `spread`: standard deviation of the metric over seeds, with its chi-square interval. `fluctuation`: mean absolute change of
    the test loss from epoch to epoch in the second half. `drawdown`: the largest rise of a run's test loss above its lowest
    until then, of the worst seed. `gap`: final test loss minus final train loss, both in eval mode, mean over seeds. In a study
    of validation these three are of the validation loss.
    `epochs_to_target`: median over seeds of the first epoch whose curve of the metric is as good as the base ends on average;
    a run that never is, also one that diverged before, counts as infinity. None is told of a training metric, whose curve is
    measured while training and whose end is not.
    """
    curves = {str(run): rows.sort_values("epoch") for run, rows in history.groupby("run_id")}
    measured_alike = not blocks.study.metric.startswith("final/train_")
    target = float(blocks.values[blocks.reference].mean()) if measured_alike else math.nan
    rows = [_stability(blocks, name, curves, target) for name in blocks.names]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _stability(blocks: Blocks, name: str, curves: dict[str, pd.DataFrame], target: float) -> dict[str, Any]:
    cells = blocks.cells[blocks.cells.variant.eq(name)]
    good, ran = cells[cells.outcome.eq("finished")], cells[cells.outcome.isin(["finished", "diverged"])]
    spread = float(good.value.std())
    low, high = std_interval(spread, len(good))
    part = blocks.study.shown
    losses = [curves[run][f"{part}/loss"].to_numpy(float) for run in good.run_id if run in curves]
    swings = _known([fluctuation(loss) for loss in losses])
    falls = _known([drawdown(loss) for loss in losses])
    gaps = (good[f"final/{part}_loss"] - good["final/train_loss"]).dropna()
    curve = blocks.study.metric.removeprefix("final/").replace("_", "/")
    found = [curves[run] for run in ran.run_id if run in curves]
    sign = "<=" if blocks.good < 0 else ">="
    first = [first_epoch(rows.epoch, rows[curve], target, blocks.good) for rows in found if curve in rows]
    return {
        "variant": name,
        "n": len(good),
        "spread": spread,
        "spread_low": low,
        "spread_high": high,
        "fluctuation": float(np.mean(swings)) if swings else math.nan,
        "n_fluctuation": len(swings),
        "drawdown": max(falls, default=math.nan),
        "n_drawdown": len(falls),
        "gap": float(gaps.mean()),
        "n_gap": len(gaps),
        "target": None if math.isnan(target) else f"{curve} {sign} {target:.4g}, where {blocks.reference} ends",
        "target_value": target,
        "epochs_to_target": median(first) if math.isfinite(target) else math.nan,
        "n_target": len(first),
    }


def fluctuation(losses: np.ndarray) -> float:
    """Mean absolute change from epoch to epoch within the second half of losses (epochs + 1); NaN where it has no two."""
    second = losses[len(losses) // 2 :]
    return float(np.abs(np.diff(second)).mean()) if len(second) > 1 else math.nan


def drawdown(losses: np.ndarray) -> float:
    """The largest rise of losses (epochs + 1) above their lowest until then; 0 where they only fall, NaN of none."""
    return float((losses - np.minimum.accumulate(losses)).max()) if len(losses) else math.nan


def first_epoch(epochs: pd.Series, curve: pd.Series, target: float, good: int) -> float:
    """The first epoch at which a curve is as good as the target; infinity where it never is."""
    reached = epochs[good * curve >= good * target]
    return float(reached.iloc[0]) if len(reached) else math.inf


def median(values: list[float]) -> float:
    """The median of numbers that may be infinite: of an even count the later of the middle two, so that it is an epoch."""
    return sorted(values)[len(values) // 2] if values else math.nan


def _known(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
