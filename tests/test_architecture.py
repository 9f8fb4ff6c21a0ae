"""From a spec to named layers, their weights and a torch module."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.architecture import Architecture, architecture, as_module, build_network, count_parameters, initial_state
from harness.components.activations import ACTIVATIONS
from harness.components.layers import cross_entropy
from harness.components.norms import NORMS
from harness.config import RunConfig
from harness.errors import InputError
from harness.layerlist import TYPES, parse
from harness.network import Network
from harness.seeding import stream
from harness.training import exact_arithmetic

DEEP = {
    "input_size": 12,
    "num_classes": 4,
    "layers": [
        {"type": "linear", "size": 9},
        {"type": "batch_norm"},
        {"type": "gelu"},
        {"type": "dropout", "rate": 0},
        {"type": "linear", "size": 7},
        {"type": "layer_norm"},
        {"type": "silu"},
        {"type": "linear", "size": 5},
        {"type": "sigmoid"},
        {"type": "batch_norm"},
    ],
}


def names(spec: object) -> list[str]:
    return [placed.name for placed in architecture(spec).layers]


def test_mlp_is_linear_norm_activation_dropout_linear() -> None:
    assert names(RunConfig(norm="rmsnorm", dropout=0.2)) == ["linear1", "norm1", "act1", "dropout1", "linear2"]
    assert names(RunConfig(norm="rmsnorm")) == ["linear1", "norm1", "act1", "linear2"]
    assert names(RunConfig()) == ["linear1", "act1", "linear2"]


def test_mlp_is_made_of_the_rows_that_it_names() -> None:
    for norm in NORMS:
        for act in ACTIVATIONS:
            arch = architecture(RunConfig(norm=norm, act=act, hidden_dim=33, dropout=0.25))
            layers = {placed.name: placed.layer for placed in arch.layers}
            assert layers["act1"] is ACTIVATIONS[act]
            assert layers.get("norm1") is NORMS[norm]
            assert layers["dropout1"].rate == 0.25
            assert (layers["linear1"].size, layers["linear2"].size) == (33, 10)


def test_layers_of_a_list_keep_their_order_and_are_counted_by_kind() -> None:
    wanted = "linear1 norm1 act1 dropout1 linear2 norm2 act2 linear3 act3 norm3 linear4"
    assert " ".join(names(parse(DEEP))) == wanted
    assert [placed.features for placed in architecture(parse(DEEP)).layers] == [12, 9, 9, 9, 9, 7, 7, 7, 5, 5, 5]


def test_layer_list_written_like_the_mlp_is_the_mlp() -> None:
    types = [{"type": "linear", "size": 20}, {"type": "batch_norm"}, {"type": "tanh"}, {"type": "dropout", "rate": 0.3}]
    config = RunConfig(norm="batchnorm", act="tanh", dropout=0.3, hidden_dim=20)
    assert architecture(parse({"layers": types})) == architecture(config)


def test_every_layer_type_builds_and_runs() -> None:
    for kind in TYPES:
        entry = {"type": kind, **({"size": 6} if kind == "linear" else {})}
        module = build_network({"input_size": 5, "num_classes": 3, "layers": [entry]})
        assert module(torch.randn(4, 5, generator=torch.Generator().manual_seed(0))).shape == (4, 3)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (RunConfig(), 784 * 128 + 128 + 128 * 10 + 10),
        (RunConfig(norm="batchnorm", hidden_dim=50, dropout=0.5), 784 * 50 + 50 + 2 * 50 + 50 * 10 + 10),
        (RunConfig(norm="batchnorm_scratch", hidden_dim=50), 784 * 50 + 50 + 2 * 50 + 50 * 10 + 10),
        (RunConfig(norm="layernorm", hidden_dim=1), 784 + 1 + 2 + 10 + 10),
        (RunConfig(norm="layernorm_scratch", hidden_dim=2), 2 * 784 + 2 + 4 + 20 + 10),
        (RunConfig(norm="rmsnorm", hidden_dim=50), 784 * 50 + 50 + 50 + 50 * 10 + 10),
        (parse({"layers": []}), 784 * 10 + 10),
        (parse(DEEP), 12 * 9 + 9 + 18 + 9 * 7 + 7 + 14 + 7 * 5 + 5 + 10 + 5 * 4 + 4),
    ],
)
def test_parameters_are_counted_as_by_hand(spec: object, count: int) -> None:
    assert architecture(spec).parameters == count
    module = build_network(spec)
    assert count_parameters(module) == count
    first = next(module.parameters()).requires_grad_(False)
    assert count_parameters(module) == count - first.numel()


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_list_path_and_config_build_the_same_network(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text(json.dumps(DEEP), encoding="utf-8")
    wanted = build_network(DEEP)
    for spec in (
        path,
        str(path),
        parse(DEEP),
        RunConfig(network=str(path), init="torch"),
        RunConfig(network=json.dumps(DEEP), init="torch"),
    ):
        assert same(build_network(spec), wanted)
    assert not same(build_network(RunConfig(network=str(path), init="kaiming")), wanted)


def test_seed_of_a_built_network() -> None:
    assert same(build_network(DEEP), build_network(DEEP, seed=0))
    assert not same(build_network(DEEP), build_network(DEEP, seed=1))
    config = RunConfig(seed=3)
    assert same(build_network(config), build_network(config, seed=3))
    assert same(build_network(config, seed=0), build_network(RunConfig()))
    assert not same(build_network(config), build_network(RunConfig()))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("init", ["normal", "kaiming", "torch"])
def test_built_network_starts_from_the_weights_of_the_run(norm: str, init: str) -> None:
    config = RunConfig(norm=norm, init=init, seed=5, dropout=0.1)
    state, module = initial_state(architecture(config), init, 5), build_network(config).state_dict()
    assert set(state) == {name for name in module if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(value, module[name]) for name, value in state.items())


def test_building_touches_no_global_generator() -> None:
    before = torch.random.get_rng_state()
    build_network(RunConfig(norm="batchnorm", dropout=0.5))
    build_network(DEEP)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_built_network_is_in_train_mode_and_learns_by_torchs_means() -> None:
    module = build_network(
        {
            "input_size": 5,
            "num_classes": 2,
            "layers": [{"type": "linear", "size": 16}, {"type": "batch_norm"}, {"type": "relu"}],
        }
    )
    assert module.training
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0).long()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(module(x), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


def test_built_network_takes_images_and_rows() -> None:
    module = build_network(RunConfig(norm="batchnorm")).eval()
    images = torch.randn(6, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(images), module(images.reshape(6, 784)))


SPECS = [
    *(RunConfig(norm=norm, hidden_dim=17, init="torch") for norm in NORMS),
    *(RunConfig(act=act, hidden_dim=17, init="torch") for act in ACTIVATIONS),
    RunConfig(norm="batchnorm", dropout=0.5, hidden_dim=17),
    *(RunConfig(network=json.dumps(value), init="torch") for value in (DEEP, {"layers": []})),
    *(
        RunConfig(network=json.dumps({**DEEP, "layers": [first, *DEEP["layers"]]}), init="torch")
        for first in (
            {"type": "batch_norm"},
            {"type": "layer_norm"},
            {"type": "dropout", "rate": 0},
            {"type": "tanh"},
            {"type": "relu"},
        )
    ),
]


def drawn(arch: Architecture, seed: int = 0) -> dict[str, Tensor]:
    """Weights and statistics of which none is 0 or 1, in float64."""
    rng, state = torch.Generator().manual_seed(seed), initial_state(arch, "torch", seed)
    return {
        name: value.double() + 0.3 * torch.rand(value.shape, generator=rng, dtype=torch.float64)
        for name, value in state.items()
    }


@pytest.mark.parametrize("config", SPECS, ids=lambda config: config.condition)
@pytest.mark.parametrize("training", [True, False])
def test_logits_and_all_gradients_are_those_of_autograd(config: RunConfig, training: bool) -> None:
    arch = architecture(config)
    if training and config.dropout:
        config = config.replace(dropout=0.0)
        arch = architecture(config)
    state = drawn(arch)
    module = as_module(arch, {name: value.clone() for name, value in state.items()}).train(training)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(11, arch.input_size, generator=rng, dtype=torch.float64)
    labels = torch.randint(arch.num_classes, (11,), generator=rng)
    loss = nn.functional.cross_entropy(module(x), labels)
    wanted = dict(zip(dict(module.named_parameters()), torch.autograd.grad(loss, list(module.parameters())), strict=True))
    with exact_arithmetic():
        network = Network.zeros(arch, 1, dtype=torch.float64)
        network.load(0, state)
        for placed in arch.layers:
            if placed.name.startswith("dropout"):
                network.rngs[placed.name] = [stream(0, "dropout", 1, 0)]
        logits = network.forward(x[None], training)
        losses = cross_entropy(logits, labels[None], gradient := torch.zeros_like(logits))
        network.backward(gradient)
        found = Network(arch, network.gradients, network.gradients, network.buffers).state(0)
    torch.testing.assert_close(losses.mean(), loss.detach(), rtol=1e-10, atol=1e-10)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    for name, value in module.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(network.state(0)[name], value, rtol=1e-12, atol=1e-12)


DROPPING = RunConfig(network=json.dumps({**DEEP, "layers": [{"type": "dropout", "rate": 0.4}, *DEEP["layers"]]}))
ASKED = [  # inputs, dlogits, training: the same again, and each of them changed alone
    (0, 0, True), (0, 0, True), (0, 1, True), (1, 1, True), (1, 1, False), (1, 1, True), (2, 2, False), (0, 0, True),
]  # fmt: skip


@pytest.mark.parametrize("config", [*SPECS, DROPPING], ids=lambda config: config.condition)
def test_calls_follow_their_buffers_and_whatever_was_asked_of_the_network_before(config: RunConfig) -> None:
    arch, rng = architecture(config), torch.Generator().manual_seed(2)
    inputs = [torch.empty(1, n, arch.input_size) for n in (6, 6, 4)]
    gradients = [torch.empty(1, arch.num_classes, n) for n in (6, 6, 4)]
    dropouts = [placed.name for placed in arch.layers if placed.name.startswith("dropout")]
    with exact_arithmetic():
        network = Network.zeros(arch, 1)
        network.load(0, {name: value.float() for name, value in drawn(arch).items()})
        for i, (place, back, training) in enumerate(ASKED):
            if i % 3 == 0:
                for name in dropouts:
                    network.reseed(name, [stream(i, "dropout", 1, 0)])
            fresh, x, dlogits = Network.zeros(arch, 1), inputs[place], gradients[back]
            fresh.load(0, network.state(0))
            fresh.rngs.update(copy.deepcopy(network.rngs))
            for buffer in (x, dlogits):
                buffer.copy_(torch.randn(buffer.shape, generator=rng))
            assert torch.equal(network.forward(x, training), fresh.forward(x.clone(), training))
            network.backward(dlogits)
            fresh.backward(dlogits.clone())
            assert torch.equal(network.gradients, fresh.gradients)
            assert torch.equal(network.buffers, fresh.buffers)
            network.weights.add_(network.gradients, alpha=-0.1)


@pytest.mark.parametrize("config", SPECS, ids=lambda config: config.condition)
def test_state_goes_into_lanes_and_out_of_them_unchanged(config: RunConfig) -> None:
    arch = architecture(config)
    states = [{name: value.float() for name, value in drawn(arch, seed).items()} for seed in range(3)]
    network = Network.zeros(arch, 3)
    for k, state in enumerate(states):
        network.load(k, state)
    for k, state in enumerate(states):
        assert list(network.state(k)) != []
        assert set(network.state(k)) == set(state)
        assert all(torch.equal(value, state[name]) for name, value in network.state(k).items())


def test_a_states_copy_does_not_follow_the_lane() -> None:
    arch = architecture(RunConfig(hidden_dim=3, norm="batchnorm"))
    network = Network.zeros(arch, 1)
    network.load(0, initial_state(arch, "torch", 0))
    state = network.state(0)
    before = {name: value.clone() for name, value in state.items()}
    network.weights.fill_(7)
    network.buffers.fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_module_of_a_state_is_in_eval_mode_and_gives_the_lanes_logits() -> None:
    config = RunConfig(norm="batchnorm", dropout=0.5, act="gelu")
    arch = architecture(config)
    state = {name: value.float() for name, value in drawn(arch).items()}
    module = as_module(arch, state)
    assert not module.training
    x = torch.rand(9, 784, generator=torch.Generator().manual_seed(0))
    network = Network.zeros(arch, 1)
    network.load(0, state)
    with exact_arithmetic():
        torch.testing.assert_close(
            network.forward(x[None], training=False)[0].T, module(x.reshape(9, 28, 28)), rtol=1e-5, atol=1e-5
        )


def test_the_matrix_network_is_built_by_its_name_and_a_seed_is_checked() -> None:
    named, listed = build_network("mlp").state_dict(), build_network(RunConfig(init="torch")).state_dict()
    assert all(torch.equal(named[name], listed[name]) for name in listed)
    with pytest.raises(InputError, match="seed=-1 is not allowed"):
        build_network(RunConfig(), seed=-1)
