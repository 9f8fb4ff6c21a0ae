"""Intervals: what a sample says of a mean, a standard deviation and a rate; along the last axis, for many samples at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, chdtri, stdtrit

CONFIDENCE = 0.95
ROUNDING = 1e-9  # a spread below this share of the values is rounding
Numbers = NDArray[np.float64]


def t_interval(values: ArrayLike, level: float = CONFIDENCE) -> tuple[Any, Any, Any, Any]:
    """Mean, sample standard deviation and the two ends of Student's t interval of the mean of `values` (..., n).

    mean ± t(n - 1, (1 + level) / 2) std / sqrt(n). Exact for independent normal values. NaN where n is too small: the mean of
    none, the rest of one.
    """
    sample = np.asarray(values, dtype=float)
    n = sample.shape[-1]
    nothing = np.full(sample.shape[:-1], math.nan)
    mean = sample.mean(-1) if n else nothing
    std = sample.std(-1, ddof=1) if n > 1 else nothing
    half = half_width(std, n, level) if n > 1 else nothing
    return mean, std, mean - half, mean + half


def half_width(std: ArrayLike, n: ArrayLike, level: float = CONFIDENCE) -> Any:
    """Half the width of the t interval of a mean of n values, n > 1, with this sample standard deviation."""
    count = np.asarray(n)
    return stdtrit(count - 1, (1 + level) / 2) * np.asarray(std) / np.sqrt(count)


def std_interval(std: float, n: int, level: float = CONFIDENCE) -> tuple[float, float]:
    """The chi-square interval of the standard deviation of normal values, of which n had this one. NaN below n = 2.

    (n - 1) std² / sigma² is chi-square with n - 1 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.5.8), for normal values
    only: more seeds do not mend it for others.
    """
    if n < 2:
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = (std * math.sqrt((n - 1) / chdtri(n - 1, p)) for p in (tail, 1 - tail))
    return low, high


def rate_interval(count: int, n: int, level: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of a rate that came `count` times in n trials; (0, 1) for none.

    Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    tail = (1 - level) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high
