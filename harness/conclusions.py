"""Conclusions in words: what the verdicts say, and what these data cannot say. No sentence has another source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from harness.blocks import Blocks
from harness.contrasts import FEWEST_FLIPS, MOST_SEEDS, VERDICTS
from harness.intervals import CONFIDENCE
from harness.study import Study

ALPHA = 0.05


def sentences(blocks: Blocks, contrasts: pd.DataFrame) -> tuple[str, ...]:
    """A sentence that counts the verdicts, then one for each contrast."""
    if contrasts.empty:
        return (f"There is nothing to compare {blocks.reference} with.",)
    counts = contrasts.verdict.value_counts()
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)
    head = f"Of {plural(len(contrasts), 'variant')} beside {blocks.reference}: {said}, by {spoken(blocks.study)}."
    return (f"{head} {trust(contrasts)}.", *(_sentence(blocks, row) for _, row in contrasts.iterrows()))


def trust(contrasts: pd.DataFrame) -> str:
    """How far intervals of contrasts go, one by one and all of them."""
    level = float(contrasts.level.iloc[0])
    together = f", and hold together with {100 * CONFIDENCE:g}%" if level > CONFIDENCE else ""
    return f"Intervals are of {100 * level:.4g}%{together}"


def basis(contrasts: pd.DataFrame) -> str:
    """What the rows of a table of contrasts are, in a line."""
    metric, reference = contrasts[["metric", "reference"]].iloc[0]
    return f"Differences of {metric}{', in nats,' * metric.endswith('_loss')} to {reference}. {trust(contrasts)}."


def _sentence(blocks: Blocks, row: pd.Series) -> str:
    metric, unit = spoken(blocks.study), blocks.unit
    found = f"{row.low:.3g} to {row.high:.3g}{unit}, {plural(row.n, 'seed')}"
    if row.verdict in ("better", "worse"):
        way = "lower" if row.difference < 0 else "higher"
        by = f"{metric} is {way} by {abs(row.difference):.3g}{unit}"
        return f"{row.variant} is {row.verdict} than {row.reference}: {by} (difference {found})."
    if row.verdict == "equivalent":
        within = f"the difference in {metric} is smaller than {blocks.study.matters:g}{unit} either way"
        return f"{row.variant} is equivalent to {row.reference}: {within} ({found})."
    return f"{row.variant} is undecided against {row.reference}: {row.reason}{_more(row.more_seeds)}."


def _more(seeds: float) -> str:
    if math.isnan(seeds):
        return ""
    count = f"more than {MOST_SEEDS}" if seeds >= MOST_SEEDS else f"about {seeds:.0f}"
    return f"; {count} more seed{'s' * (seeds != 1)} would decide it if mean and spread stayed as they are"


def limits(
    blocks: Blocks, contrasts: pd.DataFrame, anova: pd.DataFrame | None, looks: int, seen: Sequence[int] = ()
) -> tuple[str, ...]:
    """What these data cannot say, the gravest first. `seen`: with how many seeds the study was launched before, unplanned."""
    return (
        *_few_seeds(blocks, contrasts),
        *_without_numbers(blocks),
        *_copies(blocks),
        *_of_design(blocks, anova),
        *_of_family(blocks, contrasts, looks, seen),
        *_always(blocks),
    )


def _few_seeds(blocks: Blocks, contrasts: pd.DataFrame) -> Iterator[str]:
    n, k = int(contrasts.n.max()) if len(contrasts) else int(blocks.values.notna().sum().max()), max(len(contrasts), 1)
    if n < 2:
        having = f"With {plural(n, 'seed')}" if n else "Without runs to compare"
        yield f"{having} there is no spread between seeds to judge a difference by: nothing is decided."
        return
    smallest = 2 / 2**n
    if n < FEWEST_FLIPS:
        yield f"With {n} seeds no exact paired test can reach {ALPHA:g}: the smallest possible p is {smallest:.3g}."
    elif smallest * k > ALPHA:
        yield (
            f"With {n} seeds and {k} contrasts no exact paired test can reach {ALPHA:g} once corrected for the family: the "
            f"smallest possible p is {min(1, smallest * k):.3g}."
        )
    doubt = f", which {n} seeds can neither show nor refute" if n < FEWEST_FLIPS else ""
    yield f"Intervals and verdicts suppose that differences between seeds are about normal{doubt}."


def _without_numbers(blocks: Blocks) -> Iterator[str]:
    for name, counts in blocks.counts.items():
        n = len(blocks.study.seeds)
        for outcome in ("diverged", "failed"):
            if counts[outcome]:
                rest = "its mean is over the rest, so it gets no" if counts["finished"] else "it has no mean and no"
                yield f"{counts[outcome]} of {n} runs of {name} {outcome}: {rest} verdict."
        if counts["missing"]:
            yield f"{counts['missing']} of {n} runs of {name} are missing: what is said of it rests on the others."
    if out := [name for name in blocks.names if name not in blocks.whole]:
        yield f"Not in the blocked model and the omnibus test, for want of whole numbers: {', '.join(out)}."


def _copies(blocks: Blocks) -> Iterator[str]:
    """Runs of one config and seed are one computation: where two differ, the harness has failed at its own promise."""
    for name, seed in blocks.disagreements:
        yield (
            f"Runs of {name} with seed {seed} have one config under several names and do not agree bit for bit: nothing here "
            "is to be trusted before that is understood."
        )


def _of_design(blocks: Blocks, anova: pd.DataFrame | None) -> Iterator[str]:
    study = blocks.study
    if study.design == "one_factor_at_a_time":
        if len(study.factors) > 1 and all(row.config != study.at_base for row in study.rows):
            yield (
                f"No variant is the base itself, and {blocks.reference} stands for it: variants of another factor differ from "
                "it in two things. A level that is the base's would mend that."
            )
        yield "Each factor was varied at the base's setting of the others: whether effects add up cannot be seen."
    elif study.design == "factorial" and anova is None:
        yield "No analysis of variance: it needs a number for every combination, no run that diverged or failed, and two seeds."
    elif study.design == "factorial":
        yield "The analysis of variance supposes one spread for all combinations and normal residuals."


def _of_family(blocks: Blocks, contrasts: pd.DataFrame, looks: int, seen: Sequence[int]) -> Iterator[str]:
    if blocks.study.matters is None:
        yield "No smallest difference that matters was declared, so nothing can be called equivalent."
    if len(contrasts) > 1:
        yield f"Contrasts are with {blocks.reference} only: they do not rank the other variants among each other."
    if looks > 1:
        yield f"Intervals are as wide as {looks} looks at growing data need."
    elif seen:
        counts = ", ".join([*map(str, seen[:-1]), plural(seen[-1], "seed")])
        yield (
            f"It was launched before with {counts}, and these intervals count one look: where "
            "seeds were added for what was seen then, verdicts are wrong more often than that. --until-decided plans its looks."
        )


def _always(blocks: Blocks) -> Iterator[str]:
    yield "All seeds share one training set and one test set: intervals are about other seeds, not about other data."
    if blocks.study.metric.startswith("final/test"):
        yield "The metric is of test data: a variant chosen by it will do a little worse on data without part in the choice."


def spoken(study: Study) -> str:
    """The metric in words, `final test loss`."""
    return study.metric.replace("/", " ").replace("_", " ")


def part_name(part: str) -> str:
    """A part of the data as people say it."""
    return "validation" if part == "val" else part


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
