"""The layers that every network has: linear, dropout and, on top, softmax cross-entropy.

A layer is a value that knows its formula; its tensors lie in a Site that is handed to it, (lanes, batch, features) for what
flows through and (lanes, 1, features) or (lanes, in, out) for parameters `p`, whose gradients go to `d_p`.
These tensors stay where they are. So a layer computes nothing when it is asked: it answers with the calls that do, bound to
their buffers once and made at each step, which then spends no time on putting them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.sparse import Sparse

Shapes = dict[str, tuple[int, ...]]
Call = Callable[[], object]


class Bound(NamedTuple):
    """Calls that write a tensor, and whatever else comes with it, anew from what their buffers hold."""

    out: Tensor
    calls: list[Call]


def kernel(overload: Any, *args: object, **kwargs: object) -> Call:
    """The call of one of ATen's kernels, `torch.ops.aten`'s overload of it without the Python that it puts before each call."""
    return partial(overload._op, *args, **kwargs)


class Site(SimpleNamespace):
    """The tensors of one layer for one batch size, by name."""

    def vectors(self, *names: str) -> Iterator[tuple[Tensor, ...]]:
        """Of each lane the named tensors, (lanes, 1, features), as vectors (features,): for kernels that know no lanes."""
        return zip(*(getattr(self, name).squeeze(1) for name in names), strict=True)


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

    def forward(self, at: Site, x: Tensor, training: bool) -> Bound:
        """The calls that write y, given x."""
        ...

    def backward(self, at: Site, dy: Tensor) -> Bound:
        """The calls that write dx, given dy, and the parameters' gradients, for the x that forward was last bound to."""
        ...


def product(a: Tensor | Sparse, b: Tensor, out: Tensor, bias: Tensor | None = None) -> Call:
    """The call that writes a b (+ bias) of each lane to `out`: (lanes, n, m) times (lanes, m, p).

    How many lanes share a call must move no bit. Where a dimension is 1, BLAS takes matrix-vector kernels that differ with
    their number: then each has its own. cuBLAS chooses a kernel by it too: there two share one, the last with itself.
    """
    if isinstance(a, Sparse):
        return a.product(b, out, bias)
    share = 1 if 1 in (*a.shape[1:], *out.shape[1:]) else 2 if out.is_cuda else len(a)
    if len(a) > share:
        biases = repeat(None) if bias is None else bias.split(share)
        parts = [product(*part) for part in zip(a.split(share), b.split(share), out.split(share), biases, strict=False)]
        return lambda: [call() for call in parts]
    if len(a) < share:
        pair = torch.empty_strided((2, *out.shape[1:]), (out[0].numel(), *out.stride()[1:]), device=out.device)
        call = product(_twice(a), _twice(b), pair, None if bias is None else _twice(bias))
        return lambda: (call(), out.copy_(pair[:1]))
    return partial(torch.bmm, a, b, out=out) if bias is None else partial(torch.baddbmm, bias, a, b, out=out)


def _twice(lane: Tensor) -> Tensor:
    return lane.expand(2, -1, -1)


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

    def forward(self, at: Site, x: Tensor, training: bool) -> Bound:
        at.x = x
        return Bound(at.y, [product(x, at.weight, at.y, at.bias)])

    def backward(self, at: Site, dy: Tensor) -> Bound:
        dx = [] if self.first else [product(dy, at.weight.mT, at.dx)]
        db = partial(torch.sum, dy, 1, keepdim=True, out=at.d_bias)
        return Bound(at.dx, [product(at.x.mT, dy, at.d_weight), db, *dx])


@dataclass(frozen=True)
class Output(Linear):
    """The last linear, y' = W' x' + b': logits are (lanes, classes, batch), for ten classes fill no vector, a batch does."""

    def scratch(self, batch: int, features: int) -> Shapes:
        return {**super().scratch(batch, features), "y": (self.size, batch)}

    def forward(self, at: Site, x: Tensor, training: bool) -> Bound:
        at.x = x
        return Bound(at.y, [product(at.weight.mT, x.mT, at.y, at.bias.mT)])

    def backward(self, at: Site, dy: Tensor) -> Bound:
        dx = [] if self.first else [product(dy.mT, at.weight.mT, at.dx)]
        db = partial(torch.sum, dy, 2, keepdim=True, out=at.d_bias.mT)
        return Bound(at.dx, [product(dy, at.x, at.d_weight.mT), db, *dx])


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

    def forward(self, at: Site, x: Tensor, training: bool) -> Bound:
        at.training = training
        if not training:
            return Bound(x, [])
        drawn = at.mask.cpu().float()  # as streams write; the mask itself, where it is on the CPU
        calls: list[Call] = [
            partial(_draw, list(drawn.numpy()), at.rngs),
            partial(at.mask.copy_, drawn),
            partial(torch.ge, at.mask, self.rate, out=at.mask),
            partial(at.mask.mul_, 1 / (1 - self.rate)),
            partial(torch.mul, x, at.mask, out=at.y),
        ]
        return Bound(at.y, calls)

    def backward(self, at: Site, dy: Tensor) -> Bound:
        return Bound(at.dx, [partial(torch.mul, dy, at.mask, out=at.dx)]) if at.training else Bound(dy, [])


def _draw(lanes: list[NDArray[np.float32]], rngs: list[Generator]) -> None:
    """Uniform numbers for each lane, from its stream."""
    for lane, rng in zip(lanes, rngs, strict=True):
        rng.random(dtype=np.float32, out=lane)


def cross_entropy(logits: Tensor, labels: Tensor, gradient: Tensor | None = None) -> Tensor:
    """Loss of each sample in nats, (lanes, batch): -log softmax(logits)[label], of logits (lanes, classes, batch).

    `gradient`, where given, gets that of the batch's mean loss: (softmax(logits) - onehot(labels)) / batch.
    """
    log_p = log_softmax(logits)
    if gradient is not None:
        logit_gradient(label_gradient(labels, log_p), log_p, gradient)
    return log_p.gather(-2, labels.unsqueeze(-2)).squeeze(-2).neg_()


def log_softmax(logits: Tensor, out: Tensor | None = None) -> Tensor:
    """Log-probabilities of logits (lanes, classes, batch)."""
    if out is not None and not out.is_contiguous():  # which is left wrong without a word, as by the gradient below
        return out.copy_(torch._log_softmax(logits, 1, False))
    return torch._log_softmax(logits, 1, False, out=out)  # what torch.log_softmax calls


def label_gradient(labels: Tensor, log_p: Tensor) -> Tensor:
    """The gradient of a batch's mean loss with respect to log_p, (..., classes, batch): -1 / batch at the labels, else 0."""
    share = log_p.new_full((), -1 / labels.shape[-1]).expand_as(labels).unsqueeze(-2)
    return torch.zeros_like(log_p).scatter_(-2, labels.unsqueeze(-2), share)


def logit_gradient(d_log_p: Tensor, log_p: Tensor, out: Tensor) -> Tensor:
    """Back through log_softmax: d_log_p - softmax sum(d_log_p)."""
    if not out.is_contiguous():  # torch 2.13 takes no notice of the strides of `out` and leaves it wrong
        return out.copy_(torch._log_softmax_backward_data(d_log_p, log_p, 1, log_p.dtype))
    return torch._log_softmax_backward_data(d_log_p, log_p, 1, log_p.dtype, out=out)
