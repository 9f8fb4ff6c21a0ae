"""Which runs train together: equal shapes share a stack, equal seeds where they can, cut so that no worker idles long."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from harness.components.optimizers import OPTIMIZERS
from harness.config import FIELDS
from harness.plan import Plan
from harness.training import MAY_DIFFER, sample_counts

MOST_LANES = 16  # wider stacks of the smallest networks are slower on AMD's EPYC, if faster on Intel's Xeon
LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")  # "32768K", on Linux
MOST_ROOM = 16 * 2**20  # bytes: one core has no more of a cache that a hundred share
# Seconds on one core of an AMD EPYC (AVX2), from the parts of a training step; only their ratios matter for cutting.
PRODUCTS = 5.6e-11  # a parameter and sample, forward and backward
GATHER = 1.2e-9  # a pixel of a sample, once for a stack of one seed
UPDATE = 2.0e-10  # a parameter, and as much for each moment of the optimizer
LAYER = 2.5e-5  # a layer and step
STEP = 1.0e-4  # a step, however many lanes share it
EPOCH = 0.02  # an epoch of a run: probe, metrics, checkpoints
RUN = 0.75  # a run: its figures, its beginning and end in the store


def seconds(stack: Sequence[Plan]) -> float:
    """About how long a stack takes on one core."""
    plan, lanes, one_seed = stack[0], len(stack), len({plan.config.seed for plan in stack}) == 1
    config, arch, counts = plan.config, plan.arch, sample_counts(plan.config, plan.data)
    steps, moments = math.ceil(counts["train"] / config.batch_size), len(OPTIMIZERS[config.optimizer].moments)
    step = arch.parameters * (PRODUCTS * config.batch_size + UPDATE * (1 + moments)) + LAYER * len(arch.layers)
    gathered = counts["train"] * arch.input_size * GATHER * (1 if one_seed else lanes)
    tested = arch.parameters * PRODUCTS / 2 * (counts["test"] + counts["val"])
    return config.epochs * (steps * (lanes * step + STEP) + gathered + lanes * (tested + EPOCH)) + lanes * RUN


@cache
def room() -> int:
    """Bytes that a stack may work on: a sixth of the last-level cache, which workers, and other guests of a machine, share.

    A Xeon may say 480 MiB, for all cores of its socket; a sixth of that would cost wide networks two fifths of their speed.
    """
    try:
        return min(int(LAST_CACHE.read_text().rstrip("K\n")) * 1024 // 6, MOST_ROOM)
    except (OSError, ValueError):
        return 5 * 2**20


def widest(plan: Plan) -> int:
    """How many lanes of such runs train fastest: as many as have their weights, gradients and batches in the cache.

    Moments do not count: an update passes over them once. A GPU has room for more than it may take.
    """
    if plan.config.device != "cpu":
        return MOST_LANES
    flowing = plan.config.batch_size * sum(placed.features for placed in plan.arch.layers)
    return max(1, min(MOST_LANES, room() // (4 * (2 * plan.arch.parameters + flowing))))


def pack(plans: Iterable[Plan], workers: int) -> list[list[Plan]]:
    """Stacks of runs of equal shape, the longest first, as wide as pays: of all widths the one that ends first."""
    shapes: dict[tuple[object, ...], list[Plan]] = {}
    for plan in plans:
        shape = tuple(getattr(plan.config, name) for name in FIELDS if name not in MAY_DIFFER)
        shapes.setdefault(shape, []).append(plan)
    cuts = [
        [part for group in shapes.values() for part in _cut(group, min(width, widest(group[0])))]
        for width in range(max((widest(group[0]) for group in shapes.values()), default=1), 0, -1)
    ]
    best = min(cuts, key=lambda cut: makespan(cut, workers))
    return sorted(best, key=seconds, reverse=True)


def makespan(stacks: Sequence[Sequence[Plan]], workers: int) -> float:
    """About how long until the last of the stacks ends, when each worker takes the longest that is left."""
    busy = [0.0] * max(min(workers, len(stacks)), 1)
    for took in sorted(map(seconds, stacks), reverse=True):
        heapq.heappush(busy, heapq.heappop(busy) + took)
    return max(busy)


def _cut(group: Sequence[Plan], width: int) -> list[list[Plan]]:
    """A group in as few parts of at most `width` as there can be, of sizes that differ by one at most, seed after seed."""
    parts, by_seed = math.ceil(len(group) / width), sorted(group, key=lambda plan: plan.config.seed)
    ends = [len(group) * part // parts for part in range(parts + 1)]
    return [by_seed[start:end] for start, end in pairwise(ends)]
