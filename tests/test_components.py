"""One contract for every row of ACTIVATIONS, NORMS, OPTIMIZERS and INITS, and for dropout and cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.architecture import Architecture, Placed, architecture, initial_state
from harness.components.activations import ACTIVATIONS, Activation
from harness.components.inits import INITS
from harness.components.layers import Dropout, Linear, cross_entropy, log_softmax
from harness.components.norms import NORMS
from harness.components.optimizers import OPTIMIZERS, Rows
from harness.config import RunConfig
from harness.network import Network, lane_buffer, padded
from harness.seeding import stream
from harness.training import exact_arithmetic

NORM_ROWS = [name for name, norm in NORMS.items() if norm is not None]
BATCH_NORMS = [name for name in NORM_ROWS if NORMS[name].needs_two_samples]
LAYER_NORMS = [name for name in NORM_ROWS if name.startswith("layernorm")]
# odd and even, below and above a vector, a last dimension of one, one sample
SHAPES = [(37, 50), (3, 7), (1, 33), (5, 1), (33, 31), (32, 128), (2, 1000)]


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with exact_arithmetic():
        yield


def single(layer: object, features: int, lanes: int = 1, dtype: torch.dtype = torch.float64) -> Network:
    """A network of this layer alone."""
    return Network.zeros(Architecture(features, features, (Placed("it", layer, features, 1),)), lanes, dtype=dtype)


def lanes_of(values: Tensor) -> Tensor:
    """The same values in a padded lane buffer."""
    buffer = lane_buffer(len(values), tuple(values.shape[1:]), values)
    return buffer.copy_(values)


def draw(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape) * scale).to(dtype)


# --- activations ---------------------------------------------------------------------------------------------------

Z = torch.cat([draw(400, scale=3), torch.tensor([-800.0, -100, -50, -1.0, -1e-8, 0.0, 1e-8, 1.0, 19.0, 50, 100, 800]).double()])


def through_autograd(module: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = z.clone().requires_grad_()
        value = module(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-6)])
def test_activation_and_its_slope_are_those_of_its_torch_module(name: str, dtype: torch.dtype, tolerance: float) -> None:
    z = Z.to(dtype).reshape(4, -1)
    value, slope = through_autograd(ACTIVATIONS[name].module(), z)
    network = single(ACTIVATIONS[name], z.shape[1], dtype=dtype)
    h = network.forward(z[None], training=True)[0].clone()
    torch.testing.assert_close(h, value, rtol=tolerance, atol=tolerance)
    dh = draw(*z.shape, seed=1, dtype=dtype)
    ((layer, at),) = network.sites(4)
    torch.testing.assert_close(layer.derivative(at)[0], slope, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(network.backward(dh[None])[0], dh * slope, rtol=tolerance, atol=tolerance * 4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_slope_is_the_limit_of_its_difference_quotient(name: str) -> None:
    z = draw(1, 3, 101, scale=2)
    z = z[..., (z.abs().amin(1)[0] > 1e-3) & ((z.abs() - 1).abs().amin(1)[0] > 1e-3)]  # away from the kinks
    network = single(ACTIVATIONS[name], z.shape[2])
    high, low = (network.forward(z + step, training=True).clone() for step in (1e-6, -1e-6))
    network.forward(z, training=True)
    ((layer, at),) = network.sites(3)
    torch.testing.assert_close(layer.derivative(at), (high - low) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_leaves_its_input_and_the_same_in_eval_mode(name: str) -> None:
    z = draw(1, 5, 9)
    network, before = single(ACTIVATIONS[name], 9), z.clone()
    trained = network.forward(z, training=True).clone()
    network.backward(torch.ones_like(trained))
    assert torch.equal(network.forward(z, training=False), trained)
    assert torch.equal(z, before)


@pytest.mark.parametrize("module", [nn.Mish, nn.Softsign, *dict.fromkeys(row.module for row in ACTIVATIONS.values())])
def test_activation_row_without_formulas_gives_the_same_through_autograd(module: Callable[[], nn.Module]) -> None:
    z, dh = Z.reshape(1, 4, -1), draw(1, 4, len(Z) // 4, seed=2)
    value, slope = through_autograd(module(), z)
    network = single(Activation(module), z.shape[2])
    torch.testing.assert_close(network.forward(z, training=True), value)
    ((layer, at),) = network.sites(4)
    torch.testing.assert_close(layer.derivative(at), slope)
    torch.testing.assert_close(network.backward(dh), dh * slope)


@pytest.mark.parametrize("lanes", [2, 3, 5])
@pytest.mark.parametrize("name", [*ACTIVATIONS, "mish"])
def test_activation_of_a_lane_has_the_bits_that_it_has_alone(name: str, lanes: int) -> None:
    row = ACTIVATIONS.get(name, Activation(nn.Mish))
    for batch, features in SHAPES:
        z = lanes_of(draw(lanes, batch, features, scale=3, dtype=torch.float32))
        dh = lanes_of(draw(lanes, batch, features, seed=1, dtype=torch.float32))
        stack = single(row, features, lanes, torch.float32)
        h = stack.forward(z, training=True)
        ((layer, at),) = stack.sites(batch)
        slope = layer.derivative(at).clone()
        dz = stack.backward(dh)
        for k in range(lanes):
            alone = single(row, features, 1, torch.float32)
            assert torch.equal(alone.forward(lanes_of(z[k : k + 1]), training=True)[0], h[k])
            ((_, site),) = alone.sites(batch)
            assert torch.equal(layer.derivative(site)[0], slope[k])
            assert torch.equal(alone.backward(lanes_of(dh[k : k + 1]))[0], dz[k])


# --- norms ---------------------------------------------------------------------------------------------------------


def normed(name: str, features: int, lanes: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Network, nn.Module]:
    """A network of one norm with drawn scale and shift, and torch's module with the same ones in lane 0."""
    norm = NORMS[name]
    network = single(norm, features, lanes, dtype)
    module = norm.module(features).to(dtype)
    for k in reversed(range(lanes)):
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(draw(features, seed=10 * k + i + 1, dtype=dtype) + 1)
        network.load(k, {f"it.{key}": value for key, value in module.state_dict().items()})
    return network, module


def check_against_autograd(network: Network, module: nn.Module, x: Tensor, training: bool) -> None:
    dy = draw(*x.shape, seed=7)
    module.train(training)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        dx, *parameters = torch.autograd.grad(y, [leaf, *module.parameters()], dy)
    torch.testing.assert_close(network.forward(x[None], training)[0], y.detach(), rtol=1e-10, atol=1e-10)
    ((layer, at),) = network.sites(len(x))
    torch.testing.assert_close(network.backward(dy[None])[0], dx, rtol=1e-8, atol=1e-9)
    for (key, _), gradient in zip(module.named_parameters(), parameters, strict=True):
        torch.testing.assert_close(getattr(at, f"d_{key}")[0, 0], gradient, rtol=1e-8, atol=1e-9)
    for key in layer.buffers(x.shape[1]):
        torch.testing.assert_close(getattr(at, key)[0, 0], dict(module.named_buffers())[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NORM_ROWS)
@pytest.mark.parametrize(("batch", "features"), [(6, 5), (2, 3), (37, 50), (17, 1)])
def test_norm_forward_backward_and_statistics_are_torchs(name: str, batch: int, features: int) -> None:
    network, module = normed(name, features)
    for step in range(4):  # running statistics move, and eval mode uses what they have become
        x = draw(batch, features, seed=step, scale=2) * torch.arange(1, features + 1) + step
        check_against_autograd(network, module, x, training=True)
        check_against_autograd(network, module, x + 0.5, training=False)


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_running_statistics_are_those_of_torch_batchnorm(name: str) -> None:
    reference, network = nn.BatchNorm1d(5).double(), normed(name, 5)[0]
    for step, batch in enumerate([8, 8, 3, 2, 8]):
        x = draw(batch, 5, seed=step, scale=3) - 1
        reference.train()(x)
        network.forward(x[None], training=True)
        state = network.state(0)
        torch.testing.assert_close(state["it.running_mean"], reference.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state["it.running_var"], reference.running_var, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_batchnorm_solved_by_hand(name: str) -> None:
    network = single(NORMS[name], 1)
    network.load(0, {f"it.{key}": torch.tensor([v]) for key, v in [("weight", 2.0), ("bias", 3.0)]} | start_statistics())
    x = torch.tensor([[[1.0], [3.0], [8.0]]]).double()  # mean 4, variance (9 + 1 + 16) / 3, unbiased 13
    y = network.forward(x, training=True)
    root = math.sqrt(26 / 3 + 1e-5)
    assert y.flatten().tolist() == pytest.approx([3 - 6 / root, 3 - 2 / root, 3 + 8 / root], rel=1e-12)
    assert network.state(0)["it.running_mean"].item() == pytest.approx(0.9 * 0 + 0.1 * 4, rel=1e-12)
    assert network.state(0)["it.running_var"].item() == pytest.approx(0.9 * 1 + 0.1 * 13, rel=1e-12)
    y = network.forward(torch.tensor([[[1.4]]], dtype=torch.float64), training=False)
    assert y.item() == pytest.approx(2 * (1.4 - 0.4) / math.sqrt(2.2 + 1e-5) + 3, rel=1e-12)


def start_statistics() -> dict[str, Tensor]:
    return {"it.running_mean": torch.zeros(1), "it.running_var": torch.ones(1)}


@pytest.mark.parametrize("name", [*LAYER_NORMS, "rmsnorm"])
def test_norms_over_features_solved_by_hand(name: str) -> None:
    network = single(NORMS[name], 3)
    state = {"it.weight": torch.tensor([1.0, 2.0, 3.0]), "it.bias": torch.tensor([0.5, 0.0, -1.0])}
    network.load(0, state)
    y = network.forward(torch.tensor([[[1.0, 3.0, 8.0]]]).double(), training=True).flatten().tolist()
    if name == "rmsnorm":  # mean square (1 + 9 + 64) / 3, and no shift
        root = math.sqrt(74 / 3 + 1e-5)
        assert y == pytest.approx([1 / root, 6 / root, 24 / root], rel=1e-12)
    else:  # mean 4, variance 26 / 3
        root = math.sqrt(26 / 3 + 1e-5)
        assert y == pytest.approx([0.5 - 3 / root, -2 / root, -1 + 12 / root], rel=1e-12)


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_batchnorm_does_not_see_a_features_shift_and_scale(name: str) -> None:
    network, _ = normed(name, 6)
    x, scale, shift = draw(1, 20, 6, scale=30), draw(6, seed=3).abs() + 1, draw(6, seed=4)
    before = network.forward(x, training=True).clone()
    torch.testing.assert_close(network.forward(x * scale + shift, training=True), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layernorm_does_not_see_a_samples_shift_and_scale(name: str) -> None:
    network, _ = normed(name, 40)
    x, scale, shift = draw(1, 6, 40, scale=30), draw(6, 1, seed=3).abs() + 1, draw(6, 1, seed=4)
    before = network.forward(x, training=True).clone()
    torch.testing.assert_close(network.forward(x * scale + shift, training=True), before, rtol=1e-5, atol=1e-6)


def test_rmsnorm_does_not_see_a_samples_scale_but_its_shift() -> None:
    network, _ = normed("rmsnorm", 40)
    x, scale = draw(1, 6, 40, scale=30), draw(6, 1, seed=3).abs() + 1
    before = network.forward(x, training=True).clone()
    torch.testing.assert_close(network.forward(x * scale, training=True), before, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(network.forward(x + 30, training=True), before, atol=0.1)


@pytest.mark.parametrize("name", NORM_ROWS)
def test_norm_of_a_sample_depends_on_other_samples_only_where_it_is_a_batchnorm(name: str) -> None:
    network, _ = normed(name, 8)
    x = draw(1, 6, 8)
    before = network.forward(x, training=True).clone()
    x[0, 0] += 5
    after = network.forward(x, training=True)
    assert torch.equal(after[0, 1:], before[0, 1:]) is (name not in BATCH_NORMS)


@pytest.mark.parametrize("name", NORM_ROWS)
def test_eval_mode_changes_no_weight_and_no_buffer(name: str) -> None:
    network, _ = normed(name, 6)
    network.forward(draw(1, 9, 6), training=True)
    before = network.state(0)
    network.forward(draw(1, 9, 6, seed=1, scale=9), training=False)
    network.backward(draw(1, 9, 6, seed=2))
    assert all(torch.equal(value, network.state(0)[key]) for key, value in before.items())


@pytest.mark.parametrize("name", [name for name in NORM_ROWS if name.endswith("_scratch")])
def test_scratch_norm_is_the_library_one_to_rounding(name: str) -> None:
    (scratch, _), (library, _) = (normed(row, 50, dtype=torch.float32) for row in (name, name.removesuffix("_scratch")))
    for step in range(3):
        x, dy = (draw(1, 37, 50, seed=seed, scale=2, dtype=torch.float32) for seed in (step, 9))
        for training in (True, False):
            outputs = [network.forward(x, training).clone() for network in (scratch, library)]
            torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(*(network.backward(dy) for network in (scratch, library)), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(scratch.gradients, library.gradients, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(scratch.buffers, library.buffers, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lanes", [2, 3, 5])
@pytest.mark.parametrize("name", NORM_ROWS)
def test_norm_of_a_lane_has_the_bits_that_it_has_alone(name: str, lanes: int) -> None:
    for batch, features in [shape for shape in SHAPES if shape[0] > 1]:
        x, dy = (lanes_of(draw(lanes, batch, features, seed=i, scale=3, dtype=torch.float32)) for i in (0, 1))
        stack, _ = normed(name, features, lanes, torch.float32)
        states = [stack.state(k) for k in range(lanes)]
        for training in (True, False):
            y = stack.forward(x, training)
            dx = stack.backward(dy)
            for k in range(lanes):
                alone = single(NORMS[name], features, 1, torch.float32)
                alone.load(0, states[k])
                assert torch.equal(alone.forward(lanes_of(x[k : k + 1]), training)[0], y[k])
                assert torch.equal(alone.backward(lanes_of(dy[k : k + 1]))[0], dx[k])
                assert torch.equal(alone.gradients[0], stack.gradients[k])
                assert torch.equal(alone.buffers[0], stack.buffers[k])
            states = [stack.state(k) for k in range(lanes)]


# --- optimizers ----------------------------------------------------------------------------------------------------

TORCH_OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


def rows_of(weights: Tensor, name: str, lr: float, weight_decay: float) -> Rows:
    """Weights (lanes, parameters) with what an optimizer needs beside them."""

    def zeros() -> list[Tensor]:
        return list(torch.zeros_like(weights))

    moments = tuple(zeros() for _ in OPTIMIZERS[name].moments)
    return Rows(list(weights), zeros(), moments, [torch.zeros(())] * len(weights), lr, weight_decay)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("lr", [0.01, 0.2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_is_torchs_over_twenty_steps(name: str, lr: float, weight_decay: float) -> None:
    weights = draw(103)
    leaf = nn.Parameter(weights.clone())
    make, options = TORCH_OPTIMIZERS[name]
    reference = make([leaf], lr=lr, weight_decay=weight_decay, **options)
    rows = rows_of(weights[None], name, lr, weight_decay)
    for step in range(20):
        leaf.grad = draw(103, seed=step + 1) * (0 if step == 7 else 1) + weights.sin()
        rows.gradients[0].copy_(leaf.grad)
        reference.step()
        rows.steps[0].add_(1)
        OPTIMIZERS[name].update(rows)()
        torch.testing.assert_close(rows.weights[0], leaf.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_leaves_the_padding_at_zero(name: str) -> None:
    rows = rows_of(torch.zeros(1, 64), name, 10.0, 0.1)
    for _ in range(3):
        rows.gradients[0][:50] = draw(50, dtype=torch.float32)
        rows.steps[0].add_(1)
        OPTIMIZERS[name].update(rows)()
        assert rows.weights[0][:50].all()
        assert not rows.weights[0][50:].any()


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_of_a_lane_has_the_bits_that_it_has_alone(name: str, weight_decay: float) -> None:
    for size in (37, 784 * 3 + 5, 4096):
        weights = torch.zeros(3, padded(size))
        weights[:, :size] = draw(3, size, dtype=torch.float32)
        stack = rows_of(weights.clone(), name, 0.1, weight_decay)
        alone = [rows_of(weights[k : k + 1].clone(), name, 0.1, weight_decay) for k in range(3)]
        for step in range(5):
            gradients = [draw(size, seed=10 * step + k, dtype=torch.float32) for k in range(3)]
            for rows, its in ((stack, gradients), *zip(alone, ([gradient] for gradient in gradients), strict=True)):
                rows.steps[0].fill_(step + 1)
                for row, gradient in zip(rows.gradients, its, strict=True):
                    row[:size] = gradient
                OPTIMIZERS[name].update(rows)()
        assert all(torch.equal(stack.weights[k], alone[k].weights[0]) for k in range(3))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_goes_down_a_bowl(name: str) -> None:
    rows = rows_of(torch.ones(1, 4).double(), name, 0.01, 0.0)
    for step in range(1, 400):
        rows.gradients[0].copy_(rows.weights[0])
        rows.steps[0].fill_(step)
        OPTIMIZERS[name].update(rows)()
    assert rows.weights[0].abs().max() < 0.1


# --- initializations -----------------------------------------------------------------------------------------------

FAN_IN, OUT = 784, 256
VARIANCE = {
    "normal": 1.0,
    "kaiming": 2 / FAN_IN,
    "xavier": 2 / (FAN_IN + OUT),
    "lecun": 1 / FAN_IN,
    "orthogonal": 1 / FAN_IN,  # each row is a random unit vector
    "torch": 1 / (3 * FAN_IN),  # U(-b, b) has b^2 / 3
}


def start(init: str, seed: int = 0, **values: object) -> dict[str, Tensor]:
    """The initial state of an MLP with 256 hidden units, batchnorm and dropout, unless said otherwise."""
    config = RunConfig(**{"init": init, "norm": "batchnorm", "hidden_dim": OUT, "seed": seed, **values})
    return initial_state(architecture(config), config.init, config.seed)


@pytest.mark.parametrize("name", INITS)
def test_same_stream_gives_same_weights_and_other_streams_others(name: str) -> None:
    weight = INITS[name].weight
    first, again, other = (weight(50, 37, stream(seed, "init", 1)) for seed in (3, 3, 4))
    assert first.shape == (50, 37)
    assert first.dtype == np.float32
    assert first.tobytes() == again.tobytes()
    assert (first != other).mean() > 0.99
    assert (first != weight(50, 37, stream(3, "init", 2))).mean() > 0.99


@pytest.mark.parametrize("name", INITS)
def test_weights_have_the_documented_mean_and_variance(name: str) -> None:
    weight = start(name)["linear1.weight"].double()
    assert weight.shape == (OUT, FAN_IN)
    deviation = math.sqrt(VARIANCE[name])
    assert abs(weight.mean()) < 5 * deviation / math.sqrt(weight.numel())
    assert weight.var() == pytest.approx(VARIANCE[name], rel=0.02)  # 200,704 draws: one sigma is 0.3 %
    assert weight.var(1).std() < 0.2 * VARIANCE[name]  # no row stands out


@pytest.mark.parametrize("name", [name for name in INITS if name not in ("torch", "orthogonal")])
def test_normal_weights_are_normal(name: str) -> None:
    z = start(name)["linear1.weight"].double().flatten() / math.sqrt(VARIANCE[name])
    for bound, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert (z.abs() < bound).double().mean() == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize(("out", "fan_in"), [(256, 784), (784, 256), (64, 64), (1, 30), (30, 1)])
def test_orthogonal_rows_or_columns_are_orthonormal(out: int, fan_in: int) -> None:
    w = torch.from_numpy(INITS["orthogonal"].weight(out, fan_in, stream(0, "init", 1))).double()
    gram = w @ w.T if out <= fan_in else w.T @ w
    torch.testing.assert_close(gram, torch.eye(min(out, fan_in)).double(), rtol=0, atol=1e-6)


def test_orthogonal_is_uniform_in_sign() -> None:
    signs = [INITS["orthogonal"].weight(2, 2, stream(seed, "init", 1)) > 0 for seed in range(400)]
    assert np.mean(signs, 0) == pytest.approx(np.full((2, 2), 0.5), abs=0.125)  # 5 sigma
    assert np.mean(
        [np.linalg.det(INITS["orthogonal"].weight(2, 2, stream(s, "init", 1))) > 0 for s in range(400)]
    ) == pytest.approx(0.5, abs=0.125)


def test_torch_init_fills_its_bounds_and_leaves_norms() -> None:
    state = start("torch", hidden_dim=1000)
    for layer, fan_in in (("linear1", 784), ("linear2", 1000)):
        bound = fan_in**-0.5
        for key in ("weight", "bias"):
            values = state[f"{layer}.{key}"]
            assert values.abs().max() <= bound * (1 + 1e-6)
        assert state[f"{layer}.weight"].min() < -0.99 * bound
        assert state[f"{layer}.weight"].max() > 0.99 * bound
    assert state["linear1.bias"].double().var() == pytest.approx(1 / (3 * 784), rel=0.15)
    assert state["norm1.weight"].eq(1).all()
    assert state["norm1.bias"].eq(0).all()


@pytest.mark.parametrize("norm", NORM_ROWS)
@pytest.mark.parametrize("name", INITS)
def test_biases_start_at_0_and_norms_at_1_and_0_unless_all_is_normal(name: str, norm: str) -> None:
    state = start(name, norm=norm, hidden_dim=2000)
    scale, shift = state["norm1.weight"], state.get("norm1.bias")
    if name == "normal":
        for values in (state["linear1.bias"], scale, shift):
            if values is not None:
                assert abs(values.mean()) < 0.12
                assert values.double().std() == pytest.approx(1, abs=0.08)
        assert len({state["linear1.bias"][0].item(), scale[0].item(), state["linear1.weight"][0, 0].item()}) == 3
    else:
        assert scale.eq(1).all()
        assert shift is None or shift.eq(0).all()
        assert state["linear1.bias"].eq(0).all() or name == "torch"
    if norm in BATCH_NORMS:  # statistics are not learned: no init draws them
        assert state["norm1.running_mean"].eq(0).all()
        assert state["norm1.running_var"].eq(1).all()


@pytest.mark.parametrize("name", INITS)
def test_norm_activation_and_dropout_do_not_move_the_linear_layers(name: str) -> None:
    base = start(name, norm="none", hidden_dim=33)
    changes = [{"norm": norm} for norm in NORM_ROWS] + [{"act": act} for act in ACTIVATIONS] + [{"dropout": 0.5}]
    changes += [{"lr": 1.0, "optimizer": "adam", "batch_size": 7, "weight_decay": 0.1}]
    for change in changes:
        state = start(name, **{"norm": "none", "hidden_dim": 33, **change})
        assert all(torch.equal(state[key], base[key]) for key in base), change


@pytest.mark.parametrize("name", INITS)
def test_layers_draw_different_weights(name: str) -> None:
    config = RunConfig(network='{"input_size": 20, "num_classes": 20, "layers": [{"type": "linear", "size": 20}]}')
    state = initial_state(architecture(config), name, 0)
    assert (state["linear1.weight"] != state["linear2.weight"]).double().mean() > 0.9


# --- dropout -------------------------------------------------------------------------------------------------------


def dropped(rate: float, seed: int = 0, lanes: int = 1, features: int = 500, batch: int = 400) -> tuple[Network, Tensor]:
    network = single(Dropout(rate), features, lanes, torch.float32)
    network.rngs["it"] = [stream(seed + k, "dropout", 1, 0) for k in range(lanes)]
    return network, network.forward(torch.ones(lanes, batch, features), training=True)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate: float) -> None:
    _, y = dropped(rate)
    sigma = math.sqrt(rate * (1 - rate) / y.numel())
    assert y.eq(0).double().mean() == pytest.approx(rate, abs=5 * sigma + 1e-12)
    assert y[y != 0].double().numpy() == pytest.approx(1 / (1 - rate), rel=1e-6)
    assert y.double().mean() == pytest.approx(1, abs=5 * sigma / (1 - rate) + 1e-6)
    for dim in (1, 2):  # no sample and no feature is favoured
        assert y.eq(0).double().mean(dim).sub(rate).abs().max() < 6 * math.sqrt(rate * (1 - rate) / 400) + 1e-12


def test_dropout_gradient_passes_where_the_value_passed() -> None:
    network, y = dropped(0.3)
    dy = draw(1, 400, 500, dtype=torch.float32)
    torch.testing.assert_close(network.backward(dy), dy * y)


def test_dropout_is_the_identity_in_eval_mode_and_draws_nothing() -> None:
    network, _ = dropped(0.5)
    before = network.rngs["it"][0].bit_generator.state
    x, dy = draw(1, 400, 500, dtype=torch.float32), draw(1, 400, 500, seed=1, dtype=torch.float32)
    assert torch.equal(network.forward(x, training=False), x)
    assert torch.equal(network.backward(dy), dy)
    assert network.rngs["it"][0].bit_generator.state == before


def test_dropout_mask_is_its_streams_and_new_for_each_batch() -> None:
    (network, first), (_, again), (_, other) = dropped(0.5), dropped(0.5), dropped(0.5, seed=1)
    first = first.clone()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    ones = torch.ones(1, 400, 500)
    second = network.forward(ones, training=True).clone()
    assert not torch.equal(first, second)
    assert not torch.equal(second, network.forward(ones, training=True))
    _, stack = dropped(0.5, lanes=2)
    assert torch.equal(stack[0], first[0])
    assert torch.equal(stack[1], other[0])


# --- linear and cross-entropy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
def test_linear_and_its_gradient_are_torchs(first: bool) -> None:
    network, module = single(Linear(4, first), 7), nn.Linear(7, 4).double()
    module.weight.copy_(draw(4, 7))
    module.bias.copy_(draw(4, seed=1))
    network.load(0, {f"it.{key}": value for key, value in module.state_dict().items()})
    x, dy = draw(9, 7, seed=2), draw(9, 4, seed=3)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        dx, dw, db = torch.autograd.grad(y, [leaf, module.weight, module.bias], dy)
    torch.testing.assert_close(network.forward(x[None], training=True)[0], y.detach())
    ((_, at),) = network.sites(9)
    found = network.backward(dy[None])
    assert first or torch.allclose(found[0], dx, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at.d_weight[0].T, dw)
    torch.testing.assert_close(at.d_bias[0, 0], db)


@pytest.mark.parametrize("scale", [1.0, 50.0, 1e4])
def test_cross_entropy_and_its_gradient_are_torchs(scale: float) -> None:
    logits, labels = draw(3, 17, 10, scale=scale), torch.arange(51).reshape(3, 17) % 10
    by_class = logits.mT.contiguous()
    gradient = lane_buffer(3, (10, 17), logits)
    losses = cross_entropy(by_class, labels, gradient)
    assert losses.shape == (3, 17)
    for k in range(3):
        with torch.enable_grad():
            leaf = logits[k].clone().requires_grad_()
            wanted = nn.functional.cross_entropy(leaf, labels[k], reduction="none")
            (wanted_gradient,) = torch.autograd.grad(wanted.mean(), leaf)
        torch.testing.assert_close(losses[k], wanted.detach())
        torch.testing.assert_close(gradient[k].T, wanted_gradient)
    assert torch.equal(cross_entropy(by_class, labels), losses)


def test_log_softmax_is_torchs_in_a_buffer_of_any_strides() -> None:
    logits = draw(3, 10, 17, scale=5).float()
    wanted = torch.log_softmax(logits, 1)
    for out in (torch.empty(3, 10, 17), lane_buffer(3, (10, 17), logits), torch.empty(3, 17, 10).mT):
        assert torch.equal(log_softmax(logits, out=out), wanted)
        assert torch.equal(out, wanted)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[[0.0, 1e30], [math.log(3.0), 0.0]]])  # a column for each sample
    gradient = torch.zeros(1, 2, 2)
    losses = cross_entropy(logits, torch.tensor([[0, 0]]), gradient)
    assert losses.tolist() == [pytest.approx([math.log(4), 0], abs=1e-6)]
    assert gradient[0, :, 0].tolist() == pytest.approx([(0.25 - 1) / 2, 0.75 / 2])
    assert gradient[0, :, 1].tolist() == [0, 0]


def test_nan_and_huge_logits_give_losses_that_say_so_and_no_neighbour_is_touched() -> None:
    logits = draw(4, 10, 5, dtype=torch.float32)
    labels, gradient = torch.zeros(4, 5, dtype=torch.long), torch.zeros(4, 10, 5)
    clean_gradient = torch.zeros(4, 10, 5)
    clean = cross_entropy(logits, labels, clean_gradient)
    logits[1, 3, 2], logits[2, 1] = math.nan, 3e38
    losses = cross_entropy(logits, labels, gradient)
    assert losses[1, 2].isnan()
    assert (losses[2] > 1e38).all()
    keep = torch.ones(4, 5, dtype=torch.bool)
    keep[1, 2], keep[2] = False, False
    assert torch.equal(losses[keep], clean[keep])
    assert torch.equal(gradient.mT[keep], clean_gradient.mT[keep])


@pytest.mark.parametrize("lanes", [2, 3, 5])
def test_cross_entropy_of_a_lane_has_the_bits_that_it_has_alone(lanes: int) -> None:
    for batch, classes in [(1, 10), (3, 10), (7, 10), (32, 10), (37, 10), (33, 7), (100, 3)]:
        logits = lanes_of(draw(lanes, classes, batch, scale=5, dtype=torch.float32))
        labels = torch.arange(lanes * batch).reshape(lanes, batch) % classes
        gradient = lane_buffer(lanes, (classes, batch), logits)
        losses = cross_entropy(logits, labels, gradient)
        for k in range(lanes):
            alone = lane_buffer(1, (classes, batch), logits)
            loss = cross_entropy(lanes_of(logits[k : k + 1]), labels[k : k + 1], alone)
            assert torch.equal(loss[0], losses[k])
            assert torch.equal(loss.sum(1)[0], losses.sum(1)[k])
            assert torch.equal(alone[0], gradient[k])
