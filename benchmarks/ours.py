"""The harness, and the least that its arithmetic takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from benchmarks.contest import Epoch
from harness.architecture import architecture
from harness.components.layers import Linear
from harness.components.optimizers import OPTIMIZERS, Row
from harness.config import RunConfig
from harness.data import Data
from harness.training import Stack, exact_arithmetic, train


def lanes(config: RunConfig, data: Data, count: int) -> Callable[[], Epoch]:
    """`count` seeds as one stack, by the loop that `harness train` and `harness study` run; evaluation not counted."""

    def start() -> Epoch:
        configs = [config.replace(seed=seed, epochs=1000, dataset=data.name) for seed in range(count)]
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


def limit(config: RunConfig, data: Data, part: str = "both") -> Callable[[], Epoch]:
    """An epoch's matrix products alone, its optimizer arithmetic alone, or both: what no loop can do without.

    Products read and write the same buffers again and again; whatever else a step does comes on top.
    """
    arch, rule = architecture(config), OPTIMIZERS[config.optimizer]
    shapes = [(p.features, p.layer.size) for p in arch.layers if isinstance(p.layer, Linear)]
    steps, batch = math.ceil(len(data.train) / config.batch_size), config.batch_size

    def start() -> Epoch:
        generator = torch.Generator().manual_seed(0)
        x = [torch.rand(1, batch, n, generator=generator) for n, _ in shapes]
        w = [torch.rand(1, n, m, generator=generator) for n, m in shapes]
        y = [torch.empty(1, batch, m) for _, m in shapes]
        dw, dx = [torch.empty_like(t) for t in w], [torch.empty_like(t) for t in x]
        size = arch.parameters
        weights, gradient, spare = (torch.rand(size, generator=generator) for _ in range(3))
        moments = tuple(torch.rand(size, generator=generator) for _ in rule.moments)
        row = Row(weights, gradient, moments, torch.ones(()), spare, 1e-6, 0.0)

        def epoch() -> float:
            with exact_arithmetic():
                began = time.perf_counter()
                for _ in range(steps):
                    if part != "update":
                        for i in range(len(shapes)):
                            torch.bmm(x[i], w[i], out=y[i])
                            torch.bmm(x[i].mT, y[i], out=dw[i])
                            if i:
                                torch.bmm(y[i], w[i].mT, out=dx[i])
                    if part != "products":
                        rule.step(row)
                return time.perf_counter() - began

        return epoch

    return start
