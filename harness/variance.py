"""Analysis of variance: variants and seeds as the two ways of a table, and factors with what they do to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from harness.blocks import Blocks
from harness.families import dunnett, holm
from harness.intervals import ROUNDING, Numbers

PERMUTATIONS, BATCH = 9999, 99  # with the table as it was seen they make 10,000; so many are held at once


@dataclass(frozen=True)
class Blocked:
    """Least squares of the metric on variant and seed: differences to the base, with one variance for all variants."""

    names: tuple[str, ...]  # the variants in it, without the base
    differences: Numbers  # of each from the base, in the metric's unit
    errors: Numbers  # their standard errors
    correlation: Numbers  # of the estimates, (k, k); 1/2 where every variant has every seed
    df: int

    @classmethod
    def fit(cls, blocks: Blocks) -> Blocked | None:
        """From every number of the variants that neither diverged nor failed; None without the base, or with too few."""
        from statsmodels.regression.linear_model import OLS  # half a second, and most commands need no statistics

        others = tuple(name for name in blocks.whole if name != blocks.reference)
        if not others or blocks.reference not in blocks.whole:
            return None
        cells = blocks.cells[blocks.cells.variant.isin([*others, blocks.reference]) & blocks.cells.value.notna()]
        treatments = np.stack([cells.variant.eq(name) for name in others], axis=1)
        seeds = np.stack([cells.seed.eq(seed) for seed in cells.seed.unique()], axis=1)
        design = np.concatenate([treatments, seeds], axis=1).astype(float)
        if len(design) <= design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
            return None
        fitted = OLS(cells.value.to_numpy(), design).fit()
        covariance, k = np.asarray(fitted.cov_params()), len(others)
        errors = np.sqrt(np.diag(covariance)[:k])
        if not (errors > ROUNDING * np.abs(cells.value).max()).all():
            return None
        correlation = covariance[:k, :k] / np.outer(errors, errors)
        return cls(others, fitted.params[:k], errors, correlation, int(fitted.df_resid))

    def columns(self, level: float) -> pd.DataFrame:
        """The model's columns of the contrasts: difference, interval at this level, and Dunnett's p."""
        half = stdtrit(self.df, (1 + level) / 2) * self.errors
        return pd.DataFrame(
            {
                "variant": self.names,
                "model_difference": self.differences,
                "model_low": self.differences - half,
                "model_high": self.differences + half,
                "p_dunnett": dunnett(self.differences / self.errors, self.correlation, self.df),
            }
        )


@dataclass(frozen=True)
class Omnibus:
    """Whether variants differ at all: F of variant in the blocked model, and how often chance does as well."""

    statistic: float
    p: float
    permutations: int
    n_seeds: int
    n_variants: int

    @classmethod
    def test(cls, blocks: Blocks) -> Omnibus | None:
        """Over the seeds that every variant without divergence or failure has; None with fewer than two of either.

        p is the share of tables, the one seen among them, with an F as large when the variants of each seed change places: it
        holds for any distribution, as long as variants that do not differ may be exchanged within a seed (Pitman 1938,
        doi:10.1093/biomet/29.3-4.322; (b + 1) / (m + 1): Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).
        """
        table = blocks.values[list(blocks.whole)].dropna().to_numpy()
        n, k = table.shape
        if n < 2 or k < 2:
            return None
        centred = table - table.mean(1, keepdims=True)  # the seed's own level, which no permutation changes
        total = float((centred**2).sum())
        between = n * float((centred.mean(0) ** 2).sum())
        if total - between <= 1e-18 * float((table**2).sum()):
            return None
        generator = np.random.default_rng(0)
        as_large = 0
        for _ in range(PERMUTATIONS // BATCH):
            means = generator.permuted(np.broadcast_to(centred, (BATCH, n, k)), axis=2).mean(1)
            as_large += int((n * (means**2).sum(1) >= between * (1 - 1e-12)).sum())
        statistic = between / (k - 1) / ((total - between) / ((n - 1) * (k - 1)))
        return cls(statistic, (as_large + 1) / (PERMUTATIONS + 1), PERMUTATIONS, n, k)


def factors(blocks: Blocks) -> pd.DataFrame | None:
    """Main effects and all interactions of a factorial study beside seed, with type II sums of squares.

    One row a term: term, df, sum_sq, F, p, p_holm (over the terms but seed), partial_eta_sq (sum_sq over itself and the
    residual). None where it cannot be computed: of another design, with a combination that has no number or a run that diverged
    or failed, with seeds that do not tell its effects apart, or with nothing left for the residual.
    """
    study = blocks.study
    varied = [factor for factor in study.varied if len(study.factors.get(factor, ())) > 1]
    if study.design != "factorial" or not varied or list(blocks.whole) != blocks.names:
        return None
    cells = blocks.cells[blocks.cells.value.notna()]
    if len(cells) - len(blocks.names) - cells.seed.nunique() + 1 < 1:
        return None
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    levels = {row.name: [row.config.label(factor) for factor in varied] for row in study.rows}
    names = [f"factor_{place}" for place in range(len(varied))]  # what a formula takes for a name, whatever a factor is called
    data = pd.DataFrame([levels[str(name)] for name in cells.variant], columns=names)
    data = data.assign(seed=cells.seed.to_numpy(), metric=cells.value.to_numpy())
    formula = "metric ~ C(seed) + " + " * ".join(f"C({name})" for name in names)
    model = ols(formula, data)
    if np.linalg.matrix_rank(model.exog) < model.exog.shape[1]:
        return None
    found = anova_lm(model.fit(), typ=2)
    spoken = {f"C({name})": factor for name, factor in zip(names, varied, strict=True)}
    spoken |= {"C(seed)": "seed", "Residual": "residual"}
    terms = [":".join(spoken[part] for part in str(term).split(":")) for term in found.index]
    frame = found.rename(columns={"PR(>F)": "p"}).assign(term=terms, df=found.df.astype(int)).reset_index(drop=True)
    residual = float(frame.sum_sq.iloc[-1])
    tested = ~frame.term.isin(["seed", "residual"])
    frame.loc[tested, "p_holm"] = holm(frame.p[tested].to_list())
    frame["partial_eta_sq"] = (frame.sum_sq / (frame.sum_sq + residual)).where(frame.term.ne("residual"))
    return frame[["term", "df", "sum_sq", "F", "p", "p_holm", "partial_eta_sq"]]
