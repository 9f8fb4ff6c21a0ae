"""The harness, and the least that its arithmetic takes."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import Epoch
from harness.architecture import architecture
from harness.components.inits import INITS
from harness.components.layers import Call, Linear, log_softmax, logit_gradient, product
from harness.components.norms import BatchNorm, BatchNormScratch, LayerNorm, LayerNormScratch, RMSNorm
from harness.components.optimizers import OPTIMIZERS, Rows
from harness.config import RunConfig
from harness.data import Data
from harness.network import Network
from harness.training import Stack, exact_arithmetic, train

aten = torch.ops.aten
Part = tuple[str, list[Call]]  # of a step: its name and what it does


def lanes(config: RunConfig, data: Data, count: int, one_seed: bool = False) -> Callable[[], Epoch]:
    """`count` seeds as one stack, or inits of one seed, at most all, by the loop that `harness train` and `harness study` run.

    Evaluation is not counted.
    """
    differ: list[dict[str, Any]] = [{"init": init} for init in INITS] if one_seed else [{"seed": k} for k in range(count)]

    def start() -> Epoch:
        configs = [config.replace(epochs=1000, dataset=data.name, **lane) for lane in differ[:count]]
        with exact_arithmetic():
            stack = Stack.of(architecture(config), configs, data)
            records = train(stack, probe=False)
            for _ in range(count):
                next(records)  # epoch 0

        def epoch() -> float:
            with exact_arithmetic():
                return max(next(records).seconds or 0.0 for _ in range(count))

        return epoch

    return start


def limit(config: RunConfig, data: Data, part: str = "both", dense: bool = False) -> Callable[[], Epoch]:
    """An epoch's matrix products with its norms, its optimizer arithmetic, or both: what no loop over torch does without.

    They read and write the same buffers again and again; whatever else a step does comes on top. Norms are torch's kernels.
    The first layer's products are of lit pixels alone where the harness's are, unless `dense`.
    """
    arch, rule = architecture(config), OPTIMIZERS[config.optimizer]
    shapes = [(p.features, p.layer.size) for p in arch.layers if isinstance(p.layer, Linear)]
    norms = [
        NORM_KERNELS[p.layer.__class__](config.batch_size, p.features) for p in arch.layers if p.layer.__class__ in NORM_KERNELS
    ]
    steps, batch = math.ceil(len(data.train) / config.batch_size), config.batch_size

    def start() -> Epoch:
        generator = torch.Generator().manual_seed(0)
        first = next(iter(Stack.of(arch, [config], data).batches())).inputs
        x = [first.to_dense() if dense else first, *(torch.rand(1, batch, n, generator=generator) for n, _ in shapes[1:])]
        w = [torch.rand(1, n, m, generator=generator) for n, m in shapes[:-1]]
        y = [torch.empty(1, batch, m) for _, m in shapes[:-1]]
        w.append(torch.rand(1, *shapes[-1][::-1], generator=generator))  # the output layer, the way round that is faster
        y.append(torch.empty(1, shapes[-1][1], batch))
        dw, dx = [torch.empty_like(t) for t in w], [torch.empty(1, batch, n) for n, _ in shapes]
        forward, gradient_of_first = product(x[0], w[0], y[0]), product(x[0].mT, y[0], dw[0])
        weights, gradient = (torch.rand(arch.parameters, generator=generator) for _ in range(2))
        moments = tuple([torch.rand(arch.parameters, generator=generator)] for _ in rule.moments)
        update = rule.update(Rows([weights], [gradient], moments, [torch.ones(())], 1e-6, 0.0))

        def epoch() -> float:
            with exact_arithmetic():
                began = time.perf_counter()
                for _ in range(steps):
                    if part != "update":
                        forward()
                        gradient_of_first()
                        for i in range(1, len(shapes) - 1):
                            torch.bmm(x[i], w[i], out=y[i])
                            torch.bmm(x[i].mT, y[i], out=dw[i])
                            torch.bmm(y[i], w[i].mT, out=dx[i])
                        torch.bmm(w[-1], x[-1].mT, out=y[-1])
                        torch.bmm(y[-1], x[-1], out=dw[-1])
                        torch.bmm(y[-1].mT, w[-1], out=dx[-1])
                        for norm in norms:
                            norm()
                    if part != "products":
                        update()
                return time.perf_counter() - began

        return epoch

    return start


def _batch_norm(batch: int, features: int) -> Callable[[], None]:
    x, dy, weight, mean, var = torch.rand(batch, features), torch.rand(batch, features), *torch.rand(3, features)

    def both_ways() -> None:
        _, save_mean, save_inv = aten.native_batch_norm(x, weight, weight, mean, var, True, 0.1, 1e-5)
        aten.native_batch_norm_backward(dy, x, weight, mean, var, save_mean, save_inv, True, 1e-5, [True, True, True])

    return both_ways


def _layer_norm(batch: int, features: int) -> Callable[[], None]:
    x, dy, weight = torch.rand(batch, features), torch.rand(batch, features), torch.rand(features)

    def both_ways() -> None:
        _, mean, inv = aten.native_layer_norm(x, [features], weight, weight, 1e-5)
        aten.native_layer_norm_backward(dy, x, [features], mean, inv, weight, weight, [True, True, True])

    return both_ways


NORM_KERNELS: Mapping[type, Callable[[int, int], Callable[[], None]]] = {
    BatchNorm: _batch_norm,
    BatchNormScratch: _batch_norm,
    LayerNorm: _layer_norm,
    LayerNormScratch: _layer_norm,
    RMSNorm: _layer_norm,
}


def step(config: RunConfig, data: Data, count: int) -> Mapping[str, float]:
    """Microseconds of each part of a step for each lane, by the calls that the loop makes; the clock itself is in them."""
    configs = [config.replace(seed=seed, epochs=1000, dataset=data.name) for seed in range(count)]
    times, clock = defaultdict[str, float](float), time.perf_counter
    with exact_arithmetic():
        stack = Stack.of(architecture(config), configs, data)
        for _ in range(2):  # the first warms up
            times.clear()
            stack.epoch += 1
            stack.reseed_dropout()
            last, taken, inputs = clock(), 0, None

            def lap(part: str) -> None:
                nonlocal last
                times[part] += (now := clock()) - last
                last = now

            for batch in (batches := stack.batches()):
                lap("gather the images")
                if batch.inputs is not inputs:
                    inputs = batch.inputs
                    logits, forward, backward = _bound(stack.network, inputs, batch.dlogits)
                for part, calls in forward:
                    for call in calls:
                        call()
                    lap(part)
                log_softmax(logits, out=batch.log_p)
                logit_gradient(batch.d_log_p, batch.log_p, batch.dlogits)
                lap("loss and its gradient")
                for part, calls in backward:
                    for call in calls:
                        call()
                    lap(part)
                stack.steps += 1
                stack.counter.fill_(stack.steps)
                for update in stack.updates:
                    update()
                lap(config.optimizer)
                taken += 1
            for lane in range(count):
                batches.curves(lane)
            lap("loss and accuracy, summed up")
    return {part: seconds / taken / count * 1e6 for part, seconds in times.items()}


def _bound(network: Network, x: Any, dlogits: Tensor) -> tuple[Tensor, list[Part], list[Part]]:
    """The logits, and the calls of each layer, forward and back."""
    sites, forward, backward = list(enumerate(network.sites(x.shape[1]))), list[Part](), list[Part]()
    for number, (layer, at) in sites:
        x, calls = layer.forward(at, x, True)
        forward.append((f"{number} {type(layer).__name__}, forward", calls))
    for number, (layer, at) in reversed(sites):
        dlogits, calls = layer.backward(at, dlogits)
        backward.append((f"{number} {type(layer).__name__}, gradient", calls))
    return x, forward, backward
