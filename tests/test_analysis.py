"""The statistics: by hand, against scipy and statsmodels, under changes that must not matter, at the edges of verdicts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from harness.analysis import Analysis, analyse
from harness.blocks import Blocks
from harness.canvas import Canvas
from harness.contrasts import MOST_SEEDS, compared, decide, effect, more_seeds, sign_flip_p, simultaneous
from harness.families import dunnett, holm
from harness.interactions import interactions
from harness.intervals import half_width, rate_interval, std_interval, t_interval
from harness.separation import spearman
from harness.stability import drawdown, fluctuation, median
from harness.study import Study
from harness.tables import tables
from harness.variance import Omnibus

BASE = {"dataset": "mnist_5k"}
LISTED = ["base", "wide", "deep"]
ACTS = ["tanh", "relu", "gelu"]


def listed(seeds: int = 4, **values: Any) -> Study:
    """A study of three variants that differ in lr."""
    variants = [{"name": name, "lr": 0.1 * 2**place} for place, name in enumerate(LISTED)]
    known = {"name": "tiny", "question": "?", "design": "list", "seeds": list(range(seeds)), "base": BASE, "variants": variants}
    return Study(**known | values)


def runs_of(study: Study, numbers: Mapping[str, Sequence[float]], states: Mapping[str, str] = {}) -> pd.DataFrame:
    """Rows as `frames.runs` has them, with a number for each variant and seed; `states` of cells that did not finish."""
    rows = []
    for cell in study.cells:
        state = states.get(cell.name, "finished")
        value = numbers[cell.variant.name][study.seeds.index(cell.seed)] if state != "missing" else math.nan
        metrics = {f"final/{part}_{what}": math.nan for part in ("train", "val", "test") for what in ("loss", "accuracy")}
        rows.append(
            {
                "variant": cell.variant.name,
                "seed": cell.seed,
                "state": state,
                "run_id": cell.name,
                "condition": cell.variant.condition,
                "config_digest": cell.config.digest,
                "state_digest": f"{cell.config.digest}",
                **metrics,
                "final/train_loss": value - 0.1,
                study.metric: value,
            }
        )
    return pd.DataFrame(rows)


def history_of(study: Study, curves: Mapping[str, Sequence[float]], **health: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """The same test loss for every seed of a variant, with measures of one layer."""
    rows = [
        {
            "run_id": cell.name,
            "variant": cell.variant.name,
            "seed": cell.seed,
            "state": "finished",
            "epoch": epoch,
            "test/loss": loss,
            **{f"health/hidden1/{what}": values[cell.variant.name][epoch] for what, values in health.items()},
        }
        for cell in study.cells
        for epoch, loss in enumerate(curves[cell.variant.name])
    ]
    return pd.DataFrame(rows)


NUMBERS = {"base": [1.0, 2.0, 4.0, 5.0], "wide": [0.0, 1.5, 2.5, 4.0], "deep": [1.5, 1.5, 4.5, 6.5]}
CURVES = {name: [9.0, 2.0, 4.0, 1.0, 2.0] for name in LISTED}


def analysed(study: Study | None = None, numbers: Any = NUMBERS, states: Mapping[str, str] = {}, **options: Any) -> Analysis:
    study = study or listed(len(numbers["base"]))
    return analyse(study, runs_of(study, numbers, states), history_of(study, dict.fromkeys(numbers, CURVES["base"])), **options)


def row(frame: pd.DataFrame, variant: str) -> pd.Series:
    (found,) = (values for _, values in frame.iterrows() if values.variant == variant)
    return found


# by hand


def test_contrast_of_four_seeds_is_as_by_hand() -> None:
    """wide - base is -1, -1/2, -3/2, -1: mean -1, sum of squares about it 1/2."""
    found = row(analysed().contrasts, "wide")
    std = math.sqrt(0.5 / 3)
    assert (found.n, found.difference, found["std"]) == (4, -1.0, pytest.approx(std))
    critical = stats.t.ppf(1 - 0.05 / 2 / 2, 3)  # two contrasts, two sides
    assert (found.low, found.high) == pytest.approx((-1 - critical * std / 2, -1 + critical * std / 2))
    assert found.level == pytest.approx(0.975)
    assert found.effect == pytest.approx(-1 / std * math.gamma(1.5) / math.sqrt(1.5) / math.gamma(1)), "Hedges's factor for 3"
    base, wide = (np.array(NUMBERS[name]) for name in ("base", "wide"))
    assert found.correlation == pytest.approx(stats.pearsonr(base, wide).statistic)
    assert found.pairing_gain == pytest.approx((np.var(base, ddof=1) + np.var(wide, ddof=1)) / (0.5 / 3))
    assert math.isnan(found.p_sign_flip), "four seeds allow no exact p below 0.125"


def test_two_and_three_seeds_say_what_they_can() -> None:
    """Of three, the least that a study has by default: -1, -1/2, -3/2 have the mean -1 and the standard deviation 1/2."""
    three = row(analysed(numbers={"base": [1.0, 2.0, 4.0], "wide": [0.0, 1.5, 2.5], "deep": [2.0, 2.0, 9.0]}).contrasts, "wide")
    half = stats.t.ppf(1 - 0.05 / 2 / 2, 2) * 0.5 / math.sqrt(3)
    assert (three.low, three.high) == pytest.approx((-1 - half, -1 + half))
    assert three.effect == pytest.approx(-2 * math.gamma(1) / math.gamma(0.5)), "Hedges's factor for 2"
    assert three.p_paired == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 2))
    two = row(analysed(numbers={"base": [1.0, 2.0], "wide": [0.0, 1.5], "deep": [2.0, 2.0]}).contrasts, "wide")
    half = stats.t.ppf(1 - 0.05 / 2 / 2, 1) * 0.25
    assert (two.low, two.high) == pytest.approx((-0.75 - half, -0.75 + half))
    assert math.isnan(two.effect)
    assert math.isnan(two.pairing_gain)


def test_blocked_model_of_a_balanced_table_is_as_by_hand() -> None:
    found = analysed()
    table = np.array([NUMBERS[name] for name in LISTED]).T
    residual = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
    variance = (residual**2).sum() / (3 * 2)
    between = 4 * ((table.mean(0) - table.mean()) ** 2).sum() / 2
    assert found.omnibus is not None
    assert found.omnibus.statistic == pytest.approx(between / variance)
    assert (found.omnibus.n_seeds, found.omnibus.n_variants) == (4, 3)
    wide = row(found.contrasts, "wide")
    half = stats.t.ppf(1 - 0.05 / 4, 6) * math.sqrt(2 * variance / 4)
    assert (wide.model_difference, wide.model_low, wide.model_high) == pytest.approx((-1, -1 - half, -1 + half))


def test_omnibus_is_the_share_of_all_orders_within_seeds() -> None:
    """One seed spreads more than the others, so that to exchange values between seeds would be another test."""
    numbers = {"base": [1.0, 2.0, 4.0, 5.0], "wide": [1.5, 2.6, 4.4, 9.0], "deep": [2.0, 2.9, 5.1, 7.0]}
    table = np.array(list(numbers.values())).T
    orders = itertools.product(*(itertools.permutations(row) for row in table))
    between = np.array([np.var(np.mean(order, axis=0)) for order in orders])
    exact = (between >= np.var(table.mean(0)) * (1 - 1e-12)).mean()
    found = Omnibus.test(Blocks.of(listed(), runs_of(listed(), numbers)))
    assert found is not None
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact / found.permutations))


def test_table_that_no_permutation_equals_counts_itself_alone() -> None:
    """Ten seeds in which the variants have one order: none of 6^9 others comes up among some thousands."""
    numbers = {name: [10.0 * place + seed for seed in range(10)] for place, name in enumerate(LISTED)}
    numbers["deep"][0] += 0.5
    found = Omnibus.test(Blocks.of(listed(10), runs_of(listed(10), numbers)))
    assert found is not None
    assert found.p == 1 / (found.permutations + 1)


def test_variants_are_described_as_scipy_does() -> None:
    found = row(analysed().variants, "deep")
    values = NUMBERS["deep"]
    assert (found.n, found["mean"], found["std"]) == (4, np.mean(values), pytest.approx(np.std(values, ddof=1)))
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)))
    assert (found["min"], found["max"], found.run_ids) == (1.5, 6.5, tuple(f"deep-s{seed}" for seed in range(4)))


def test_stability_is_as_by_hand() -> None:
    study = listed(2)
    curves = {"base": [9.0, 5.0, 3.0], "wide": [9.0, 2.0, 4.0, 1.0, 2.0], "deep": [9.0, 8.0, 8.0]}
    found = analyse(study, runs_of(study, {"base": [2, 4], "wide": [1, 2], "deep": [8, 8]}), history_of(study, curves))
    wide, deep = (row(found.stability, name) for name in ("wide", "deep"))
    assert (wide.fluctuation, wide.drawdown, wide.gap, wide.epochs_to_target) == pytest.approx((2.0, 2.0, 0.1, 1))
    assert (deep.fluctuation, deep.drawdown, deep.epochs_to_target) == (0.0, 0.0, math.inf)
    assert wide.target == "test/loss <= 3, where base ends"
    assert (wide.spread_low, wide.spread_high) == pytest.approx(std_interval(math.sqrt(0.5), 2))


def test_stability_in_a_study_of_validation_sees_nothing_of_the_test_set() -> None:
    study = listed(2, metric="final/val_loss", base={**BASE, "validation": 0.2})
    numbers = {"base": [2, 4], "wide": [1, 2], "deep": [8, 8]}
    history = history_of(study, CURVES).rename(columns={"test/loss": "val/loss"})
    seen, blind = (analyse(study, runs_of(study, numbers), frame) for frame in (history.assign(**{"test/loss": 7.0}), history))
    wide = row(blind.stability, "wide")
    assert (wide.fluctuation, wide.drawdown, wide.gap) == pytest.approx((2.0, 2.0, 0.1))
    pd.testing.assert_frame_equal(seen.stability, blind.stability)
    (note,) = (table.note for table in tables(blind) if table.title == "Stability of training")
    assert "validation loss" in note
    assert "test" not in note


def test_a_training_metric_has_no_epochs_to_target() -> None:
    """Its curve is measured while training, dropout on and weights moving, and its end in eval mode."""
    study = listed(metric="final/train_loss")
    history = history_of(study, CURVES).rename(columns={"test/loss": "train/loss"}).assign(**{"test/loss": 1.0})
    found = analyse(study, runs_of(study, NUMBERS), history).stability
    assert found.epochs_to_target.isna().all()
    assert found.target.isna().all()


def test_target_of_an_accuracy_is_to_be_reached_from_below() -> None:
    study = listed(2, metric="final/test_accuracy")
    curves = {"base": [0.1, 0.5, 0.6], "wide": [0.1, 0.5, 0.7], "deep": [0.1, 0.2, 0.2]}
    history = history_of(study, curves).rename(columns={"test/loss": "test/accuracy"}).assign(**{"test/loss": 1.0})
    found = analyse(study, runs_of(study, {"base": [0.6, 0.6], "wide": [0.7, 0.7], "deep": [0.2, 0.2]}), history).stability
    assert row(found, "wide").target == "test/accuracy >= 0.6, where base ends"
    assert (row(found, "wide").epochs_to_target, row(found, "deep").epochs_to_target) == (2, math.inf)


def test_parts_of_stability_know_their_edges() -> None:
    assert math.isnan(fluctuation(np.array([3.0])))
    assert fluctuation(np.array([100.0, 3.0, 1.0])) == 2.0, "the second half of two epochs is the second"
    assert drawdown(np.array([3.0, 2.0, 2.5, 1.0, 1.25])) == 0.5
    assert median([2.0, math.inf, 1.0]) == 2
    assert median([1.0, math.inf]) == math.inf, "half of the seeds never got there"


# against scipy and statsmodels


@given(st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=6, max_size=9), st.floats(-1, 1))
def test_sign_flip_is_the_share_of_all_flips(values: list[float], shift: float) -> None:
    differences = np.array(values) + shift
    assume(np.abs(differences).sum() > 0)
    flips = np.array(list(itertools.product([-1, 1], repeat=len(differences))))
    seen = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    assert sign_flip_p(differences) == pytest.approx((np.abs(flips @ differences) >= seen).mean())


def test_sign_flip_of_thirty_differences_is_exact() -> None:
    assert sign_flip_p(np.full(30, 0.5)) == 2 / 2**30
    assert sign_flip_p(np.array([1.0, -1.0] * 15)) == 1
    assert math.isnan(sign_flip_p(np.ones(5)))


@pytest.mark.parametrize(("variants", "seeds"), [(1, 3), (2, 10), (6, 3), (12, 5)])
def test_dunnett_is_scipy_s(variants: int, seeds: int) -> None:
    generator = np.random.default_rng(variants)
    samples = generator.normal(0, 1, (variants, seeds))
    control = generator.normal(0.8, 1, seeds)
    known = stats.dunnett(*samples, control=control, rng=np.random.default_rng(0))
    correlation = np.full((variants, variants), 0.5) + 0.5 * np.eye(variants)
    found = dunnett(known.statistic, correlation, (variants + 1) * (seeds - 1))
    assert found == pytest.approx(known.pvalue, abs=5e-4)


def test_dunnett_of_an_unbalanced_table_is_near_that_of_the_balanced_one_and_repeats() -> None:
    near = np.array([[1, 0.5, 0.5], [0.5, 1, 0.5001], [0.5, 0.5001, 1]])
    even = np.full((3, 3), 0.5) + 0.5 * np.eye(3)
    sizes = np.array([1.0, 2.0, 3.0])
    assert dunnett(sizes, near, 6) == pytest.approx(dunnett(sizes, even, 6), abs=2e-3)
    assert dunnett(sizes, near, 6) == dunnett(sizes, near, 6)


def test_dunnett_of_an_unbalanced_table_is_scipy_s_integral() -> None:
    correlation = np.array([[1, 0.3, 0.5], [0.3, 1, 0.6], [0.5, 0.6, 1]])
    law = stats.multivariate_t(shape=correlation, df=7, seed=np.random.default_rng(1))
    for size, p in zip(sizes := np.array([1.0, 2.5, 4.0]), dunnett(sizes, correlation, 7), strict=True):
        assert p == pytest.approx(1 - law.cdf([size] * 3, lower_limit=[-size] * 3), abs=3e-3)


def test_holm_is_statsmodels_s() -> None:
    for size in (1, 2, 6, 30):
        p = np.random.default_rng(size).uniform(0, 0.1, size).round(2)  # with ties
        assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_is_by_hand_and_counts_what_is_unknown() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, math.nan]) == pytest.approx([0.02, math.nan], nan_ok=True)
    assert len(holm([])) == 0


def test_intervals_are_scipy_s() -> None:
    known = stats.binomtest(2, 7).proportion_ci(0.95, method="exact")
    assert rate_interval(2, 7) == pytest.approx((known.low, known.high))
    assert rate_interval(0, 3) == (0, pytest.approx(1 - 0.025 ** (1 / 3)))
    assert rate_interval(0, 0) == (0, 1)
    assert std_interval(2.0, 10) == pytest.approx([math.sqrt(9 * 4 / stats.chi2.ppf(p, 9)) for p in (0.975, 0.025)])


def test_paired_p_is_scipy_s_and_corrected_for_every_contrast() -> None:
    found = analysed().contrasts.set_index("variant").loc[["wide", "deep"]]
    p = [stats.ttest_rel(NUMBERS[name], NUMBERS["base"]).pvalue for name in found.index]
    assert found.p_paired.to_list() == pytest.approx(p)
    assert found.p_holm.to_list() == pytest.approx(multipletests(p, method="holm")[1])


def test_unbalanced_model_is_that_of_a_formula() -> None:
    found = row(analysed(states={"wide-s1": "missing"}).contrasts, "wide")
    cells = [(n, s, v) for n, values in NUMBERS.items() for s, v in enumerate(values) if (n, s) != ("wide", 1)]
    data = pd.DataFrame(cells, columns=["variant", "seed", "y"])
    fitted = smf.ols("y ~ C(variant, Treatment('base')) + C(seed)", data).fit()
    name = "C(variant, Treatment('base'))[T.wide]"
    assert found.model_difference == pytest.approx(fitted.params[name])
    assert [found.model_low, found.model_high] == pytest.approx(fitted.conf_int(0.025).loc[name].to_list())
    assert found.n == 3


FACTORIAL = {
    "name": "tiny",
    "question": "?",
    "design": "factorial",
    "seeds": [0, 1, 2],
    "base": BASE,
    "factors": {"lr": [0.1, 0.2], "norm": ["none", "layernorm", "batchnorm"]},
}


def test_factorial_table_has_main_effects_and_interaction_as_by_hand() -> None:
    study = Study(**FACTORIAL)
    generator = np.random.default_rng(0)
    table = generator.normal(0, 1, (3, 2, 3)) + np.array([0, 3])[:, None] + np.array([0, 1, 5])  # seed, lr, norm
    names = [[name for name in (row.name for row in study.rows) if f"lr={lr}" in name] for lr in ("0.1", "0.2")]
    order = {name: (i, j) for i, group in enumerate(names) for j, name in enumerate(group)}
    numbers = {name: table[:, i, j] for name, (i, j) in order.items()}
    runs = runs_of(study, numbers)
    found = analyse(study, runs, history_of(study, dict.fromkeys(numbers, CURVES["base"]))).anova
    assert found is not None
    assert len(found) == 5
    by = found.set_index("term")
    mean = table.mean()
    of_lr = 9 * ((table.mean((0, 2)) - mean) ** 2).sum()
    of_norm = 6 * ((table.mean((0, 1)) - mean) ** 2).sum()
    of_seed = 6 * ((table.mean((1, 2)) - mean) ** 2).sum()
    both = 3 * ((table.mean(0) - table.mean((0, 2))[:, None] - table.mean((0, 1)) + mean) ** 2).sum()
    residual = ((table - mean) ** 2).sum() - of_lr - of_norm - of_seed - both
    (pair,) = (term for term in by.index if ":" in term)
    assert by.sum_sq[["lr", "norm", "seed", pair, "residual"]].tolist() == pytest.approx(
        [of_lr, of_norm, of_seed, both, residual]
    )
    assert by.df[["lr", "norm", "seed", pair, "residual"]].tolist() == [1, 2, 2, 2, 10]
    assert by.p["lr"] == pytest.approx(stats.f.sf(of_lr / (residual / 10), 1, 10))
    assert by.partial_eta_sq["norm"] == pytest.approx(of_norm / (of_norm + residual))


def test_one_factor_of_two_levels_has_an_anova_by_two_seeds_and_its_supposition_is_said() -> None:
    """One degree of freedom is left: F is the square of the paired t."""
    study = Study(**FACTORIAL | {"seeds": [0, 1], "factors": {"lr": [0.1, 0.2]}})
    first, second = (row.name for row in study.rows)
    numbers = {first: [1.0, 2.0], second: [1.5, 3.5]}
    found = analyse(study, runs_of(study, numbers), history_of(study, dict.fromkeys(numbers, CURVES["base"])))
    assert found.anova is not None
    by = found.anova.set_index("term")
    assert by.df.to_dict() == {"lr": 1, "seed": 1, "residual": 1}
    assert by.F["lr"] == pytest.approx(stats.ttest_rel(numbers[second], numbers[first]).statistic ** 2)
    assert any("supposes one spread for all combinations and normal residuals" in line for line in found.limits)
    assert not any("No analysis of variance" in line for line in found.limits)


def test_factorial_study_without_a_whole_table_has_no_anova_and_says_so() -> None:
    study = Study(**FACTORIAL)
    numbers = {row.name: np.random.default_rng(1).normal(size=3) for row in study.rows}
    broken = study.rows[1].name
    found = analyse(
        study, runs_of(study, numbers, {f"{broken}-s0": "diverged"}), history_of(study, {name: [1.0] for name in numbers})
    )
    assert found.anova is None
    assert any("No analysis of variance" in line for line in found.limits)


def test_factorial_whose_effects_its_seeds_do_not_tell_apart_has_no_anova() -> None:
    """One combination has a number of one seed only, of which nobody else has any."""
    study = Study(**FACTORIAL)
    names = [row.name for row in study.rows]
    numbers = {name: np.random.default_rng(place).normal(size=3) for place, name in enumerate(names)}
    missing = {f"{name}-s{seed}": "missing" for name in names for seed in study.seeds if (seed == 2) != (name == names[0])}
    found = analyse(study, runs_of(study, numbers, missing), history_of(study, {name: [1.0] for name in numbers}))
    assert found.anova is None


def test_spearman_is_scipy_s_and_exact_for_few() -> None:
    x, y = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 9])
    rho, p = spearman(x, y)
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    ranks = [1, 3, 2, 4]
    orders = [abs(np.corrcoef(order, ranks)[0, 1]) >= abs(rho) - 1e-9 for order in itertools.permutations([1, 2, 3, 4])]
    assert p == pytest.approx(np.mean(orders))
    assert all(math.isnan(value) for value in spearman(x, np.ones(4)))


def test_health_is_a_mean_over_seeds_and_separation_ranks_conditions() -> None:
    study = listed(2)
    dead = {"base": [0.0] * 5, "wide": [0.0, 0, 0, 0, 0.25], "deep": [0.0, 0, 0, 0, 0.5]}
    numbers = {"base": [1, 1.5], "wide": [2, 2.5], "deep": [3, 3.5]}
    found = analyse(study, runs_of(study, numbers), history_of(study, CURVES, dead=dead))
    last = found.health[found.health.epoch == 4]
    assert last[["variant", "layer", "n", "dead"]].values.tolist() == [[n, "hidden1", 2, dead[n][4]] for n in LISTED]
    ends = found.separation.set_index(["measure", "when"])
    assert (ends.correlation["dead", "end"], ends.n["dead", "end"]) == (pytest.approx(1), 3)
    assert math.isnan(ends.correlation["dead", "start"]), "the same in all conditions"


def test_conditions_that_start_alike_count_once_before_training() -> None:
    """Two act levels by three optimizers: what a layer is like before training is of act alone, and says nothing thrice."""
    rows = [{"name": f"{act} {rule}", "act": act, "optimizer": rule} for act in ACTS for rule in ("sgd", "adam", "rmsprop")]
    study = listed(2, variants=rows)
    std = {row["name"]: [float(ACTS.index(row["act"])), float(place)] for place, row in enumerate(rows)}
    numbers = {row["name"]: [place, place + 0.5] for place, row in enumerate(rows)}
    found = analyse(study, runs_of(study, numbers), history_of(study, {name: [9.0, 1.0] for name in numbers}, std=std))
    by = found.separation.set_index(["measure", "when"])
    assert (by.n["std", "start"], by.n["std", "end"]) == (3, 9)
    assert by.p["std", "start"] == pytest.approx(2 / 6), "the order of three: two of six permutations are as far from 0"


# what must not matter


def same(one: Analysis, other: Analysis, but: Sequence[str] = ()) -> None:
    for name in ("variants", "contrasts", "stability", "health", "separation"):
        mine, theirs = (getattr(found, name).drop(columns=list(but), errors="ignore") for found in (one, other))
        pd.testing.assert_frame_equal(mine, theirs)
    assert (one.omnibus, one.limits) == (other.omnibus, other.limits)


def test_order_of_rows_does_not_matter() -> None:
    study = listed()
    runs, history = runs_of(study, NUMBERS), history_of(study, CURVES)
    shuffled = analyse(study, runs.sample(frac=1, random_state=1), history.sample(frac=1, random_state=1))
    same(analyse(study, runs, history), shuffled)


def paired(numbers: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """The columns of the contrasts that rest on differences within seeds."""
    columns = ["n", "difference", "std", "low", "high", "p_paired", "p_holm", "effect", "verdict", "more_seeds"]
    study = listed()
    return compared(Blocks.of(study, runs_of(study, numbers)))[columns]


@pytest.mark.parametrize("examples", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_what_a_seed_adds_to_all_variants_moves_no_paired_contrast(examples: int) -> None:
    before = paired(NUMBERS)

    @settings(max_examples=examples)
    @given(st.lists(st.integers(-20, 20), min_size=4, max_size=4))
    def unmoved(blocks: list[int]) -> None:
        moved = {name: [value + block for value, block in zip(values, blocks, strict=True)] for name, values in NUMBERS.items()}
        pd.testing.assert_frame_equal(before, paired(moved), rtol=1e-9, atol=1e-12)

    unmoved()


def test_names_do_not_matter() -> None:
    study = listed()
    names = dict(zip(LISTED, ["zebra", "a", "m"], strict=True))
    other = Study(**study.model_dump() | {"variants": [dict(row) | {"name": names[row["name"]]} for row in study.variants]})
    renamed = analysed(other, {names[name]: values for name, values in NUMBERS.items()} | {"base": [0.0] * 4})
    plain = analysed()
    numbers = plain.contrasts.select_dtypes("number").columns
    pd.testing.assert_frame_equal(plain.contrasts[numbers], renamed.contrasts[numbers])
    assert plain.omnibus == renamed.omnibus


def test_same_frames_give_the_same_numbers_to_the_bit() -> None:
    same(analysed(), analysed())


# verdicts


@given(st.floats(-10, 10), st.floats(0, 10), st.floats(0, 3), st.sampled_from([-1, 1]))
def test_verdict_is_what_the_whole_interval_supports(middle: float, half: float, matters: float, good: int) -> None:
    low, high = middle - half, middle + half
    verdict = decide(low, high, matters, good)
    gains = [good * low, good * high]
    assert (verdict == "better") == (min(gains) > matters)
    assert (verdict == "worse") == (max(gains) < -matters)
    assert (verdict == "equivalent") == (matters > 0 and -matters <= low and high <= matters)
    assert decide(-high, -low, matters, -good) == verdict, "the sign of the metric is a matter of taste"


def test_verdict_at_its_edges() -> None:
    assert decide(-0.3, -0.1, 0.1, -1) == "undecided", "an edge is not beyond itself"
    assert decide(-0.3, -0.1001, 0.1, -1) == "better"
    assert decide(-0.1, 0.1, 0.1, -1) == "equivalent"
    assert decide(-0.1, 0.1001, 0.1, -1) == "undecided"
    assert decide(0.0, 0.0, 0.0, -1) == "undecided", "nothing is equivalent without a difference that matters"
    assert decide(math.nan, math.nan, 1.0, 1) == "undecided"


def test_accuracies_are_better_high() -> None:
    numbers = {"base": [0.1, 0.2, 0.3, 0.4], "wide": [0.5, 0.61, 0.7, 0.8], "deep": [0.0, 0.11, 0.2, 0.3]}
    found = analysed(listed(metric="final/test_accuracy"), numbers)
    assert found.contrasts.verdict.tolist() == ["better", "worse"]
    assert "wide is better than base: final test accuracy is higher by 0.402" in found.sentences[1]


@given(st.floats(-1, 1), st.floats(0.01, 1), st.integers(2, 12), st.floats(0, 0.5))
def test_more_seeds_is_the_fewest_that_would_decide(difference: float, std: float, n: int, matters: float) -> None:
    level = simultaneous(3)
    more = more_seeds(difference, std, n, level, matters)
    assume(not math.isnan(more) and more < MOST_SEEDS)

    def verdict(count: int) -> str:
        half = float(half_width(std, count, level))
        return decide(difference - half, difference + half, matters, -1)

    assert verdict(n + int(more)) != "undecided"
    assert more == 1 or verdict(n + int(more) - 1) == "undecided"


def test_one_seed_decides_nothing() -> None:
    found = analysed(numbers={"base": [1.0], "wide": [0.0], "deep": [9.0]})
    assert found.contrasts.verdict.tolist() == ["undecided"] * 2
    assert found.contrasts.reason.tolist() == ["1 seed with both: no spread to judge by"] * 2
    assert found.omnibus is None
    assert found.limits[0].startswith("With 1 seed there is no spread")


def test_equal_differences_are_no_proof() -> None:
    """Accuracies are counts: two seeds may well agree to the last bit, or, shifted, but for rounding."""
    found = analysed(numbers={"base": [0.3, 0.4], "wide": [0.1, 0.2], "deep": [0.3, 0.4]}, study=listed(2, matters=0.01))
    assert found.contrasts.verdict.tolist() == ["undecided"] * 2
    assert found.contrasts.reason.str.contains("the same in every seed").all()
    assert found.contrasts.more_seeds.isna().all()
    across = {"base": [0.446, 0.451, 0.485], "wide": [0.446 + 0.29, 0.451 + 0.29, 0.485 + 0.29]}
    assert 0 < np.std(np.subtract(across["wide"], across["base"])) < 1e-15, "rounding alone"
    found = analysed(numbers={**across, "deep": [0.3, 0.5, 0.4]}, study=listed(3))
    wide = row(found.contrasts, "wide")
    assert all(math.isnan(wide[name]) for name in ("p_paired", "p_holm", "effect", "pairing_gain"))
    assert found.contrasts.model_difference.notna().all(), "the model pools the spread of all"


def test_equivalence_needs_a_difference_that_matters() -> None:
    near = {"base": [1.0, 2.0, 4.0, 5.0], "wide": [1.001, 2.0, 4.002, 5.0], "deep": [1.0, 2.001, 4.0, 5.002]}
    assert analysed(listed(matters=0.1), near).contrasts.verdict.tolist() == ["equivalent"] * 2
    without = analysed(listed(), near)
    assert without.contrasts.verdict.tolist() == ["undecided"] * 2
    assert any("nothing can be called equivalent" in line for line in without.limits)


def test_looks_widen_intervals() -> None:
    one, five = (analysed(looks=looks) for looks in (1, 5))
    assert five.contrasts.level.tolist() == pytest.approx([1 - 0.05 / 10] * 2)
    assert (five.contrasts.high > one.contrasts.high).all()
    assert "Intervals are as wide as 5 looks at growing data need." in five.limits


# what did not finish


@pytest.mark.parametrize("outcome", ["diverged", "failed"])
@pytest.mark.parametrize("arm", ["base", "wide"])
def test_run_without_a_number_in_either_arm_leaves_the_contrast_open(outcome: str, arm: str) -> None:
    far = {"base": [1.0, 2.0, 4.0, 5.0], "wide": [101.0, 102.5, 104.0, 105.0], "deep": [51.0, 52.5, 54.0, 55.0]}
    found = analysed(numbers=far, states={f"{arm}-s2": outcome})
    wide, deep = (row(found.contrasts, name) for name in ("wide", "deep"))
    assert wide.verdict == "undecided"
    assert f"1 of 4 runs of {arm} {outcome}" in wide.reason
    assert deep.verdict == ("undecided" if arm == "base" else "worse")
    variant = row(found.variants, arm)
    assert (variant.n, variant[outcome]) == (3, 1)
    assert variant["mean"] == pytest.approx(np.mean(np.delete(far[arm], 2))), "nothing is made of what has no number"
    assert any(f"1 of 4 runs of {arm} {outcome}" in line for line in found.limits)
    assert wide.run_ids
    assert f"{arm}-s2" not in wide.run_ids


def test_finished_run_with_an_infinite_metric_has_diverged() -> None:
    found = analysed(numbers=NUMBERS | {"wide": [0.0, math.inf, 1.0, 1.0]})
    assert row(found.variants, "wide")[["n", "diverged"]].tolist() == [3, 1]
    assert row(found.contrasts, "wide").verdict == "undecided"


@pytest.mark.parametrize("state", ["missing", "running", "stale"])
def test_missing_seed_is_said_and_leaves_its_pair_out(state: str) -> None:
    found = analysed(states={"wide-s0": state})
    assert row(found.contrasts, "wide").n == 3
    assert row(found.variants, "wide").missing == 1
    assert any("1 of 4 runs of wide are missing" in line for line in found.limits)
    assert row(found.contrasts, "wide").difference == pytest.approx((-0.5 - 1.5 - 1) / 3)


def test_divergence_has_its_exact_interval() -> None:
    found = row(analysed(states={"wide-s0": "diverged", "wide-s1": "failed"}).variants, "wide")
    known = stats.binomtest(1, 3).proportion_ci(0.95, method="exact")
    assert (found.divergence_low, found.divergence_high) == pytest.approx((known.low, known.high))


def test_diverged_run_never_reaches_the_target() -> None:
    found = row(analysed(states={f"wide-s{seed}": "diverged" for seed in (0, 1, 2)}).stability, "wide")
    assert (found.n, found.n_target) == (1, 4)


def test_study_of_which_nothing_is_there_has_frames_of_the_same_columns() -> None:
    study = listed(2)
    none = {cell.name: "missing" for cell in study.cells}
    history = pd.DataFrame(columns=["run_id", "variant", "seed", "state", "epoch"])
    found = analyse(study, runs_of(study, {name: [0, 0] for name in LISTED}, none), history)
    whole = analysed()
    for name in ("variants", "contrasts", "stability", "health", "separation"):
        assert list(getattr(found, name)) == list(getattr(whole, name)), name
    assert found.contrasts.verdict.tolist() == ["undecided"] * 2
    assert found.omnibus is None


# copies


ONE = {
    "name": "tiny",
    "question": "?",
    "design": "one_factor_at_a_time",
    "seeds": [0, 1, 2],
    "base": BASE,
    "factors": {"norm": ["layernorm", "none"], "lr": [0.01, 0.1]},
}
COPIED = {"norm=none": [1.0, 2, 4], "lr=0.01": [1.0, 2, 4], "norm=layernorm": [0.5, 1, 3], "lr=0.1": [1.5, 3, 5]}


def test_copies_of_the_base_are_one_variant() -> None:
    found = analysed(Study(**ONE), COPIED | {"base": []})
    assert found.variants.variant.tolist() == ["norm=layernorm", "norm=none", "lr=0.1"]
    base = row(found.variants, "norm=none")
    assert (base.is_base, base.copies, base.n) == (True, ("lr=0.01",), 3)
    assert found.contrasts.variant.tolist() == ["norm=layernorm", "lr=0.1"]
    assert found.contrasts.level.iloc[0] == pytest.approx(0.975), "the family has two contrasts, not three"


def test_copies_that_disagree_are_named() -> None:
    found = analysed(Study(**ONE), COPIED | {"lr=0.01": [1.0, 2.5, 4], "base": []})
    assert any("norm=none with seed 1" in line and "bit for bit" in line for line in found.limits)
    assert not any("bit for bit" in line for line in analysed(Study(**ONE), COPIED | {"base": []}).limits)


# words


@pytest.mark.parametrize(("seeds", "smallest"), [(2, "0.5"), (3, "0.25"), (5, "0.0625")])
def test_few_seeds_are_said_to_be_few(seeds: int, smallest: str) -> None:
    numbers = {name: np.random.default_rng(place).normal(size=seeds) for place, name in enumerate(LISTED)}
    first = analysed(numbers=numbers).limits[0]
    assert first == f"With {seeds} seeds no exact paired test can reach 0.05: the smallest possible p is {smallest}."


def test_six_seeds_are_few_for_a_family() -> None:
    numbers = {name: np.random.default_rng(place).normal(size=6) for place, name in enumerate(LISTED)}
    found = analysed(numbers=numbers)
    assert "2 contrasts no exact paired test can reach 0.05 once corrected" in found.limits[0]
    assert found.contrasts.p_sign_flip.notna().all()


def test_sentences_say_the_verdicts_and_nothing_else() -> None:
    numbers = {"base": [1.0, 2.0, 4.0, 5.0], "wide": [101.0, 102.5, 104.0, 105.0], "deep": [1.0, 3.0, 3.0, 6.0]}
    found = analysed(numbers=numbers)
    together = "Intervals are of 97.5%, and hold together with 95%."
    assert found.sentences[0] == f"Of 2 variants beside base: 1 worse, 1 undecided, by final test loss. {together}"
    assert found.sentences[1].startswith("wide is worse than base: final test loss is higher by 100 nats")
    low, high = row(found.contrasts, "deep")[["low", "high"]]
    interval = f"the interval {low:.3g} to {high:.3g} nats (difference 0.25, 4 seeds) reaches across 0;"
    assert found.sentences[2].startswith(f"deep is undecided against base: {interval} about ")
    assert len(found.sentences) == 1 + len(found.contrasts)


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([0.3, 0.4, 0.5, 0.4], "worse: lies wholly beyond 0.1"),
        ([-0.3, -0.4, -0.5, -0.4], "better: lies wholly beyond -0.1"),
        ([0.0, 0.2, 0.1, 0.1], "undecided: reaches across 0.1"),
        ([0.0, -0.2, -0.1, -0.1], "undecided: reaches across -0.1"),
        ([0.9, -0.9, 0.5, -0.5], "undecided: reaches across ±0.1"),
        ([0.0, 0.01, 0.0, 0.01], "equivalent: lies within ±0.1"),
    ],
)
def test_reason_names_the_edge_that_the_interval_meets(differences: list[float], said: str) -> None:
    numbers = NUMBERS | {"wide": [a + b for a, b in zip(NUMBERS["base"], differences, strict=True)]}
    found = row(analysed(listed(4, matters=0.1), numbers).contrasts, "wide")
    verdict, _, does = said.partition(": ")
    assert found.verdict == verdict
    assert found.reason.endswith(f" {does}")


def test_of_a_variant_whose_runs_all_diverged_nothing_is_said_of_others() -> None:
    found = analysed(states={f"{name}-s{seed}": "diverged" for name in ("wide", "deep") for seed in range(4)})
    assert row(found.contrasts, "wide").reason == "4 of 4 runs of wide diverged"
    assert found.limits[0].startswith("Without runs to compare there is no spread")


def test_t_interval_takes_many_samples_at_once() -> None:
    samples = np.random.default_rng(0).normal(size=(5, 4, 3))
    together = np.stack(t_interval(samples), -1)
    for at in np.ndindex(5, 4):
        assert together[at] == pytest.approx(t_interval(samples[at]))
    assert math.isnan(effect(np.array([1.0, 2.0])))


def test_a_base_that_no_level_is_leaves_two_changes_in_a_contrast_and_it_is_said() -> None:
    factors = {"lr": [0.1, 1.0], "act": ["relu", "gelu"]}
    for base, said in (({"lr": 0.01}, True), ({"lr": 0.1}, False)):
        study = Study(
            name="tiny", question="?", design="one_factor_at_a_time", seeds=[0, 1], base={**BASE, **base}, factors=factors
        )
        numbers = {row.name: [place, place + 0.5] for place, row in enumerate(study.rows)}
        found = analyse(study, runs_of(study, numbers), history_of(study, {name: [9.0, 1.0] for name in numbers}))
        assert any("No variant is the base itself" in line for line in found.limits) == said


def test_labels_of_a_factorial_say_of_what_a_number_is() -> None:
    study = Study(**FACTORIAL)
    numbers = {row.name: [1.0, 2.0, 3.0] for row in study.rows}
    canvas = Canvas.of(analyse(study, runs_of(study, numbers), history_of(study, {name: [1.0] for name in numbers})))
    assert list(canvas.labels.values())[:2] == ["none lr=0.1", "none lr=0.2"]


def test_launches_before_with_fewer_seeds_are_told_of_unless_looks_are_planned() -> None:
    line = "It was launched before with 2, 3 seeds, and these intervals count one look"
    assert any(limit.startswith(line) for limit in analysed(seen=[2, 3]).limits)
    assert not any("launched before" in limit for limit in (*analysed().limits, *analysed(seen=[2, 3], looks=5).limits))


def test_conditions_of_which_some_runs_diverged_are_told_of_below_interactions() -> None:
    study = Study(**FACTORIAL)
    numbers = {row.name: np.random.default_rng(1).normal(size=3) for row in study.rows}
    runs = runs_of(study, numbers, {f"{study.rows[1].name}-s0": "diverged"})
    drawing = interactions(Canvas.of(analyse(study, runs, history_of(study, {name: [1.0] for name in numbers}))))
    assert drawing is not None
    assert "Of 1 condition some runs diverged or failed" in drawing.caption


def test_what_a_family_of_six_seeds_cannot_show_one_contrast_can() -> None:
    """The smallest p of six seeds is 2 / 2^6 = 0.031: under 0.05 for one contrast, above it for two."""
    numbers = {name: np.random.default_rng(place).normal(size=6) for place, name in enumerate(LISTED)}
    pair = listed(6, variants=[{"name": "base", "lr": 0.1}, {"name": "wide", "lr": 0.2}])
    one, two = analysed(pair, {name: numbers[name] for name in LISTED[:2]}), analysed(numbers=numbers)
    normal = "Intervals and verdicts suppose that differences between seeds are about normal."
    assert one.limits[0] == two.limits[1] == normal
    ranks = "Contrasts are with base only: they do not rank the other variants among each other."
    assert ranks in two.limits
    assert ranks not in one.limits


def test_that_few_seeds_do_not_show_whether_differences_are_normal_is_said() -> None:
    numbers = {name: np.random.default_rng(place).normal(size=5) for place, name in enumerate(LISTED)}
    said = "differences between seeds are about normal, which 5 seeds can neither show nor refute."
    assert analysed(numbers=numbers).limits[1].endswith(said)


def test_most_pairs_that_any_contrast_has_are_the_seeds_that_limits_speak_of() -> None:
    found = analysed(states={"wide-s0": "missing", "wide-s1": "missing", "wide-s2": "missing"})
    assert found.contrasts.n.tolist() == [1, 4]
    assert found.limits[0].startswith("With 4 seeds no exact paired test")


@pytest.mark.parametrize("part", ["val", "test"])
def test_metric_of_test_data_is_said_to_flatter_what_it_chose_and_of_validation_it_is_not(part: str) -> None:
    study = listed(metric=f"final/{part}_loss", base={**BASE, "validation": 0.2})
    history = history_of(study, CURVES).assign(**{"val/loss": 1.0})
    found = analyse(study, runs_of(study, NUMBERS), history)
    assert any("a variant chosen by it will do a little worse" in line for line in found.limits) == (part == "test")
    assert any("intervals are about other seeds, not about other data" in line for line in found.limits)


def test_sentence_tells_of_more_seeds_only_where_a_number_would_do() -> None:
    numbers = {"base": [1.0, 2.0, 4.0, 5.0], "wide": [1.5, 2.1, 4.9, 5.2], "deep": [1.1, 2.1, 4.1, 5.1]}
    found = analysed(numbers=numbers)
    open_, even = found.sentences[1:]
    more = row(found.contrasts, "wide").more_seeds
    assert open_.endswith(f"; about {more:.0f} more seeds would decide it if mean and spread stayed as they are.")
    assert even.endswith("the difference is the same in every seed: no spread to judge by.")
