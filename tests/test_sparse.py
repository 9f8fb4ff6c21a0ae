"""Sparse inputs: the products are those of all pixels, a lane's bits are its own, and only what is dark enough is sparse."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness import data, minibatches, sparse, training
from harness.architecture import architecture
from harness.config import RunConfig
from harness.data import Data, Scale, Split
from harness.minibatches import Minibatches
from harness.numerics import CAPS
from harness.plan import prepare
from harness.sparse import LEAST_BATCH, LEAST_WIDTH, LitPixels, Sparse, pays
from harness.training import Stack, evaluate, exact_arithmetic, train


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with exact_arithmetic():
        yield


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is true where lit pixels pay holds on all processors."""
    monkeypatch.setattr(sparse, "processor", lambda line: {"vendor_id": "AuthenticAMD"}[line])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@pytest.fixture(scope="module")
def digits() -> Data:
    return data.load("mnist_5k", "unused")


def images(samples: int, features: int, lit: float, seed: int) -> Tensor:
    """Pixels of which a share is lit; the first sample and the last pixel are dark."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 256, (samples, features), dtype=np.uint8) * (rng.random((samples, features)) < lit)
    pixels[0], pixels[:, -1] = 0, 0
    return torch.from_numpy(pixels.astype(np.uint8))


def unit(pixels: Tensor, into: Tensor) -> Tensor:
    return Scale().write(pixels, into)


def a_config(**values: object) -> RunConfig:
    return RunConfig(**{"dataset": "mnist_5k", "hidden_dim": 64, "max_batches": 20, "init": "kaiming", **values})


def stack_of(some: Data, *configs: RunConfig) -> Stack:
    return Stack.of(architecture(configs[0]), configs, some)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 3),
    lanes=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    batch=st.integers(1, 40),
    features=st.integers(2, 90),
    width=st.integers(1, 70),
    lit=st.sampled_from([0.0, 0.02, 0.2, 0.7, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_all_pixels(
    steps: int, lanes: list[int], batch: int, features: int, width: int, lit: float, seed: int
) -> None:
    pixels, rng, count = images(50, features, lit, seed), np.random.default_rng(seed), len(lanes)
    rows = torch.from_numpy(rng.integers(50, size=(steps, max(lanes) + 1, batch)))
    weight, bias, dy = (
        torch.from_numpy(rng.standard_normal((count, n, width), dtype=np.float32)) for n in (features, 1, batch)
    )
    wanted = pixels[rows[:, lanes]].float() / 255
    place = Sparse.empty(count, batch, features)
    turned = place.mT
    for inputs, x in zip(LitPixels.of(pixels).steps(rows, lanes, unit, place), wanted, strict=True):
        assert inputs is place
        assert inputs.shape == x.shape
        assert torch.equal(inputs.to_dense(), x)
        assert torch.equal(turned.to_dense(), x.mT)
        assert torch.equal(turned.mT.to_dense(), x)
        y, d_weight = torch.full_like(dy, torch.nan), torch.full_like(weight, torch.nan)
        inputs.product(weight, y, bias)()
        inputs.mT.product(dy, d_weight)()
        for got, exact in ((y, x.double() @ weight.double() + bias), (d_weight, x.double().mT @ dy.double())):
            assert torch.allclose(got.double(), exact, rtol=1e-5, atol=2e-5)
        assert not d_weight[:, -1].any()  # of a pixel that nothing lights


@given(start=st.integers(0, 40), count=st.integers(1, 30), seed=st.integers(0, 99))
def test_samples_to_be_evaluated_are_the_ones_asked_for(start: int, count: int, seed: int) -> None:
    pixels = images(50, 30, 0.2, seed)
    lit, some = LitPixels.of(pixels), slice(start, start + count)
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(50)[:count])
    for asked in (some, rows):
        inputs = lit.inputs(asked, unit)
        assert torch.equal(inputs.to_dense()[0], pixels[asked].float() / 255)
        assert inputs.shape == (1, len(pixels[asked]), 30)
    assert lit.matrix.data.dtype == np.uint8, "a quarter of the memory of inputs"


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_any_row_of_a_large_split_is_found_and_no_other_is(dtype: type) -> None:
    pixels = images(70_000, 3, 0.3, 2)
    matrix = LitPixels.of(pixels).matrix
    matrix.indices, matrix.indptr = matrix.indices.astype(dtype), matrix.indptr.astype(dtype)
    rows = torch.tensor([[[69_999, 0, 32_768, 65_536, 40_000]]])
    (inputs,) = LitPixels(matrix).steps(rows, [0], unit, Sparse.empty(1, 5, 3))
    assert torch.equal(inputs.to_dense(), pixels[rows[0]].float() / 255)
    for row in (-1, -30, 70_000, 2**32):
        with pytest.raises(IndexError, match=str(row)):
            list(LitPixels(matrix).steps(torch.tensor([[[5, row]]]), [0], unit, Sparse.empty(1, 2, 3)))


def test_product_of_a_lane_has_the_same_bits_beside_any_others() -> None:
    pixels, rng = images(200, 784, 0.2, 5), np.random.default_rng(5)
    rows = torch.from_numpy(rng.integers(200, size=(3, 5, 32)))
    weight, dy = (torch.from_numpy(rng.standard_normal((5, n, 100), dtype=np.float32)) for n in (784, 32))
    lit = LitPixels.of(pixels)

    def products(inputs: Sparse, lanes: slice) -> list[Tensor]:
        y, d_weight = torch.empty_like(dy[lanes]), torch.empty_like(weight[lanes])
        inputs.product(weight[lanes], y)()
        inputs.mT.product(dy[lanes], d_weight)()
        return [y, d_weight]

    def steps(lanes: slice) -> list[list[Tensor]]:
        some = rows[:, lanes]
        place = Sparse.empty(some.shape[1], 32, 784)
        return [products(inputs, lanes) for inputs in lit.steps(some, range(some.shape[1]), unit, place)]

    together = steps(slice(0, 5))
    for lane in range(5):
        alone = steps(slice(lane, lane + 1))
        for some, own in zip(together, alone, strict=True):
            assert all(torch.equal(a[lane], b[0]) for a, b in zip(some, own, strict=True))


def test_a_run_learns_what_it_learns_from_all_pixels(digits: Data) -> None:
    config = a_config(optimizer="sgd", lr=0.05, batch_size=48, validation=0.1)
    lit, every = stack_of(digits, config), stack_of(replace(digits, train=bright(digits.train)), config)
    inputs = [next(iter(stack.batches())).inputs for stack in (lit, every)]
    assert [type(some) for some in inputs] == [Sparse, Tensor]
    assert torch.equal(inputs[0].to_dense(), inputs[1])
    mine, others = (list(train(stack)) for stack in (lit, every))
    for a, b in zip(mine, others, strict=True):
        assert a.curves == pytest.approx(b.curves, rel=1e-4)
        assert a.health == pytest.approx(b.health, rel=1e-3, abs=1e-5)
    for name, weights in lit.network.state(0).items():
        assert torch.allclose(weights, every.network.state(0)[name], atol=1e-5), name
    assert evaluate(lit, 0, "test") == pytest.approx(evaluate(every, 0, "test"), rel=1e-4)


@pytest.mark.parametrize("seeds", [range(7), [5] * 7, [0, 1, 1, 0, 2, 1, 0]], ids=["seven seeds", "one seed", "three seeds"])
@pytest.mark.parametrize(
    "changed",
    [{"validation": 0.1, "batch_size": 48}, {"batch_size": 17, "dropout": 0.3}, {"batch_size": 1333, "max_batches": 0}],
    ids=["validation", "dropout", "last batch of one"],
)
def test_a_lane_of_many_has_the_weights_and_curves_of_the_run_alone(
    digits: Data, changed: dict[str, float], seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minibatches, "LIT_AHEAD", 300)  # so that a run alone, too, is made ready in parts
    configs = [a_config(seed=seed, lr=0.01 * (lane + 1), epochs=2, **changed) for lane, seed in enumerate(seeds)]
    together = stack_of(digits, *configs)
    assert isinstance(next(iter(together.batches())).inputs, Sparse)
    epochs = list(train(together))
    for lane, config in enumerate(configs):
        alone = stack_of(digits, config)
        assert [done.curves for done in train(alone)] == [done.curves for done in epochs if done.lane == lane]
        assert torch.equal(alone.network.weights[0], together.network.weights[lane])


def test_evaluation_multiplies_lit_pixels_alone(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, asked = stack_of(digits, a_config(validation=0.1)), list[int]()
    inputs = LitPixels.inputs
    monkeypatch.setattr(LitPixels, "inputs", lambda *given: asked.append(1) or inputs(*given))
    for part in ("train", "val", "test"):
        asked.clear()
        evaluate(stack, 0, part)
        assert asked, part


@pytest.mark.parametrize("lit", [True, False], ids=["lit pixels", "all pixels"])
@pytest.mark.parametrize(("seeds", "batch"), [([0], 32), ([0, 1, 2, 3, 4], 32), ([6] * 5, 32), ([0, 1, 2], 17), ([0, 1], 700)])
def test_pixels_made_ready_at_once_are_bounded_in_samples_not_in_minibatches(
    digits: Data, lit: bool, seeds: list[int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled, seen, most = Minibatches._filled, list[int](), 900 if lit else 400
    monkeypatch.setattr(minibatches, "LIT_AHEAD", 900)
    monkeypatch.setattr(minibatches, "AHEAD", 400)
    monkeypatch.setattr(Minibatches, "_filled", lambda its, to, rows: seen.append(rows.numel()) or filled(its, to, rows))
    some = digits if lit else replace(digits, train=bright(digits.train))
    stack = stack_of(
        some, *(a_config(seed=seed, batch_size=batch, max_batches=0, lr=0.1 / (k + 1)) for k, seed in enumerate(seeds))
    )
    list(stack.batches())
    step = len(set(seeds)) * batch
    assert sum(seen) == len(set(seeds)) * len(digits.train)
    assert max(seen) == math.ceil(most / step) * step


def test_lit_pixels_of_a_step_are_found_once_for_all_lanes_of_a_seed(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, seen = LitPixels.steps, list[int]()
    monkeypatch.setattr(LitPixels, "steps", lambda lit, rows, *rest: seen.append(rows.numel()) or steps(lit, rows, *rest))
    stack = stack_of(digits, *(a_config(seed=seed, max_batches=0) for seed in (3, 9, 3, 3, 9)))
    list(stack.batches())
    assert sum(seen) == 2 * len(digits.train)


def test_lit_pixels_of_a_split_are_found_in_no_epochs_time(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    passed, of = [0.0], LitPixels.of

    def found(pixels: Tensor) -> LitPixels:
        passed.append(passed[-1] + 8)
        return of(pixels)

    monkeypatch.setattr(training.time, "perf_counter", lambda: passed[-1])  # a clock that passes while they are found
    monkeypatch.setattr(LitPixels, "of", found)
    unseen = replace(digits, train=replace(digits.train), test=replace(digits.test))
    records = list(train(stack_of(unseen, a_config(epochs=2))))
    assert len(passed) == 3, "of the training and the test set"
    assert [record.seconds for record in records if record.epoch] == [0, 0]


def bright(split: Split) -> Split:
    """The same split, which is not asked for lit pixels."""
    same = replace(split)
    same.__dict__["lit"] = None
    return same


NORM_FIRST = json.dumps({"layers": [{"type": "batch_norm"}, {"type": "linear", "size": 64}, {"type": "relu"}]})


@pytest.mark.parametrize(
    "changed",
    [{"hidden_dim": 63}, {"batch_size": 15}, {"normalize": "standard"}, {"network": NORM_FIRST}],
    ids=["narrow", "small batches", "dark is not 0", "norm first"],
)
def test_all_pixels_are_multiplied_where_that_is_faster_or_dark_ones_count(digits: Data, changed: dict[str, str]) -> None:
    config = RunConfig(**{"dataset": "mnist_5k", "hidden_dim": 64, **changed} if "network" not in changed else changed)
    some = data.load("mnist_5k", "unused", config.normalize)
    assert isinstance(next(iter(stack_of(digits, a_config()).batches())).inputs, Sparse)
    assert isinstance(next(iter(stack_of(some, config).batches())).inputs, Tensor)


def test_lit_pixels_are_found_once_for_all_runs_of_a_process() -> None:
    first, second = (prepare(a_config(seed=seed)).data.train for seed in (0, 1))
    assert first.lit is not None
    assert first.lit is second.lit


def test_images_of_which_much_is_lit_are_dense() -> None:
    for share, few in ((0.37, True), (0.43, False)):
        pixels = images(300, 784, share, 1)
        assert (Split(pixels, torch.zeros(300, dtype=torch.int64)).lit is not None) == few


def test_only_kernels_that_were_measured_and_can_be_capped_are_left_the_lit_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pays(LEAST_WIDTH, LEAST_BATCH)
    assert not pays(LEAST_WIDTH - 1, LEAST_BATCH)
    assert not pays(LEAST_WIDTH, LEAST_BATCH - 1)
    with monkeypatch.context() as patched:
        patched.setattr(sparse, "processor", lambda line: "GenuineIntel")
        assert not pays(784, 32)
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        assert not pays(784, 32)
    code = """if True:
        from harness import sparse
        sparse.processor, sparse.torch.backends.cpu.get_cpu_capability = lambda line: "AuthenticAMD", lambda: "AVX512"
        print(sparse.pays(784, 32))"""
    for caps, found in (({}, "True\n"), (CAPS, "False\n")):
        env = {name: value for name, value in os.environ.items() if name not in CAPS} | caps
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout == found
