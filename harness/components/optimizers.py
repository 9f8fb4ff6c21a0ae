"""Optimizers: a row is a name, an update rule and its paper. An update works on the flat rows of lanes.

A fused call takes one row after the other, each of which starts and ends on a vector: a lane's bits cannot depend on its
neighbours.
The rules and their constants are torch.optim's; lr and weight_decay are the config's. Decay is added to the gradient of every
parameter, biases and norms too; adamw shrinks the parameters instead, and at weight_decay = 0 is adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from harness.components.layers import Call


class Rows(NamedTuple):
    """All that an update touches: vectors (parameters,) of each lane, and the number of steps taken, this one included."""

    weights: list[Tensor]
    gradients: list[Tensor]
    moments: tuple[list[Tensor], ...]  # of each name, the lanes'
    steps: list[Tensor]  # ()
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class SGD:
    """w <- w - lr g; with momentum v <- momentum v + g and w <- w - lr v (nesterov: lr (g + momentum v))."""

    momentum: float = 0.0
    nesterov: bool = False

    @property
    def moments(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def update(self, rows: Rows) -> Call:
        return partial(
            torch._fused_sgd_, rows.weights, rows.gradients, *(rows.moments or [[]]), weight_decay=rows.weight_decay,
            momentum=self.momentum, lr=rows.lr, dampening=0.0, nesterov=self.nesterov, maximize=False, is_first_step=False,
        )  # fmt: skip


@dataclass(frozen=True)
class RMSprop:
    """v <- alpha v + (1 - alpha) g^2, w <- w - lr g / (sqrt(v) + eps).

    It is Adam without the first mean (beta1 = 0: it is the gradient, and lies there) and so late that nothing is left to
    correct: one fused pass, not five.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    moments: ClassVar[tuple[str, ...]] = ("square",)

    def update(self, rows: Rows) -> Call:
        (squares,), late = rows.moments, [_late(rows.weights[0].device)] * len(rows.weights)
        return partial(
            torch._fused_adam_, rows.weights, rows.gradients, rows.gradients, squares, [], late, lr=rows.lr, beta1=0.0,
            beta2=self.alpha, weight_decay=rows.weight_decay, eps=self.eps, amsgrad=False, maximize=False,
        )  # fmt: skip


@cache
def _late(device: torch.device) -> Tensor:
    """So many steps that alpha to their power is 0."""
    return torch.full((), 1e9, device=device)


@dataclass(frozen=True)
class Adam:
    """m, v <- running means of g and g^2; w <- w - lr mhat / (sqrt(vhat) + eps), hats corrected for the start at 0."""

    decoupled: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    moments: ClassVar[tuple[str, ...]] = ("mean", "square")

    def update(self, rows: Rows) -> Call:
        rule = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        means, squares = rows.moments
        return partial(
            rule, rows.weights, rows.gradients, means, squares, [], rows.steps, lr=rows.lr, beta1=self.betas[0],
            beta2=self.betas[1], weight_decay=rows.weight_decay, eps=self.eps, amsgrad=False, maximize=False,
        )  # fmt: skip


class Optimizer(Protocol):
    """The names of the vectors that it keeps between steps, and the call that takes a step."""

    @property
    def moments(self) -> tuple[str, ...]: ...
    def update(self, rows: Rows) -> Call: ...


OPTIMIZERS: Mapping[str, Optimizer] = {
    "sgd": SGD(),  # Robbins & Monro 1951
    "momentum": SGD(momentum=0.9),  # Polyak 1964
    "nesterov": SGD(momentum=0.9, nesterov=True),  # Sutskever et al. 2013, ICML, in torch's form
    "rmsprop": RMSprop(),  # Tieleman & Hinton 2012, Coursera lecture 6.5
    "adam": Adam(),  # Kingma & Ba 2015, arXiv:1412.6980, algorithm 1
    "adamw": Adam(decoupled=True),  # Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2
}
