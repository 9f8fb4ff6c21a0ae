"""Health over epochs, and whether it tells conditions apart that end well from those that do not."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

from harness.blocks import Blocks
from harness.families import holm
from harness.intervals import Numbers

MEASURES = ("saturated", "dead", "mean", "std", "grad_norm")
COLUMN = re.compile(r"health/(?P<layer>[^/]+)/(?P<measure>[^/]+)")
PERMUTATIONS = 9999  # all there are, where that is fewer: up to 7 conditions


def health(blocks: Blocks, history: pd.DataFrame) -> pd.DataFrame:
    """Mean over the seeds that finished of each measure: a row for each distinct variant, layer and epoch, with n.

    `frames.history` has a column `health/<layer>/<measure>` each; a layer that a variant does not have, has no row.
    """
    cells = blocks.cells[blocks.cells.outcome.eq("finished")]
    rows = history.merge(cells[["run_id", "variant"]], on="run_id", suffixes=("_given", ""))
    parts = []
    for layer in dict.fromkeys(match["layer"] for match in map(COLUMN.fullmatch, map(str, history)) if match):
        names = {f"health/{layer}/{measure}": measure for measure in MEASURES if f"health/{layer}/{measure}" in rows}
        here = rows[["variant", "epoch", *names]].rename(columns=names).dropna(subset=list(names.values()), how="all")
        grouped = here.groupby(["variant", "epoch"], sort=False)
        parts.append(grouped.mean().assign(n=grouped.size(), layer=layer).reset_index())
    columns = ["variant", "layer", "epoch", "n", *MEASURES]
    if not parts:
        return pd.DataFrame(columns=columns)
    place = {name: number for number, name in enumerate(blocks.names)}
    found = pd.concat(parts, ignore_index=True).reindex(columns=columns)
    return found.sort_values(
        ["variant", "layer", "epoch"], key=lambda c: c.map(place) if c.name == "variant" else c, ignore_index=True
    )


def separation(blocks: Blocks, health: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation over conditions of each measure, before training and at the end, with the metric.

    A condition's measure is the mean over its layers and seeds, its metric the mean over seeds; only conditions of which no run
    diverged or failed. Those whose measures are all the same, as before training where they differ in how they train alone,
    count once, with the mean of their metrics. `when` is `start`, epoch 0, or `end`, each variant's last. `correlation`:
    Spearman's; `p`: share of permutations with one as far from 0, exact up to 7 of them; `p_holm` over the family of all rows;
    `n` conditions. `mean` goes in by its size, for either sign may be unhealthy. NaN below 3 conditions and where a measure is
    the same in all.
    """
    means, measures = blocks.values[list(blocks.whole)].mean().rename("metric"), list(MEASURES)
    sized = health[health.variant.isin(means.index)].assign(mean=health["mean"].abs())
    ends = sized.groupby("variant").epoch.transform("max") if len(sized) else sized.epoch
    rows = []
    for when, chosen in (("start", sized[sized.epoch.eq(0)]), ("end", sized[sized.epoch.eq(ends)])):
        of_condition = chosen.groupby("variant")[measures].mean().join(means)
        distinct, epoch = of_condition.groupby(measures, dropna=False).metric.mean().reset_index(), chosen.epoch.max()
        for measure in MEASURES:
            values = distinct[[measure, "metric"]].dropna()
            rho, p = spearman(values[measure].to_numpy(float), values.metric.to_numpy(float))
            rows.append({"measure": measure, "when": when, "epoch": epoch, "correlation": rho, "p": p, "n": len(values)})
    found = pd.DataFrame(rows)
    found["p_holm"] = holm(found.p.to_list())
    return found[["measure", "when", "epoch", "correlation", "p", "p_holm", "n"]]


def spearman(measure: Numbers, metric: Numbers) -> tuple[float, float]:
    """Spearman's rank correlation, and the share of permutations with one as far from 0; NaN below 3 pairs and where one side
    does not vary.
    """
    if len(measure) < 3 or not np.ptp(measure) or not np.ptp(metric):
        return math.nan, math.nan
    from scipy.stats import permutation_test, rankdata

    x, y = ((ranks - ranks.mean()) / ranks.std() for ranks in (rankdata(measure), rankdata(metric)))

    def size(permuted: Numbers, axis: int = -1) -> Numbers:
        return np.abs((permuted * y).mean(axis=axis))

    test = permutation_test(
        (x,), size, permutation_type="pairings", alternative="greater", n_resamples=PERMUTATIONS, vectorized=True,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return float((x * y).mean()), float(test.pvalue)
