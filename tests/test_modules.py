"""The hand-written layers for people are drop-in for torch.nn's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from harness.modules import BatchNorm1d, LayerNorm1d

PAIRS = [(BatchNorm1d, nn.BatchNorm1d), (LayerNorm1d, nn.LayerNorm)]
Make = Callable[..., nn.Module]
each_pair = pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["batchnorm", "layernorm"])


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with parameters other than the 1 and 0 that it starts from."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng))
    return module


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3 - 1


@each_pair
def test_state_has_torchs_keys_shapes_types_and_start(ours: Make, theirs: Make) -> None:
    mine, reference = ours(7).state_dict(), theirs(7).state_dict()
    assert list(mine) == list(reference)
    for key, value in reference.items():
        assert mine[key].shape == value.shape
        assert mine[key].dtype == value.dtype
        assert torch.equal(mine[key], value)
    assert [name for name, _ in ours(7).named_parameters()] == [name for name, _ in theirs(7).named_parameters()]


@each_pair
def test_weights_load_both_ways(ours: Make, theirs: Make) -> None:
    for source, target in ((ours, theirs), (theirs, ours)):
        trained = drawn(source(7)).train()
        trained(draw(9, 7))
        loaded = target(7)
        loaded.load_state_dict(trained.state_dict(), strict=True)
        for key, value in trained.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)
        torch.testing.assert_close(loaded.eval()(draw(4, 7, seed=1)), trained.eval()(draw(4, 7, seed=1)))


@each_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_statistics_and_gradients_are_torchs_over_several_batches(ours: Make, theirs: Make, dtype: torch.dtype) -> None:
    mine, reference = drawn(ours(7)).to(dtype), drawn(theirs(7)).to(dtype)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for step, batch in enumerate((9, 9, 2, 31)):
        x, dy = draw(batch, 7, seed=step).to(dtype), draw(batch, 7, seed=50 + step).to(dtype)
        for training in (True, False):
            leaves, outputs = [x.clone().requires_grad_() for _ in range(2)], []
            for module, leaf in zip((mine, reference), leaves, strict=True):
                module.train(training).zero_grad()
                outputs.append(module(leaf))
                outputs[-1].backward(dy)
            torch.testing.assert_close(*outputs, **tolerance)
            assert outputs[0].dtype == dtype
            torch.testing.assert_close(leaves[0].grad, leaves[1].grad, **tolerance)
            for a, b in zip(mine.parameters(), reference.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, **tolerance)
            for a, b in zip(mine.buffers(), reference.buffers(), strict=True):
                torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize(("eps", "momentum"), [(1e-5, 0.1), (0.1, 0.5), (1e-3, 1.0), (1e-3, 0.0)])
def test_eps_and_momentum_mean_what_torch_means(eps: float, momentum: float) -> None:
    mine, reference = BatchNorm1d(5, eps=eps, momentum=momentum), nn.BatchNorm1d(5, eps=eps, momentum=momentum)
    for step in range(3):
        torch.testing.assert_close(mine(draw(6, 5, seed=step)), reference(draw(6, 5, seed=step)))
    torch.testing.assert_close(mine.running_mean, reference.running_mean)
    torch.testing.assert_close(mine.running_var, reference.running_var)
    torch.testing.assert_close(LayerNorm1d(5, eps)(draw(6, 5) / 100), nn.LayerNorm(5, eps)(draw(6, 5) / 100))


def test_running_statistics_by_hand() -> None:
    layer = BatchNorm1d(1, momentum=0.25)
    layer(torch.tensor([[2.0], [6.0]]))  # mean 4, unbiased variance 8
    assert layer.running_mean.item() == pytest.approx(0.25 * 4)
    assert layer.running_var.item() == pytest.approx(0.75 * 1 + 0.25 * 8)
    assert layer.num_batches_tracked.item() == 1
    layer.eval()(torch.tensor([[100.0], [6.0]]))
    assert layer.running_mean.item() == pytest.approx(1)
    assert layer.num_batches_tracked.item() == 1


def raised(call: Callable[[], object]) -> type[BaseException] | None:
    try:
        call()
    except Exception as error:  # whatever torch raises is what is wanted
        return type(error)
    return None


@each_pair
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(7,), (5, 6), (1, 7), (5, 8), (6,), (5, 7), (2, 1), (1, 6), (0, 7)])
def test_inputs_that_torch_refuses_are_refused_with_the_same_type(
    ours: Make, theirs: Make, training: bool, shape: tuple[int, ...]
) -> None:
    wanted = raised(lambda: theirs(7).train(training)(draw(*shape)))
    assert raised(lambda: ours(7).train(training)(draw(*shape))) is wanted


@each_pair
@pytest.mark.parametrize("training", [True, False])
def test_inputs_of_another_type_are_refused_as_torch_does(ours: Make, theirs: Make, training: bool) -> None:
    wanted = raised(lambda: theirs(7).train(training)(draw(5, 7).double()))
    assert raised(lambda: ours(7).train(training)(draw(5, 7).double())) is wanted is RuntimeError


@each_pair
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_half_precision_goes_in_and_out_as_torch_has_it(ours: Make, theirs: Make, training: bool, dtype: torch.dtype) -> None:
    wanted = theirs(7).train(training)(draw(5, 7).to(dtype))
    found = ours(7).train(training)(draw(5, 7).to(dtype))
    assert found.dtype == wanted.dtype == dtype
    torch.testing.assert_close(found, wanted)


def test_an_empty_batch_is_counted_and_moves_no_statistics() -> None:
    ours, theirs = BatchNorm1d(7), nn.BatchNorm1d(7)
    assert ours(draw(0, 7)).shape == theirs(draw(0, 7)).shape
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4, 7)])
def test_batchnorm_says_which_dimensions_it_expects(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"got {len(shape)}D input"):
        BatchNorm1d(7)(draw(*shape))


def test_refused_batch_leaves_the_statistics_alone() -> None:
    layer = BatchNorm1d(7)
    before = copy.deepcopy(layer.state_dict())
    for shape in ((1, 7), (4, 6), (7,)):
        with pytest.raises((ValueError, RuntimeError)):
            layer(draw(*shape))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("make", [BatchNorm1d, LayerNorm1d])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_the_difference_quotient(make: Make, training: bool) -> None:
    layer = drawn(make(4)).double().train(training)
    inputs = draw(6, 4).double().requires_grad_()
    weight, bias = (p.detach().requires_grad_() for p in layer.parameters())

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        fresh = copy.deepcopy(layer)  # running statistics must not move between evaluations
        return torch.func.functional_call(fresh, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(forward, (inputs, weight, bias))


@each_pair
def test_repr_names_features_and_eps_as_torchs_does(ours: Make, theirs: Make) -> None:
    text = repr(ours(7, eps=1e-3))
    assert text.startswith(f"{ours.__name__}(7, eps=0.001")
    assert "eps=0.001" in repr(theirs(7, eps=1e-3))
    assert repr(nn.Sequential(ours(7)))  # the notebook's recursed for ever
    assert "momentum=0.3" in repr(BatchNorm1d(7, momentum=0.3))


@pytest.mark.parametrize("make", [BatchNorm1d, LayerNorm1d])
def test_the_global_generator_is_not_touched(make: Make) -> None:
    before = torch.random.get_rng_state()
    layer = make(7)
    layer(torch.ones(4, 7)).sum().backward()
    layer.eval()(torch.ones(4, 7))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batchnorm_learns_nothing_in_eval_mode_and_needs_no_second_sample() -> None:
    layer = BatchNorm1d(3)
    layer(draw(8, 3))
    layer.eval()
    torch.testing.assert_close(torch.cat([layer(row[None]) for row in draw(5, 3, seed=1)]), layer(draw(5, 3, seed=1)))


def test_running_statistics_carry_no_graph() -> None:
    layer = BatchNorm1d(3)
    for step in range(2):
        layer(draw(4, 3, seed=step).requires_grad_()).sum().backward()
    assert not layer.running_mean.requires_grad
    assert not layer.running_var.requires_grad
