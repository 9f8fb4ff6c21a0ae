"""The health of hidden layers, by hand, against autograd, and without a trace in the network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness import data, health
from harness.architecture import Architecture, architecture, as_module, initial_state
from harness.components.activations import ACTIVATIONS
from harness.components.norms import NORMS
from harness.config import RunConfig
from harness.network import Network
from harness.training import Stack, exact_arithmetic, train

MEASURES = ("mean", "std", "saturated", "dead", "grad_norm")


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with exact_arithmetic():
        yield


def network_of(arch: Architecture, state: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> Network:
    network = Network.zeros(arch, 1, dtype=dtype)
    network.load(0, state)
    return network


def listed(*layers: Any, inputs: int = 2, classes: int = 2) -> Architecture:
    entries = [{"type": "linear", "size": layer} if isinstance(layer, int) else {"type": layer} for layer in layers]
    return architecture(RunConfig(network=json.dumps({"input_size": inputs, "num_classes": classes, "layers": entries})))


def one_hidden(act: str, weight: list[list[float]], bias: list[float]) -> Network:
    """Two inputs, some hidden units, two classes whose weights are 1 and -1 everywhere."""
    units = len(weight)
    return network_of(
        listed(units, act),
        {
            "linear1.weight": torch.tensor(weight),
            "linear1.bias": torch.tensor(bias),
            "linear2.weight": torch.tensor([[1.0] * units, [-1.0] * units]),
            "linear2.bias": torch.zeros(2),
        },
    )


def samples(*rows: list[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor([rows], dtype=torch.float64), torch.zeros(1, len(rows), dtype=torch.long)


def test_relu_by_hand() -> None:
    network = one_hidden("relu", [[1.0, 0.0], [0.0, 1.0]], [0.0, -10.0])
    found = health.measure(network, *samples([1.0, 5.0], [-3.0, 2.0], [2.0, 0.0]))
    # z = (1, -5), (-3, -8), (2, -10): h = (1, 0), (0, 0), (2, 0)
    assert found["hidden1/mean"] == pytest.approx(3 / 6)
    assert found["hidden1/std"] == pytest.approx(math.sqrt(5 / 6 - 0.25))
    assert found["hidden1/saturated"] == pytest.approx(4 / 6)
    assert found["hidden1/dead"] == pytest.approx(1 / 2)
    # logits (h, -h): dL/dh = -2 (1 - p) = -2 / (1 + exp(2 h)) / 3 for the first unit, in samples 1 and 3
    first, third = (-2 / (1 + math.exp(2 * h)) / 3 for h in (1, 2))
    gradient = np.array([first * 1 + third * 2, first * 5 + third * 0])
    assert found["hidden1/grad_norm"] == pytest.approx(np.linalg.norm(gradient))


def test_names_are_those_of_the_hidden_layers_in_order() -> None:
    for arch, layers in ((listed(3, "tanh", 4, "relu", "batch_norm", 5), 3), (listed(), 0), (listed("tanh", "batch_norm"), 0)):
        network = network_of(arch, initial_state(arch, "torch", 0))
        found = health.measure(network, *samples([1.0, 2.0], [3.0, -1.0]))
        assert list(found) == [f"hidden{i}/{name}" for i in range(1, layers + 1) for name in MEASURES]
        assert all(type(value) is float for value in found.values())


def test_relu_with_far_negative_biases_is_dead_and_passes_no_gradient() -> None:
    found = health.measure(one_hidden("relu", [[1.0, 2.0]] * 3, [-1e6] * 3), *samples([1.0, 2.0], [3.0, 4.0]))
    assert [found[f"hidden1/{name}"] for name in MEASURES] == [0, 0, 1, 1, 0]


def test_tanh_with_huge_weights_is_saturated_at_both_ends() -> None:
    found = health.measure(one_hidden("tanh", [[1e4, 0.0], [0.0, 1e4]], [0.0, 0.0]), *samples([1.0, -2.0], [-3.0, 4.0]))
    assert found == {
        "hidden1/mean": 0,
        "hidden1/std": 1,
        "hidden1/saturated": 1,
        "hidden1/dead": 1,
        "hidden1/grad_norm": pytest.approx(0, abs=1e-6),
    }


def test_unit_that_lives_for_one_sample_is_not_dead() -> None:
    found = health.measure(one_hidden("tanh", [[1.0, 0.0]], [0.0]), *samples([100.0, 0.0], [0.1, 0.0], [-50.0, 0.0]))
    assert found["hidden1/saturated"] == pytest.approx(2 / 3)
    assert found["hidden1/dead"] == 0


def test_linear_layers_without_activation_neither_saturate_nor_die() -> None:
    for arch in (listed(3), listed(3, "batch_norm"), listed(3, "dropout")):
        network = network_of(arch, initial_state(arch, "torch", 0))
        found = health.measure(network, *samples([1e6, 2.0], [3.0, -1e6]))
        assert (found["hidden1/saturated"], found["hidden1/dead"]) == (0, 0)


def test_output_of_a_layer_without_activation_is_what_reaches_the_next_linear() -> None:
    arch = listed(3, "layer_norm", "dropout")
    state = initial_state(arch, "torch", 0)
    module = as_module(arch, {name: value.double() for name, value in state.items()})
    x, labels = samples([1.0, 2.0], [3.0, -1.0], [0.5, 0.0])
    output = nn.Sequential(*list(module)[:-1])(x[0])
    found = health.measure(network_of(arch, state), x, labels)
    assert found["hidden1/mean"] == pytest.approx(output.mean().item(), abs=1e-12)
    assert found["hidden1/std"] == pytest.approx(output.std(correction=0).item())


def probe_batch(count: int) -> tuple[Tensor, Tensor]:
    digits = data.load("mnist_5k", "unused").train
    return digits.images[:count][None].double(), digits.labels[:count][None]


@pytest.mark.parametrize(("norm", "act"), [*((norm, "tanh") for norm in NORMS), *(("none", act) for act in ACTIVATIONS)])
def test_measures_are_those_of_autograd_through_the_module(norm: str, act: str) -> None:
    config = RunConfig(norm=norm, act=act, hidden_dim=30, init="normal", dropout=0.5)
    arch, (x, labels) = architecture(config), probe_batch(40)
    state = {name: value.double() for name, value in initial_state(arch, "normal", 0).items()}
    module = as_module(arch, {name: value.clone() for name, value in state.items()})
    layers = dict(module.named_children())
    with torch.enable_grad():
        z = x[0]
        for name, layer in layers.items():
            if name == "act1":
                before = z.detach().requires_grad_()
                (slope,) = torch.autograd.grad(layer(before).sum(), before)
                output = layer(z)
            z = layer(z)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(z, labels[0]), layers["linear1"].weight)
    found = health.measure(network_of(arch, state), x, labels)
    assert found["hidden1/mean"] == pytest.approx(output.mean().item(), abs=1e-10)
    assert found["hidden1/std"] == pytest.approx(output.std(correction=0).item())
    assert found["hidden1/saturated"] == pytest.approx((slope.abs() < health.FLAT).double().mean().item())
    assert found["hidden1/dead"] == pytest.approx((slope.abs() < health.FLAT).all(0).double().mean().item())
    assert found["hidden1/grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-7)


def test_gradient_norms_of_a_deep_network_are_autograds() -> None:
    arch, (x, labels) = (
        listed(20, "batch_norm", "gelu", 15, "tanh", "layer_norm", "dropout", 9, "silu", inputs=784, classes=10),
        probe_batch(33),
    )
    state = {name: value.double() for name, value in initial_state(arch, "kaiming", 0).items()}
    module = as_module(arch, {name: value.clone() for name, value in state.items()})
    found = health.measure(network_of(arch, state), x, labels)
    with torch.enable_grad():
        nn.functional.cross_entropy(module(x[0]), labels[0]).backward()
    for number in (1, 2, 3):
        wanted = module.get_parameter(f"linear{number}.weight").grad.norm().item()
        assert found[f"hidden{number}/grad_norm"] == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_probing_changes_no_weight_and_no_running_statistic(norm: str) -> None:
    arch = architecture(RunConfig(norm=norm, dropout=0.5))
    network = network_of(arch, initial_state(arch, "normal", 0), torch.float32)
    before = network.state(0)
    x, labels = probe_batch(40)
    first = health.measure(network, x.float() * 7, labels)
    outputs = health.outputs(network, x.float())
    assert all(torch.equal(value, before[name]) for name, value in network.state(0).items())
    assert health.measure(network, x.float() * 7, labels) == first
    assert [values.shape for values in outputs.values()] == [(40, 128)]


def test_outputs_are_those_of_the_activation() -> None:
    network = one_hidden("relu", [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    inputs = samples([1.0, 5.0], [-3.0, 2.0])[0]
    assert health.outputs(network, inputs)["hidden1"].tolist() == [[1, 5], [0, 2]]


def test_health_of_a_lane_is_that_of_the_run_alone() -> None:
    digits = data.load("mnist_5k", "unused")
    configs = [RunConfig(dataset="mnist_5k", max_batches=2, epochs=2, seed=seed) for seed in (0, 1, 2)]
    together = list(train(Stack.of(architecture(configs[0]), configs, digits)))
    for lane, config in enumerate(configs):
        alone = train(Stack.of(architecture(config), [config], digits))
        assert [done.health for done in alone] == [done.health for done in together if done.lane == lane]


def test_records_carry_the_health_of_a_fixed_batch_that_is_the_seeds() -> None:
    digits = data.load("mnist_5k", "unused")
    config = RunConfig(dataset="mnist_5k", max_batches=2, epochs=2, validation=0.9)
    stacks = [Stack.of(architecture(config), [config.replace(seed=seed)], digits) for seed in (0, 0, 1)]
    batches = [stack.probe(0)[0] for stack in stacks]
    assert batches[0].shape == (1, health.PROBE_SAMPLES, 784)
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
    learned = {row.numpy().tobytes() for row in digits.train.images[stacks[0].train[0]]}
    assert all(row.numpy().tobytes() in learned for row in batches[0][0])
    records = list(train(stacks[0], probe=True))
    assert torch.equal(stacks[0].probe(0)[0], batches[1])
    assert all(set(record.health) == {f"hidden1/{name}" for name in MEASURES} for record in records)
    assert all(not record.health for record in train(stacks[1], probe=False))
    assert records[-1].health == health.measure(stacks[0].lanes[0], *stacks[0].probe(0))
