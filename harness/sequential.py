"""A study that grows by seeds: how many seeds each look at it has."""

from __future__ import annotations

from harness.errors import InputError, refusal
from harness.limits import MOST_CELLS
from harness.study import Study

MOST_SEEDS = 30


def looks(study: Study, most: int) -> list[int]:
    """How many seeds each look has: as many as the study, then twice as many, and so on, at last `most`.

    Raises InputError where there is nothing to compare, `most` allows no second look, or there are no such seeds.
    """
    first = len(study.seeds)
    if len({row.config.digest for row in study.rows}) < 2:
        raise InputError(f"study {study.name} has one variant, so no contrast to decide; allowed: two or more")
    if not first < most or most * len(study.rows) > MOST_CELLS:
        allowed = f"a whole number above {first}, which are the study's own seeds, and at most {MOST_CELLS} cells in all"
        raise InputError(refusal("max_seeds", most, allowed))
    grown(study, most)
    counts = [first]
    while counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    return counts


def grown(study: Study, count: int) -> Study:
    """The study with `count` seeds: its own, then the whole numbers after the highest of them."""
    after = max(study.seeds) + 1
    return study.override(seeds=[*study.seeds, *range(after, after + count - len(study.seeds))])
