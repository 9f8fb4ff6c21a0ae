"""The layers that every network has: linear, dropout and, on top, softmax cross-entropy.

A layer is a value that knows its formula; its tensors lie in a Site that is handed to it, (lanes, batch, features) for what
flows through and (lanes, 1, features) or (lanes, in, out) for parameters `p`, whose gradients go to `d_p`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]


class Site(SimpleNamespace):
    """The tensors of one layer for one batch size, by name."""

    def vectors(self, *names: str) -> list[list[Tensor]]:
        """Of each lane the named tensors, (lanes, 1, features), as vectors (features,): for kernels that know no lanes."""
        known = self.__dict__.setdefault("_vectors", {})  # made once: cutting a tensor costs as much as a small kernel
        if names not in known:
            known[names] = [list(lane) for lane in zip(*(getattr(self, name).squeeze(1) for name in names), strict=True)]
        return known[names]

    def turned(self, name: str) -> Tensor:
        """The named tensor (lanes, n, m) seen as (lanes, m, n)."""
        known = self.__dict__.setdefault("_turned", {})
        if name not in known:
            known[name] = getattr(self, name).mT
        return known[name]


class Layer(Protocol):
    """What a layer knows: the shapes of its tensors for one lane, its forward and its gradient."""

    def parameters(self, features: int) -> Shapes:
        """Learned tensors: vectors (size,), or a matrix (in, out)."""
        ...

    def buffers(self, features: int) -> Shapes:
        """Tensors that are kept but not learned, such as running statistics."""
        ...

    def scratch(self, batch: int, features: int) -> Shapes:
        """Tensors that hold something between forward and backward."""
        ...

    def forward(self, at: Site, x: Tensor, training: bool) -> Tensor:
        """y, given x."""
        ...

    def backward(self, at: Site, dy: Tensor) -> Tensor:
        """dx, given dy for the x of the last forward; writes the parameters' gradients."""
        ...


def matmul(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b (+ bias) for each lane, written to `out`: (lanes, n, m) times (lanes, m, p).

    Where a dimension is 1, BLAS takes matrix-vector kernels that differ with the number of lanes: then one lane at a time.
    """
    if 1 in (a.shape[1], a.shape[2], b.shape[2]) and len(a) > 1:
        for k in range(len(a)):
            matmul(a[k : k + 1], b[k : k + 1], out[k : k + 1], None if bias is None else bias[k : k + 1])
        return out
    return torch.bmm(a, b, out=out) if bias is None else torch.baddbmm(bias, a, b, out=out)


@dataclass(frozen=True)
class Linear:
    """y = x W + b; dW = x' dy, db = sum(dy), dx = dy W'. W is (in, out), so that x W reads it along its rows."""

    size: int
    first: bool = False  # the first layer's dx is nobody's input

    def module(self, features: int) -> nn.Module:
        return nn.Linear(features, self.size)

    def parameters(self, features: int) -> Shapes:
        return {"weight": (features, self.size), "bias": (self.size,)}

    def buffers(self, features: int) -> Shapes:
        return {}

    def scratch(self, batch: int, features: int) -> Shapes:
        return {"y": (batch, self.size), "dx": (0,) if self.first else (batch, features)}

    def forward(self, at: Site, x: Tensor, training: bool) -> Tensor:
        at.x = x
        return matmul(x, at.weight, at.y, at.bias)

    def backward(self, at: Site, dy: Tensor) -> Tensor:
        matmul(at.x.mT, dy, at.d_weight)
        torch.sum(dy, 1, keepdim=True, out=at.d_bias)
        return at.dx if self.first else matmul(dy, at.turned("weight"), at.dx)


@dataclass(frozen=True)
class Output(Linear):
    """The last linear: y' = W' x' + b'. Logits lie in memory as (classes, batch): ten classes fill no vector, a batch does."""

    def scratch(self, batch: int, features: int) -> Shapes:
        return {**super().scratch(batch, features), "y": (self.size, batch)}

    def forward(self, at: Site, x: Tensor, training: bool) -> Tensor:
        at.x = x
        matmul(at.turned("weight"), x.mT, at.y, at.turned("bias"))
        return at.turned("y")

    def backward(self, at: Site, dy: Tensor) -> Tensor:
        matmul(dy.mT, at.x, at.turned("d_weight"))
        torch.sum(dy, 1, keepdim=True, out=at.d_bias)
        return at.dx if self.first else matmul(dy, at.turned("weight"), at.dx)


@dataclass(frozen=True)
class Dropout:
    """y = x mask / (1 - rate), the mask 0 with probability `rate`; y = x in eval mode.  Srivastava et al. 2014, JMLR 15.

    `at.rngs` has the stream of each lane; masks are drawn on the CPU, so that every device sees the same ones.
    """

    rate: float

    def module(self, features: int) -> nn.Module:
        return nn.Dropout(self.rate)

    def parameters(self, features: int) -> Shapes:
        return {}

    def buffers(self, features: int) -> Shapes:
        return {}

    def scratch(self, batch: int, features: int) -> Shapes:
        return {"y": (batch, features), "mask": (batch, features), "dx": (batch, features)}

    def forward(self, at: Site, x: Tensor, training: bool) -> Tensor:
        at.training = training
        if not training:
            return x
        for mask, rng in zip(at.mask, at.rngs, strict=True):
            mask.copy_(torch.from_numpy(rng.random(mask.shape, dtype=np.float32)))
        torch.ge(at.mask, self.rate, out=at.mask).mul_(1 / (1 - self.rate))
        return torch.mul(x, at.mask, out=at.y)

    def backward(self, at: Site, dy: Tensor) -> Tensor:
        return torch.mul(dy, at.mask, out=at.dx) if at.training else dy


def cross_entropy(logits: Tensor, labels: Tensor, gradient: Tensor | None = None) -> Tensor:
    """Loss of each sample, (lanes, batch) in nats: -log softmax(logits)[label]. Labels are (lanes, batch).

    `gradient`, where given, gets that of the batch's mean loss: (softmax(logits) - onehot(labels)) / batch.
    """
    log_p = log_softmax(logits)
    if gradient is not None:
        logit_gradient(label_gradient(labels, log_p), log_p, gradient)
    return log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1).neg_()


def log_softmax(logits: Tensor, out: Tensor | None = None) -> Tensor:
    """Log-probabilities of logits (lanes, batch, classes), in kernels that run along the batch."""
    return torch.log_softmax(logits.mT, -2, out=None if out is None else out.mT).mT


def label_gradient(labels: Tensor, log_p: Tensor) -> Tensor:
    """The gradient of a batch's mean loss with respect to log-probabilities: -1 / batch at the label (..., batch), else 0."""
    share = log_p.new_full((), -1 / labels.shape[-1]).expand(*labels.shape, 1)
    return torch.zeros_like(log_p).scatter_(-1, labels.unsqueeze(-1), share)


def logit_gradient(d_log_p: Tensor, log_p: Tensor, out: Tensor) -> Tensor:
    """Back through log_softmax: d_log_p - softmax sum(d_log_p)."""
    back = partial(torch._log_softmax_backward_data, d_log_p.mT, log_p.mT, -2, log_p.dtype)
    if out.mT.is_contiguous():
        back(out=out.mT)
    else:  # torch 2.13 takes no notice of the strides of `out` and leaves it wrong
        out.copy_(back().mT)
    return out
