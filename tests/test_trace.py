"""The trace: each of a run's first things moves with what it is of, and with nothing that comes later."""

from __future__ import annotations

from typing import Any

import pytest

from harness.architecture import architecture
from harness.config import RunConfig
from harness.data import load
from harness.trace import BEGINNINGS, beginnings
from harness.training import exact_arithmetic

# what is changed, and the first thing that must differ for it
CHANGES: dict[str, dict[str, Any]] = {
    "split": {"validation": 0.2},
    "initial_weights": {"init": "kaiming"},
    "first_permutation": {"batch_size": 31},
    "first_batch": {"normalize": "standard"},
    "first_gradients": {"act": "relu"},
    "first_losses": {"lr": 0.02},
}


def traced(**changed: Any) -> dict[str, Any]:
    config = RunConfig(**{"dataset": "mnist_5k", "hidden_dim": 8, "max_batches": 5, **changed})
    with exact_arithmetic():
        return beginnings(architecture(config), config, load(config.dataset, "unused", config.normalize))


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return traced()


def test_each_beginning_has_a_change_of_its_own() -> None:
    assert tuple(CHANGES) == BEGINNINGS


@pytest.mark.parametrize("name", CHANGES)
def test_beginning_is_the_first_to_differ_for_what_it_is_of(name: str, base: dict[str, Any]) -> None:
    changed = traced(**CHANGES[name])
    assert next(part for part in BEGINNINGS if changed[part] != base[part]) == name


def test_another_seed_moves_weights_and_order(base: dict[str, Any]) -> None:
    changed = traced(seed=1)
    assert changed["split"] == base["split"]
    assert not [part for part in BEGINNINGS[1:] if changed[part] == base[part]]
