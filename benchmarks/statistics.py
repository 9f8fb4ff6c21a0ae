"""`python -m benchmarks.statistics`: the statistics tried on experiments whose truth is known; a table and figures."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.random import Generator
from scipy.optimize import brentq

from harness.contrasts import MOST_SEEDS, decide, more_seeds, sign_flip_p, simultaneous
from harness.families import dunnett
from harness.intervals import Numbers, std_interval, t_interval

VARIANTS = 6  # beside the base, as many as `matrix` has
BLOCK = 2.0  # standard deviation of what seeds share, in that of a run of the base
SPREADS: Mapping[str, Sequence[float]] = {"equal": (1,) * 7, "unequal": (1, 0.25, 0.5, 1, 2, 3, 4)}  # base first
LAWS: Mapping[str, Callable[[Generator, tuple[int, ...]], Numbers]] = {  # each of mean 0 and standard deviation 1
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "skewed": lambda generator, shape: (generator.lognormal(0, 0.5, shape) - math.exp(0.125)) / 0.604,  # skewness 1.75
    "heavy tails": lambda generator, shape: generator.standard_t(5, shape) / math.sqrt(5 / 3),
}
LOOKS = (3, 6, 9, 12, 15, 18, 21, 24, 27, 30)  # seeds at each of ten looks
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito's, told apart by the colour-blind
MARKERS = "os^Dv"


@dataclass(frozen=True)
class Rate:
    """How often something came in so many experiments, and how often it may."""

    what: str
    where: str
    rate: float
    experiments: int
    bound: str = ""

    @property
    def error(self) -> float:
        """The standard error of the rate."""
        return math.sqrt(self.rate * (1 - self.rate) / self.experiments)


def tables(generator: Generator, count: int, seeds: int, spread: str, law: str = "normal") -> Numbers:
    """Metrics (count, seeds, 1 + VARIANTS) of experiments in which no variant differs from the base in the mean."""
    own = LAWS[law](generator, (count, seeds, VARIANTS + 1)) * np.asarray(SPREADS[spread])
    return own + BLOCK * generator.standard_normal((count, seeds, 1))


def differences(table: Numbers) -> Numbers:
    """Of each variant from the base: (count, VARIANTS, seeds)."""
    return np.swapaxes(table[:, :, 1:] - table[:, :, :1], 1, 2)


def verdicts(values: Numbers, matters: float = 0.0, looks: int = 1, shift: float = 0.0) -> np.ndarray:
    """The verdict of each contrast of `values` (..., seeds) of a loss, all shifted, as the analysis gives it."""
    _, _, low, high = t_interval(values + shift, simultaneous(VARIANTS, looks))
    found = [decide(a, b, matters, -1) for a, b in zip(low.ravel(), high.ravel(), strict=True)]
    return np.array(found).reshape(low.shape)


def share(hits: np.ndarray) -> tuple[float, int]:
    """Of experiments (count, ...), in how many anything is hit."""
    any_hit = hits.reshape(len(hits), -1).any(1)
    return float(any_hit.mean()), len(any_hit)


def false_positives(generator: Generator, count: int) -> list[Rate]:
    """A/A: nothing differs, so that every `better` or `worse` is false; at the edge, so that all but `undecided` is."""
    rates = []
    for law in LAWS:
        for spread in SPREADS:
            for seeds in (3, 10):
                found = differences(tables(generator, count, seeds, spread, law))
                where = f"{law}, {spread} spreads, {seeds} seeds"
                bound = "at most 5%" if law == "normal" else ""
                rates.append(Rate("any better or worse", where, *share(verdicts(found) != "undecided"), bound))
                at_edge = verdicts(found, matters=1.0, shift=1.0) != "undecided"
                if law == "normal":
                    rates.append(Rate("any verdict where all lie on the edge", where, *share(at_edge), bound))
    return rates


def coverage(generator: Generator, count: int) -> list[Rate]:
    """How often intervals hold the truth."""
    rates = []
    for law in LAWS:
        for seeds in (3, 10):
            where, bound = f"{law}, {seeds} seeds", "at least 94%" if law == "normal" else ""
            own = LAWS[law](generator, (count, seeds))
            _, _, low, high = t_interval(own)
            rates.append(Rate("t interval of a mean", where, *share((low < 0) & (high > 0)), bound))
            ends = np.array([std_interval(float(std), seeds) for std in own.std(1, ddof=1)])
            inside = (ends[:, 0] < 1) & (ends[:, 1] > 1)
            rates.append(Rate("chi-square interval of a spread", where, *share(inside), bound))
            _, _, low, high = t_interval(differences(tables(generator, count, seeds, "unequal", law)), simultaneous(VARIANTS))
            inside, where = ((low < 0) & (high > 0)).all(1), f"{law}, unequal spreads, {seeds} seeds"
            rates.append(Rate("all intervals of the contrasts", where, *share(inside), bound))
    return rates


def dunnett_point(df: int) -> float:
    """The |t| at which Dunnett's p is 5% in a whole table."""
    correlation = np.full((VARIANTS, VARIANTS), 0.5) + 0.5 * np.eye(VARIANTS)
    return float(brentq(lambda t: dunnett(np.full(VARIANTS, t), correlation, df)[0] - 0.05, 1, 20, xtol=1e-6))


def significance(generator: Generator, count: int) -> list[Rate]:
    """A/A: how often the tests beside the verdict find something at 5%."""
    rates, critical = [], {seeds: dunnett_point((seeds - 1) * VARIANTS) for seeds in (3, 10)}
    for spread in SPREADS:
        for seeds in (3, 10):
            table = tables(generator, count, seeds, spread)
            where, bound = f"normal, {spread} spreads, {seeds} seeds", "at most 5%" if spread == "equal" else ""
            centred = table - table.mean(1, keepdims=True) - table.mean(2, keepdims=True) + table.mean((1, 2), keepdims=True)
            df = (seeds - 1) * VARIANTS
            variance = (centred**2).sum((1, 2)) / df
            largest = np.abs(differences(table).mean(2)).max(1) / np.sqrt(2 * variance / seeds)
            rates.append(Rate("Dunnett, any of the family", where, *share(largest > critical[seeds]), bound))
    for spread in SPREADS:
        few = differences(tables(generator, count // 5, 10, spread))[:, 0]
        found = np.array([sign_flip_p(row) <= 0.05 for row in few])
        rates.append(Rate("exact sign flip, one contrast", f"normal, {spread} spreads, 10 seeds", *share(found), "at most 5%"))
    return rates


def power(generator: Generator, count: int, shifts: Numbers) -> dict[int, list[float]]:
    """Share of contrasts called better, by seeds, for each true difference in standard deviations of the differences."""
    found = {}
    for seeds in (3, 5, 10, 20, 30):
        noise = generator.standard_normal((count, seeds))
        found[seeds] = [float((verdicts(noise, shift=-shift) == "better").mean()) for shift in shifts]
    return found


def asked(generator: Generator, count: int, shifts: Numbers, start: int) -> dict[str, list[float]]:
    """What `more_seeds` asks for after `start` seeds with no `matters`, and what becomes of it, for each true difference.

    `decided`: share of undecided contrasts that the seeds asked for decide. `needed`: seeds that decide half of the contrasts.
    """
    level = simultaneous(VARIANTS)
    result: dict[str, list[float]] = {"shift": [], "median asked": [], "needed": [], "decided": []}
    for shift in shifts:
        noise = generator.standard_normal((count, start)) - shift
        mean, std, low, high = t_interval(noise, level)
        numbers, decided = [], []
        for i in np.flatnonzero([decide(a, b, 0.0, -1) == "undecided" for a, b in zip(low, high, strict=True)]):
            more = more_seeds(float(mean[i]), float(std[i]), start, level, 0.0)
            numbers.append(more)
            if more < MOST_SEEDS:
                grown = np.append(noise[i], generator.standard_normal(int(more)) - shift)
                decided.append(decide(*t_interval(grown, level)[2:], 0.0, -1) != "undecided")
        result["shift"].append(float(shift))
        result["median asked"].append(start + float(np.median(numbers)))
        result["needed"].append(start + more_seeds(-float(shift), 1.0, start, level, 0.0))
        result["decided"].append(float(np.mean(decided)))
    return result


def looking(generator: Generator, count: int, spread: str) -> list[Rate]:
    """A/A with a look after each batch of seeds: a false verdict at any look counts, for it would have ended the study."""
    found = differences(tables(generator, count, LOOKS[-1], spread))
    rates = []
    for looks in (len(LOOKS), 1):
        at = [(verdicts(found[:, :, :seeds], looks=looks) != "undecided").any(1) for seeds in LOOKS]
        what = f"any better or worse at {len(LOOKS)} looks" + ("" if looks > 1 else ", as if at one")
        bound = "at most 5%" if looks > 1 else ""
        rates.append(Rate(what, f"normal, {spread} spreads, {LOOKS[0]} to {LOOKS[-1]} seeds", *share(np.stack(at, 1)), bound))
    return rates


def table(rates: Sequence[Rate]) -> str:
    """Rates as Markdown, in percent with their standard errors."""
    lines = ["| what | where | rate | promised |", "|---|---|---|---|"]
    lines += [f"| {r.what} | {r.where} | {100 * r.rate:.2f} ± {100 * r.error:.2f}% | {r.bound or '-'} |" for r in rates]
    return "\n".join(lines)


def chart(path: Path, panels: Sequence[tuple[str, str, str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]]) -> None:
    """A panel for each (title, x, y, curves)."""
    figure = Figure(figsize=(5.0 * len(panels), 3.6), dpi=120, layout="constrained")
    for ax, (title, x, y, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (name, (xs, ys)), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
            ax.plot(xs, ys, marker=marker, markersize=4, color=colour, label=name)
        ax.set(title=title, xlabel=x, ylabel=y)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Software": None})


def bars(path: Path, rates: Sequence[Rate]) -> None:
    """False positive rates with two standard errors, and the 5% that they may reach."""
    figure = Figure(figsize=(9, 0.32 * len(rates) + 1.2), dpi=120, layout="constrained")
    ax = figure.subplots()
    places = range(len(rates))[::-1]
    for place, rate in zip(places, rates, strict=True):
        ax.errorbar(100 * rate.rate, place, xerr=200 * rate.error, fmt="o", markersize=4, color=COLOURS[0 if rate.bound else 1])
    ax.axvline(5, color="0.4", linestyle="--", linewidth=1)
    ax.set_yticks(list(places), [f"{rate.what} | {rate.where}" for rate in rates], fontsize=7)
    ax.set(xlabel="experiments with a false verdict, % (blue: promised at most 5)", xlim=(0, None))
    ax.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=__doc__)
    parser.add_argument("--experiments", type=int, default=20_000, help="of each kind")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/statistics"), help="folder of figures; OUTPUT.md gets the table"
    )
    given = parser.parse_args()
    generator, count = np.random.default_rng(2026), given.experiments
    given.output.mkdir(parents=True, exist_ok=True)
    aa, covered, beside = (work(generator, count) for work in (false_positives, coverage, significance))
    looked = [rate for spread in SPREADS for rate in looking(generator, count // 4, spread)]
    shifts = np.linspace(0, 4, 17)
    curves = power(generator, count // 4, shifts)
    grown = asked(generator, count // 10, np.array([0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5]), 5)
    bars(given.output / "false_positives.png", [*aa, *beside, *looked])
    truth, powers = "true difference / std of differences", {f"{n} seeds": (shifts, found) for n, found in curves.items()}
    numbers = {name: (grown["shift"], grown[name]) for name in ("median asked", "needed")}
    panels = (
        ("Called better", truth, "share", powers),
        ("What more_seeds asks for, after 5 seeds", truth, "seeds in all", numbers),
        ("Decided by the seeds asked for", truth, "share of those open at 5", {"decided": (grown["shift"], grown["decided"])}),
    )
    chart(given.output / "power.png", panels)
    rates = [*aa, *looked, *covered, *beside]
    content = {"rates": [asdict(rate) | {"error": rate.error} for rate in rates], "power": curves, "more_seeds": grown}
    content["shifts"] = shifts.tolist()
    (given.output / "selftest.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    page = given.output.with_suffix(".md")
    if page.exists():
        marked = re.compile(r"(<!-- rates -->\n).*?(<!-- end -->)", re.S)
        page.write_text(
            marked.sub(lambda m: f"{m[1]}{table(rates)}\n{m[2]}", page.read_text(encoding="utf-8")), encoding="utf-8"
        )
    print(table(rates))
    print(json.dumps({"power": curves, "more_seeds": grown}, indent=2))


if __name__ == "__main__":
    main()
