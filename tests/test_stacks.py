"""Which runs train together: every plan once, equal shapes only, and never later than by stacks of one width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import FIELDS
from harness.plan import Plan, prepare_all
from harness.stacks import MOST_LANES, makespan, pack, room, seconds, widest
from harness.study import Study
from harness.training import MAY_DIFFER, Stack

WORKERS = st.integers(1, 9)
BASE = {"dataset": "mnist_5k", "epochs": 2}
NETWORK = {"layers": [{"type": "linear", "size": 16}, {"type": "relu"}]}


def planned(**values: Any) -> list[Plan]:
    base = {**BASE, **values.pop("base", {})}
    return prepare_all(Study(**{"name": "x", "question": "q", "seeds": "0..2", **values, "base": base}).cells)


@cache
def matrix() -> list[Plan]:
    return prepare_all(Study.read("matrix").override(dataset="mnist_5k", epochs=2).cells)


@cache
def mixed() -> list[Plan]:
    """Runs of many shapes, of which some could train together."""
    return [
        *matrix(),
        *planned(design="factorial", seeds="0..7", factors={"lr": [0.1, 1]}),
        *planned(design="factorial", factors={"hidden_dim": [8, 64], "optimizer": ["adamw", "momentum"]}),
        *planned(design="one_factor_at_a_time", factors={"validation": [0, 0.1], "max_batches": [3], "batch_size": [16]}),
        *planned(design="factorial", base={"network": NETWORK}, factors={"weight_decay": [0, 0.1], "epochs": [1, 9]}),
    ]


SOME = st.deferred(lambda: st.lists(st.sampled_from(mixed()), unique_by=id, max_size=40))


def shape(plan: Plan) -> tuple[object, ...]:
    """All that lanes of one stack must share, from the config's own text."""
    return tuple(text for name, text in plan.config.text().items() if name not in ("init", "seed", "lr", "weight_decay"))


def ids(stacks: Sequence[Sequence[Plan]]) -> list[int]:
    return sorted(id(plan) for stack in stacks for plan in stack)


def grouped(plans: Sequence[Plan]) -> list[list[Plan]]:
    groups: dict[object, list[Plan]] = {}
    for plan in plans:
        groups.setdefault(shape(plan), []).append(plan)
    return list(groups.values())


def greedy(stacks: Sequence[Sequence[Plan]], workers: int) -> float:
    """When the last stack ends if each free worker takes the longest that is left."""
    ends = [0.0] * workers
    for took in sorted((seconds(stack) for stack in stacks), reverse=True):
        ends[ends.index(min(ends))] += took
    return max(ends)


@given(SOME, WORKERS)
def test_every_plan_is_in_one_stack_of_its_own_shape(plans: list[Plan], workers: int) -> None:
    stacks = pack(plans, workers)
    assert ids(stacks) == sorted(map(id, plans))
    for stack in stacks:
        assert 1 <= len(stack) <= widest(stack[0])
        assert len({shape(plan) for plan in stack}) == 1
        assert len({plan.data.digest for plan in stack}) == 1


@given(SOME, WORKERS)
def test_lanes_of_one_seed_share_a_stack_wherever_the_cut_lets_them(plans: list[Plan], workers: int) -> None:
    """A cut divides one seed at most."""
    stacks: dict[object, list[list[Plan]]] = {}
    for stack in pack(plans, workers):
        stacks.setdefault((shape(stack[0]), stack[0].data.digest), []).append(stack)
    for own in stacks.values():
        seeds = [{plan.config.seed for plan in stack} for stack in own]
        assert sum(map(len, seeds)) < len(own) + len(set[int]().union(*seeds))


def test_lanes_of_a_stack_may_differ_in_what_training_lets_them() -> None:
    assert set(MAY_DIFFER) == {"init", "seed", "lr", "weight_decay"}
    factors = {"init": ["normal", "kaiming"], "lr": [0.1, 1], "weight_decay": [0, 0.1]}
    plans = planned(design="factorial", base={"hidden_dim": 16}, seeds=[0], factors=factors)
    (stack,) = pack(plans, 1)
    assert {plan.cell.name for plan in stack} == {plan.cell.name for plan in plans}


@pytest.mark.parametrize("field", sorted(set(FIELDS) - set(MAY_DIFFER) - {"dataset", "device", "network", "data_dir"}))
def test_lanes_of_a_stack_share(field: str) -> None:
    other = {"act": "relu", "norm": "layernorm", "optimizer": "adam", "normalize": "standard"}
    numbers = {"dropout": 0.1, "epochs": 3, "batch_size": 33, "hidden_dim": 127, "max_batches": 5, "validation": 0.1}
    values = {**other, **numbers}
    plans = planned(design="list", seeds=[0], variants=[{"name": "a"}, {"name": "b", field: values[field]}])
    assert [len(stack) for stack in pack(plans, 1)] == [1, 1]


def test_networks_that_differ_share_no_stack() -> None:
    wider = {"layers": [{"type": "linear", "size": 17}, {"type": "relu"}]}
    rows = [{"name": "a", "network": NETWORK}, {"name": "b", "network": wider}, {"name": "c", "network": NETWORK}]
    plans = planned(design="list", seeds=[0], variants=rows)
    assert sorted(sorted(plan.cell.variant.name for plan in stack) for stack in pack(plans, 1)) == [["a", "c"], ["b"]]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_stack_is_wider_than_the_cache_takes(workers: int) -> None:
    plans = planned(design="factorial", seeds="0..30", factors={"hidden_dim": [8, 128, 512]})
    for stack in pack(plans, workers):
        weights_and_gradients = 2 * 4 * stack[0].arch.parameters
        assert len(stack) == 1 or len(stack) * weights_and_gradients < room()


@pytest.mark.parametrize("cache", ["16384K", "32768K", "491520K"])
def test_small_networks_have_more_lanes_than_wide_ones(cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (size := tmp_path / "size").write_text(f"{cache}\n")
    monkeypatch.setattr("harness.stacks.LAST_CACHE", size)
    monkeypatch.setattr("harness.stacks.room", room.__wrapped__)
    widths = planned(design="factorial", seeds=[0], factors={"hidden_dim": [8, 32, 128, 512, 2048]})
    lanes = [widest(plan) for plan in widths]
    assert lanes == sorted(lanes, reverse=True)
    assert lanes[0] == MOST_LANES
    assert lanes[-1] == 1


def test_cache_is_read_from_the_machine_or_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = tmp_path / "size"
    monkeypatch.setattr("harness.stacks.LAST_CACHE", size)
    assert room.__wrapped__() == 5 * 2**20
    size.write_text("12288K\n")
    assert room.__wrapped__() == 2 * 2**20
    size.write_text("491520K\n")  # of a whole socket
    assert room.__wrapped__() == 16 * 2**20


def test_every_stack_can_train() -> None:
    for stack in pack(mixed(), 2):
        built = Stack.of(stack[0].arch, [plan.config for plan in stack], stack[0].data)
        assert len(built.lanes) == len(stack)


def test_stack_of_one_seed_is_expected_to_end_a_little_before_one_of_more() -> None:
    plans = planned(design="factorial", base={"epochs": 100}, factors={"init": ["normal", "xavier", "kaiming"]})
    by_seed = [[plan for plan in plans if plan.config.seed == seed] for seed in (0, 1, 2)]
    three_seeds = [own[0] for own in by_seed]
    one, two, three = map(seconds, (by_seed[1], [*by_seed[0][:2], by_seed[1][0]], three_seeds))
    assert 0.9 * three < one < 0.99 * three  # of a step of three lanes 31 of 358 µs a lane gather (docs/performance.md)
    assert two == three


@given(SOME, WORKERS)
def test_longest_stack_comes_first(plans: list[Plan], workers: int) -> None:
    took = [seconds(stack) for stack in pack(plans, workers)]
    assert took == sorted(took, reverse=True)
    assert all(0 < part < math.inf for part in took)


@given(SOME, WORKERS)
def test_makespan_is_that_of_workers_who_take_the_longest_that_is_left(plans: list[Plan], workers: int) -> None:
    stacks = pack(plans, workers)
    assert makespan(stacks, workers) == pytest.approx(greedy(stacks, workers))
    assert makespan(stacks[::-1], workers) == makespan(stacks, workers)
    assert makespan(stacks, 10**30) == greedy(stacks, max(len(stacks), 1))
    assert makespan(stacks, 1) == pytest.approx(sum(seconds(stack) for stack in stacks))


@given(SOME, WORKERS)
def test_stacks_end_no_later_than_single_runs_or_the_widest_stacks(plans: list[Plan], workers: int) -> None:
    best = greedy(pack(plans, workers), workers) * (1 - 1e-9)
    assert best <= greedy([[plan] for plan in plans], workers)
    for width in range(2, MOST_LANES + 1):
        cut = [
            by_seed[len(group) * k // parts : len(group) * (k + 1) // parts]
            for group in grouped(plans)
            for by_seed in (sorted(group, key=lambda plan: plan.config.seed),)
            for parts in (math.ceil(len(group) / min(width, widest(group[0]))),)
            for k in range(parts)
        ]
        assert best <= greedy(cut, workers)


@given(SOME, WORKERS)
def test_more_workers_are_never_later(plans: list[Plan], workers: int) -> None:
    fewer, more = greedy(pack(plans, workers), workers), greedy(pack(plans, workers + 1), workers + 1)
    assert more <= fewer * (1 + 1e-9)


@given(SOME, WORKERS, st.randoms(use_true_random=False))
def test_order_of_the_cells_is_nothing_to_the_end(plans: list[Plan], workers: int, rng: Any) -> None:
    mixed = rng.sample(plans, len(plans))
    assert greedy(pack(mixed, workers), workers) == pytest.approx(greedy(pack(plans, workers), workers))


@pytest.mark.parametrize("workers", [2, 3])
def test_seeds_of_one_variant_use_every_worker(workers: int) -> None:
    stacks = pack(planned(design="list", base={"epochs": 10}, variants=[{"name": "a"}]), workers)
    assert len(stacks) == workers
    assert sorted(len(stack) for stack in stacks) == {2: [1, 2], 3: [1, 1, 1]}[workers]


def test_stacks_of_one_shape_are_even() -> None:
    stacks = pack(planned(design="list", base={"epochs": 10}, seeds="0..6", variants=[{"name": "a"}]), 3)
    assert sorted(map(len, stacks)) == [2, 2, 3]


def test_seeds_of_one_variant_train_as_one_stack_on_one_worker() -> None:
    (stack,) = pack(planned(design="list", variants=[{"name": "a"}]), 1)
    assert sorted(plan.cell.seed for plan in stack) == [0, 1, 2]


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_no_worker_idles_long_at_the_end_of_the_matrix(workers: int) -> None:
    """The last to end is within a fifth of an even share of the work."""
    stacks = pack(matrix(), workers)
    even = sum(seconds(stack) for stack in stacks) / workers
    assert greedy(stacks, workers) < 1.2 * even


def test_nothing_to_train_is_no_stack() -> None:
    assert pack([], 2) == []
    assert makespan([], 2) == 0


def test_a_launch_without_worker_processes_packs_as_for_one() -> None:
    assert [[id(plan) for plan in stack] for stack in pack(mixed(), 0)] == [
        [id(plan) for plan in stack] for stack in pack(mixed(), 1)
    ]


def test_a_run_that_does_more_takes_longer() -> None:
    rows = [
        {"name": "a"},
        {"name": "wide", "hidden_dim": 512},
        {"name": "long", "epochs": 20},
        {"name": "adam", "optimizer": "adam"},
    ]
    rows += [{"name": "small batches", "batch_size": 8}, {"name": "short", "max_batches": 5}]
    plain, *others, short = (seconds([plan]) for plan in planned(design="list", seeds=[0], variants=rows))
    assert all(other > plain for other in others)
    assert short < plain


@given(st.deferred(lambda: st.sampled_from(mixed())), st.integers(1, MOST_LANES - 1))
def test_a_lane_more_costs_less_than_a_run_of_its_own(plan: Plan, lanes: int) -> None:
    fewer, more = [plan] * lanes, [plan] * (lanes + 1)
    assert seconds(fewer) < seconds(more) < seconds(fewer) + seconds([plan])
