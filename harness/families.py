"""Families: what the p values of several tests are worth when they are read together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.special import ndtr

from harness.intervals import Numbers

NODES = 256  # of a quadrature, in each direction
DRAWS, BATCH = 100_000, 1000  # a p of 0.05 is known to 0.0007; so many are held at once
legendre = cache(np.polynomial.legendre.leggauss)  # an eigenproblem, slower than all that is done with its answer


def dunnett(statistics: Numbers, correlation: Numbers, df: int) -> list[float]:
    """For each t the chance that the largest |t| of all k is as large where no variant differs from the base.

    Dunnett 1955, doi:10.1080/01621459.1955.10501294, for the residual of the blocked model. Where all correlations are 1/2 the
    multivariate t is an integral in two dimensions (his eq. 3, two-sided); else DRAWS of it, from a fixed start, are counted.
    """
    sizes = np.abs(statistics)
    off = correlation[~np.eye(len(correlation), dtype=bool)]
    if np.allclose(off, 0.5):
        return [1 - _equicorrelated(size, len(sizes), df) for size in sizes]
    return _drawn(sizes, correlation, df)


def _drawn(sizes: Numbers, correlation: Numbers, df: int) -> list[float]:
    """How often the largest of k multivariate |t| is at least as large as each size: Z / S, as in `_equicorrelated`.

    An integral in k dimensions takes minutes for 70 of them, and no time is short enough for a column that few read.
    """
    generator = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(correlation)
    root = (vectors * np.sqrt(np.clip(values, 0, None))).T
    largest = [
        np.abs(generator.standard_normal((BATCH, len(sizes))) @ root).max(1) / np.sqrt(generator.chisquare(df, BATCH) / df)
        for _ in range(DRAWS // BATCH)
    ]
    smaller = np.searchsorted(np.sort(np.concatenate(largest)), sizes)
    return list((DRAWS - smaller + 1) / (DRAWS + 1))


def _equicorrelated(size: float, k: int, df: int) -> float:
    """P(|T_j| <= size for all of k) for multivariate t with correlations 1/2.

    T_j = (Z_j + Z_0) / sqrt(2) / S with independent standard normal Z and S² = chi²(df) / df: given Z_0 and S they are
    independent.
    """
    from scipy.stats import chi

    nodes, weights = legendre(NODES)
    ends = chi.ppf([1e-14, 1 - 1e-14], df)
    radii = ends[0] + (nodes + 1) / 2 * (ends[1] - ends[0])
    of_radius = weights * chi.pdf(radii, df) * (ends[1] - ends[0]) / 2
    shared = 9 * nodes
    of_shared = 9 * weights * np.exp(-(shared**2) / 2) / math.sqrt(2 * math.pi)
    edge = math.sqrt(2) * size * radii[:, None] / math.sqrt(df)
    inside = (ndtr(edge - shared) - ndtr(-edge - shared)) ** k
    return float(min(1.0, of_radius @ inside @ of_shared))


def holm(p: Sequence[float]) -> Numbers:
    """Holm's adjusted p values of a family; one that is NaN stays so and counts as 1.

    Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    values = np.asarray(p, dtype=float)
    known = np.where(np.isnan(values), 1.0, values)
    order = np.argsort(known)
    steps = np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1))  # the smallest times k, the next times k - 1
    adjusted = np.empty_like(known)
    adjusted[order] = np.minimum(steps, 1.0)
    return np.where(np.isnan(values), math.nan, adjusted)
