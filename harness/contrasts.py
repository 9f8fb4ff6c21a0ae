"""Contrasts: each variant against the base, paired by seed, and the verdict that its interval supports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import gammaln, stdtr

from harness.blocks import Blocks
from harness.families import holm
from harness.intervals import CONFIDENCE, ROUNDING, Numbers, half_width, t_interval
from harness.variance import Blocked

VERDICTS = ("better", "equivalent", "worse", "undecided")
MOST_SEEDS = 1000  # more than so many more are not worth a number
FEWEST_FLIPS, MOST_FLIPS = (
    6,
    40,
)  # differences: 2 / 2^6 = 0.031 is the first p under 0.05; 2^20 sums on each side the last to hold
COLUMNS = (
    *("variant", "reference", "metric", "n", "difference", "std", "low", "high", "level"),
    *("p_paired", "p_sign_flip", "p_dunnett", "p_holm", "effect", "correlation", "pairing_gain"),
    *("model_difference", "model_low", "model_high", "verdict", "more_seeds", "reason", "run_ids"),
)


def decide(low: float, high: float, matters: float, good: int) -> str:
    """The verdict of an interval of a difference: variant minus base, better where it has the sign `good`.

    `better`: all of it lies beyond `matters` on the good side. `worse`: beyond it on the other. `equivalent`: all of it lies
    within ±matters. `undecided`: all else, NaN too. With `matters` 0 nothing is equivalent.
    """
    near, far = (good * low, good * high) if good > 0 else (good * high, good * low)
    if near > matters:
        return "better"
    if far < -matters:
        return "worse"
    return "equivalent" if matters > 0 and near >= -matters and far <= matters else "undecided"


def simultaneous(contrasts: int, looks: int = 1) -> float:
    """The level of each interval at which those of all looks hold together with 95%: 1 - 0.05 / (k looks), Bonferroni."""
    return 1 - (1 - CONFIDENCE) / (max(contrasts, 1) * looks)


def compared(blocks: Blocks, looks: int = 1) -> pd.DataFrame:
    """One row for each distinct variant but the base, with the columns COLUMNS, which docs/statistics.md explains."""
    others = [name for name in blocks.names if name != blocks.reference]
    level = simultaneous(len(others), looks)
    frame = pd.DataFrame([contrast(blocks, name, blocks.reference, level) for name in others], columns=COLUMNS)
    frame["p_holm"] = holm(frame.p_paired.to_list())
    if model := Blocked.fit(blocks):
        columns = model.columns(level).set_index("variant")
        frame[[*columns]] = columns.reindex(frame.variant).to_numpy()
    return frame


def contrast(blocks: Blocks, name: str, reference: str, level: float) -> dict[str, Any]:
    """What two variants have by themselves, without the others."""
    pair = blocks.values[[name, reference]].dropna().to_numpy()
    differences = pair[:, 0] - pair[:, 1]
    mean, std, low, high = (float(value) for value in t_interval(differences, level))
    matters, even = blocks.study.matters or 0.0, _is_even(pair)
    verdict, reason = decide(low, high, matters, blocks.good), _why_not(blocks, name, reference, pair)
    return {
        "variant": name,
        "reference": reference,
        "metric": blocks.study.metric,
        "n": len(pair),
        "difference": mean,
        "std": std,
        "low": low,
        "high": high,
        "level": level,
        "p_paired": math.nan if even else paired_p(differences),
        "p_sign_flip": sign_flip_p(differences),
        "effect": math.nan if even else effect(differences),
        "correlation": correlation(pair),
        "pairing_gain": math.nan if even else pairing_gain(pair),
        "sound": not reason,
        "verdict": "undecided" if reason else verdict,
        "more_seeds": math.nan if reason or verdict != "undecided" else more_seeds(mean, std, len(pair), level, matters),
        "reason": reason or _why(verdict, low, high, matters, blocks.unit, f"difference {mean:.3g}, {len(pair)} seeds"),
        "run_ids": blocks.run_ids(name, reference),
    }


def _why_not(blocks: Blocks, name: str, reference: str, pair: Numbers) -> str:
    """Why nothing can be said of two variants, whatever the interval; empty where something can."""
    for arm in (name, reference):
        for outcome in ("diverged", "failed"):
            if count := blocks.counts[arm][outcome]:
                of = f"{count} of {len(blocks.study.seeds)} runs of {arm} {outcome}"
                return f"{of}, and a mean over the others would leave out the worst" if blocks.counts[arm]["finished"] else of
    if len(pair) < 2:
        return f"{len(pair)} seed{'s' * (len(pair) != 1)} with both: no spread to judge by"
    if _is_even(pair):
        return "the difference is the same in every seed: no spread to judge by"
    return ""


def _is_even(pair: Numbers) -> bool:
    """Whether two arms (n, 2) differ by the same in every seed, but for rounding."""
    return bool(len(pair) and np.ptp(pair[:, 0] - pair[:, 1]) <= ROUNDING * np.abs(pair).max())


def _why(verdict: str, low: float, high: float, matters: float, unit: str, of: str) -> str:
    """What an interval does that gives the verdict, and at which edges."""
    edges = sorted({matters, 0 - matters})  # one, where nothing was declared to matter
    does, at = {
        "undecided": ("reaches across", [edge for edge in edges if low <= edge <= high]),
        "equivalent": ("lies within", edges),
    }.get(verdict, ("lies wholly beyond", edges[-1:] if low > matters else edges[:1]))
    return f"the interval {low:.3g} to {high:.3g}{unit} ({of}) {does} {f'{at[0]:g}' if len(at) == 1 else f'±{matters:g}'}"


def more_seeds(difference: float, std: float, n: int, level: float, matters: float) -> float:
    """How many seeds more, after n, until the interval would decide if difference and std stayed as they are.

    They will not: with the seeds it asks for, about half of the contrasts are decided. MOST_SEEDS is "at least so many"; NaN
    where the difference lies on an edge, so that no number would do.
    """
    room = abs(abs(difference) - matters)
    counts = np.arange(n + 1, n + MOST_SEEDS + 1)
    enough = half_width(std, counts, level) < room
    return float(counts[enough.argmax()] - n) if enough.any() else float(MOST_SEEDS) if room > 0 else math.nan


def correlation(pair: Numbers) -> float:
    """Pearson's correlation of two arms (n, 2) across seeds; NaN below n = 3 and where an arm does not vary."""
    if len(pair) < 3 or not np.ptp(pair, axis=0).all():
        return math.nan
    return float(np.asarray(np.corrcoef(pair, rowvar=False))[0, 1])


def pairing_gain(pair: Numbers) -> float:
    """How much larger the variance of a difference of means would be for other seeds in each arm: by how many times the
    seeds pairing multiplied. (var a + var b) / var(a - b); below 1 it cost some. NaN below n = 3."""
    variance = float(np.var(pair[:, 0] - pair[:, 1], ddof=1)) if len(pair) > 2 else 0.0
    return float(sum(np.var(arm, ddof=1) for arm in pair.T)) / variance if variance > 0 else math.nan


def paired_p(differences: Numbers) -> float:
    """Two-sided p of the paired t test of no difference; NaN below n = 2 and where the differences do not vary."""
    n, std = len(differences), float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return float(2 * stdtr(n - 1, -abs(float(differences.mean())) / std * math.sqrt(n))) if std > 0 else math.nan


def sign_flip_p(differences: Numbers) -> float:
    """Exact two-sided p of no difference: the share of all 2^n sign flips whose sum is as far from 0 as the one seen.

    It asks of the differences only that they be symmetric about 0 where there is none (Fisher 1935, The Design of Experiments,
    section 21). NaN below n = 6, where it cannot reach 0.05, and above 40. Half the flips of one half of the differences are
    sorted and those of the other are looked up among them, so that 2^(n/2) sums serve for 2^n.
    """
    n = len(differences)
    if not FEWEST_FLIPS <= n <= MOST_FLIPS:
        return math.nan
    some, others = np.sort(_flipped(differences[: n // 2])), _flipped(differences[n // 2 :])
    seen = abs(float(differences.sum())) - ROUNDING * float(np.abs(differences).sum())
    above = len(some) - np.searchsorted(some, seen - others, side="left")
    return min(1.0, 2 * float(above.sum()) / 2.0**n)  # as many lie below by symmetry


def _flipped(values: Numbers) -> Numbers:
    """The sums of all sign flips of some values."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def effect(differences: Numbers) -> float:
    """Mean difference over the standard deviation of differences, corrected for small n; NaN below n = 3.

    d_z with the exact factor of Hedges 1981, doi:10.3102/10769986006002107, eq. 6e, at n - 1 degrees of freedom.
    """
    m = len(differences) - 1
    std = float(np.std(differences, ddof=1)) if m > 0 else 0.0
    if m < 2 or std == 0:
        return math.nan
    factor = math.exp(gammaln(m / 2) - gammaln((m - 1) / 2)) / math.sqrt(m / 2)
    return factor * float(differences.mean()) / std
