"""A lane of a stack has the bits of the run alone: in any stack, with or without probe, in any process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from harness import data
from harness.architecture import architecture
from harness.components.activations import ACTIVATIONS
from harness.components.inits import INITS
from harness.components.norms import NORMS
from harness.components.optimizers import OPTIMIZERS
from harness.config import RunConfig
from harness.results import EpochRecord, history_digest
from harness.training import Stack, exact_arithmetic, train

DEEP = json.dumps(
    {
        "layers": [
            {"type": "linear", "size": 50},
            {"type": "batch_norm"},
            {"type": "gelu"},
            {"type": "dropout", "rate": 0.3},
            {"type": "linear", "size": 37},
            {"type": "layer_norm"},
            {"type": "silu"},
            {"type": "dropout"},
            {"type": "linear", "size": 2},
            {"type": "leaky_relu"},
        ]
    }
)
FIRST_NOT_LINEAR = json.dumps({"layers": [{"type": "batch_norm"}, {"type": "sigmoid"}, {"type": "dropout", "rate": 0.2}]})
QUICK = {
    "dataset": "mnist_5k",
    "max_batches": 4,
    "epochs": 2,
    "lr": 0.01,
    "init": "kaiming",
    "hidden_dim": 33,
    "batch_size": 37,
}


def quick(**values: Any) -> RunConfig:
    return RunConfig(**{**QUICK, **values})


def digest(state: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + value.numpy().tobytes())
    return found.hexdigest()


Ended = tuple[str, str, int, bool]  # digests of the state and the history, last epoch, diverged


def results(configs: Sequence[RunConfig], probe: bool = False) -> list[Ended]:
    """How each lane of a stack ended."""
    with exact_arithmetic():
        stack = Stack.of(architecture(configs[0]), configs, data.load("mnist_5k", "unused"))
        records: list[list[EpochRecord]] = [[] for _ in configs]
        states = [""] * len(configs)
        for record in train(stack, probe):
            records[record.lane].append(record)
            states[record.lane] = digest(stack.network.state(record.lane))
    return [(state, history_digest(own), own[-1].epoch, own[-1].diverged) for state, own in zip(states, records, strict=True)]


@cache
def alone(config: RunConfig) -> Ended:
    return results([config])[0]


def family(config: RunConfig) -> list[RunConfig]:
    """Five lanes that differ in all that lanes may differ in."""
    own = [
        {},
        {"seed": 1, "weight_decay": 0.01},
        {"lr": config.lr * 0.3, "seed": 2},
        {"init": "orthogonal", "seed": 2**62},
        {"lr": config.lr * 2, "init": "normal", "weight_decay": 0.1},
    ]
    return [config.replace(**values) for values in own]


def check_lanes(config: RunConfig, sizes: Sequence[int] = (2, 3, 5)) -> None:
    """With the seeds of the family, of which the last lane has that of the first, and with one for all."""
    check_family(family(config), sizes)
    check_family([member.replace(seed=config.seed) for member in family(config)], sizes[-1:])


def check_family(configs: Sequence[RunConfig], sizes: Sequence[int]) -> None:
    config, wanted = configs[0], [alone(member) for member in configs]
    assert len({state for state, *_ in wanted}) == 5
    for lanes in sizes:
        assert results(configs[:lanes]) == wanted[:lanes], f"{lanes} lanes of {config.condition}"
    assert results(configs[::-1], probe=True) == wanted[::-1], f"reversed and probed, {config.condition}"


ROTATED = [
    {"norm": norm, "act": act, "optimizer": optimizer, "batch_size": batch, "hidden_dim": hidden, "dropout": dropout}
    for norm, act, optimizer, batch, hidden, dropout in zip(
        [*NORMS] * 3,
        ([*ACTIVATIONS] * 3)[: 3 * len(NORMS)],
        [name for shift in (0, 2, 3) for name in ([*OPTIMIZERS] * 2)[shift : shift + len(NORMS)]],
        [37, 3, 32, 128, 5, 33, 50, 7, 64, 31, 100, 2, 37, 32, 17, 65, 9, 32],
        [33, 50, 128, 7, 100, 31, 2, 65, 32, 3, 17, 127, 64, 10, 5, 200, 48, 96],
        [0, 0.5, 0.1] * 6,
        strict=True,
    )
]


@pytest.mark.parametrize("values", ROTATED, ids=lambda values: " ".join(str(value) for value in values.values()))
def test_lane_has_the_bits_of_the_run_alone(values: dict[str, Any]) -> None:
    check_lanes(quick(**values))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_lane_of_each_activation_has_the_bits_of_the_run_alone(act: str) -> None:
    check_lanes(quick(act=act, optimizer="adam", batch_size=19, hidden_dim=21, norm="layernorm"), [3])


@pytest.mark.parametrize("norm", [norm for norm, row in NORMS.items() if row is None or not row.needs_two_samples])
def test_lane_with_single_samples_has_the_bits_of_the_run_alone(norm: str) -> None:
    check_lanes(quick(norm=norm, batch_size=1, hidden_dim=33), [2])
    check_lanes(quick(norm=norm, batch_size=1, hidden_dim=32), [3])


@pytest.mark.parametrize("batch", [1, 7, 32, 64])
@pytest.mark.parametrize("hidden", [1, 2])
def test_lane_of_a_narrow_layer_has_the_bits_of_the_run_alone(hidden: int, batch: int) -> None:
    check_lanes(quick(hidden_dim=hidden, batch_size=batch, act="tanh"))


@pytest.mark.parametrize("network", [DEEP, FIRST_NOT_LINEAR, '{"layers": []}'], ids=["deep", "first not linear", "empty"])
@pytest.mark.parametrize("batch", [37, 32])
def test_lane_of_a_layer_list_has_the_bits_of_the_run_alone(network: str, batch: int) -> None:
    values = {name: value for name, value in QUICK.items() if name != "hidden_dim"}
    check_lanes(RunConfig(**{**values, "network": network, "optimizer": "adam", "lr": 1e-3, "batch_size": batch}))


def test_lane_with_a_shorter_last_batch_and_validation_has_the_bits_of_the_run_alone() -> None:
    config = quick(max_batches=0, batch_size=301, validation=0.1, norm="batchnorm", optimizer="momentum", dropout=0.2, epochs=1)
    check_lanes(config, [3])


def test_each_init_starts_a_lane_as_it_starts_a_run() -> None:
    configs = [quick(init=init, norm="batchnorm", act="relu") for init in INITS]
    assert results(configs) == [alone(config) for config in configs]


@pytest.mark.parametrize("norm", ["batchnorm", "none", "layernorm_scratch"])
def test_probe_moves_nothing(norm: str) -> None:
    config = quick(norm=norm, dropout=0.3, optimizer="adam", act="relu", batch_size=256, max_batches=2)
    assert results([config], probe=True) == [alone(config)]


@pytest.mark.parametrize(("act", "norm"), [("relu", "none"), ("tanh", "none"), ("relu", "batchnorm"), ("gelu", "layernorm")])
def test_diverging_lane_moves_no_other_and_ends_as_it_ends_alone(act: str, norm: str) -> None:
    calm = quick(act=act, norm=norm, epochs=4, lr=0.05)
    configs = [calm, calm.replace(lr=1e6, seed=1), calm.replace(seed=2), calm.replace(lr=1e30), calm.replace(lr=1e12, seed=3)]
    wanted = [alone(config) for config in configs]
    assert [diverged for *_, diverged in wanted] == [False, True, False, True, True]
    assert wanted[0][2] == 4
    assert wanted[3][2] < 4
    assert results(configs) == wanted
    assert results(configs[3:] + configs[:2], probe=True) == wanted[3:] + wanted[:2]


def test_equal_lanes_are_equal_and_other_seeds_are_not() -> None:
    config = quick(dropout=0.5, norm="batchnorm")
    first, second, other = results([config, config, config.replace(seed=9)])
    assert first == second
    assert other[0] != first[0]
    assert other[1] != first[1]


FRESH = [
    quick(norm="batchnorm", act="gelu", optimizer="adam", dropout=0.3, batch_size=64, hidden_dim=128),
    quick(norm="layernorm", act="silu", optimizer="rmsprop", init="orthogonal", validation=0.2),
    RunConfig(dataset="mnist_5k", max_batches=4, epochs=2, network=DEEP, optimizer="adamw", weight_decay=0.01, lr=0.001),
]


def fresh_results() -> list[Ended]:
    return [ended for config in FRESH for ended in results(family(config)[:3])]


@pytest.mark.parametrize(
    ("hash_seed", "threads"),
    [("1", "2"), *(pytest.param(*other, marks=pytest.mark.slow) for other in (("0", "1"), ("4242", "4")))],
)
def test_lanes_have_the_same_bits_in_a_fresh_process(hash_seed: str, threads: str) -> None:
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parents[1]), str(here.parent)])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONHASHSEED": hash_seed,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    code = "import json, test_lanes; print(json.dumps(test_lanes.fresh_results()))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    found = [tuple(ended) for ended in json.loads(done.stdout)]
    assert found == [alone(member) for config in FRESH for member in family(config)[:3]]


PAIRS = [  # of every norm with every activation; turning, the optimizer meets each of both too
    (norm, act, list(OPTIMIZERS)[(i + k) % len(OPTIMIZERS)])
    for i, norm in enumerate(NORMS)
    for k, act in enumerate(ACTIVATIONS)
]


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "act", "optimizer"), PAIRS)
def test_lane_of_every_pair_of_levels_has_the_bits_of_the_run_alone(norm: str, act: str, optimizer: str) -> None:
    for batch, hidden, dropout in ((37, 50, 0.0), (32, 128, 0.2)):
        check_lanes(quick(norm=norm, act=act, optimizer=optimizer, batch_size=batch, hidden_dim=hidden, dropout=dropout), [3])


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 3, 8, 16, 31, 32, 33, 63, 64, 100, 128, 250])
def test_lane_of_every_width_has_the_bits_of_the_run_alone(batch: int) -> None:
    for hidden, norm in product(
        (1, 2, 3, 8, 15, 16, 17, 32, 64, 100, 127, 128, 129, 256, 300), ("none", "batchnorm", "rmsnorm")
    ):
        check_lanes(quick(hidden_dim=hidden, norm=norm, batch_size=batch, epochs=1, max_batches=2), [2, 3])


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_lane_that_overflows_leaves_its_neighbours_alone(optimizer: str) -> None:
    config = quick(optimizer=optimizer, act="identity")
    wild = config.replace(lr=1e30)
    (wanted,) = results([config])
    assert results([wild, config])[1] == wanted
    assert results([config, wild])[0] == wanted
