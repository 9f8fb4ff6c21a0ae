"""K networks of one architecture in flat rows of memory, and the walk forward and back through their layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from numpy.random import Generator
from torch import Tensor

from harness import memory
from harness.architecture import Architecture, State
from harness.components.layers import Bound, Call, Site

# Vector kernels treat the last elements of a buffer apart and may round them differently. With every lane a multiple of
# 32 floats (two vectors of the widest unit, AVX-512), each lane has its tail, or none, where it has it alone.
ALIGN = 32
CACHE_LINE = 16  # floats
# Matrix products with rows shorter than a cache line take up to four times as long: those matrices lie as (out, in).
NARROW = CACHE_LINE


def padded(size: int, to: int = ALIGN) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // to) * to


def lane_buffer(lanes: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros (lanes, *shape), each lane starting on a multiple of ALIGN elements."""
    size = math.prod(shape)
    return like.new_zeros(lanes, padded(size))[:, :size].unflatten(1, shape)


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a lane lies in its flat row."""

    places: Mapping[str, tuple[int, tuple[int, ...]]]  # "linear1.weight" -> (start, shape)
    size: int

    @classmethod
    def of(cls, arch: Architecture, what: str) -> Layout:
        """The layout of all `parameters`, or all `buffers`."""
        places, start = {}, 0
        for placed in arch.layers:
            for name, shape in getattr(placed.layer, what)(placed.features).items():
                places[f"{placed.name}.{name}"] = (start, shape)
                start += padded(math.prod(shape), CACHE_LINE)
        return cls(places, padded(start))

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Each tensor of every lane as a view of the rows (lanes, size): (lanes, in, out), or (lanes, 1, features)."""
        return {
            name: _matrix(flat[:, start : start + math.prod(shape)], *(shape if len(shape) > 1 else (1, *shape)))
            for name, (start, shape) in self.places.items()
        }

    def load(self, row: Tensor, state: Mapping[str, Tensor]) -> None:
        """Copy tensors in torch.nn's layout into one lane's row, (size,)."""
        for name, view in self.views(row[None]).items():
            view[0].copy_(state[name].T if state[name].dim() > 1 else state[name][None])

    def state(self, row: Tensor) -> State:
        """A copy of one lane's row as tensors in torch.nn's layout, on the CPU."""
        views = {
            name: view[0].T if len(self.places[name][1]) > 1 else view[0, 0] for name, view in self.views(row[None]).items()
        }
        return {name: view.to("cpu", copy=True).contiguous() for name, view in views.items()}


def _matrix(flat: Tensor, rows: int, columns: int) -> Tensor:
    """(lanes, rows * columns) seen as (lanes, rows, columns)."""
    return flat.unflatten(1, (columns, rows)).mT if rows > 1 and columns < NARROW else flat.unflatten(1, (rows, columns))


def _walk(layers: Iterable[Callable[[Any], Bound]], x: Any) -> Bound:
    """Layers bound to one another, the first to x: the last one's output, and the calls of all."""
    calls = list[Call]()
    for bind in layers:
        x, some = bind(x)
        calls += some
    return Bound(x, calls)


UNBOUND = Bound(torch.empty(0), [])


@dataclass
class Network:
    """K lanes of one architecture: their weights, gradients and buffers, and the sites where layers work on them."""

    arch: Architecture
    weights: Tensor  # (lanes, parameters)
    gradients: Tensor  # (lanes, parameters)
    buffers: Tensor  # (lanes, buffers)
    rngs: dict[str, list[Generator]] = field(default_factory=dict)  # layer -> the stream of each lane, for dropout
    _sites: dict[int, list[tuple[Any, Site]]] = field(default_factory=dict, repr=False)
    _forward: tuple[Any, bool, Bound] = field(default=(None, False, UNBOUND), repr=False)  # inputs, training, bound to them
    _backward: tuple[Any, Bound] = field(default=(None, UNBOUND), repr=False)  # dlogits, bound to them and to `_forward`

    @classmethod
    def zeros(cls, arch: Architecture, lanes: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Network:
        """Lanes without weights, to be loaded."""
        parameters, buffers = Layout.of(arch, "parameters").size, Layout.of(arch, "buffers").size
        weights, gradients, kept = (
            memory.zeros(lanes, n, dtype=dtype, device=device) for n in (parameters, parameters, buffers)
        )
        return cls(arch, weights, gradients, kept)

    def lane(self, k: int) -> Network:
        """Lane k as a network of its own, on the same memory: what it computes is what it would compute alone."""
        return Network(self.arch, self.weights[k : k + 1], self.gradients[k : k + 1], self.buffers[k : k + 1])

    def sites(self, batch: int) -> list[tuple[Any, Site]]:
        """Each layer with its tensors for batches of this size, allocated at the first call."""
        if batch not in self._sites:
            self._sites[batch] = list(self._build(batch))
        return self._sites[batch]

    def _build(self, batch: int) -> Iterator[tuple[Any, Site]]:
        parameters, kept = Layout.of(self.arch, "parameters"), Layout.of(self.arch, "buffers")
        weights, gradients, buffers = parameters.views(self.weights), parameters.views(self.gradients), kept.views(self.buffers)
        for name, layer, features in ((placed.name, placed.layer, placed.features) for placed in self.arch.layers):
            yield (
                layer,
                Site(
                    rngs=self.rngs.setdefault(name, []),
                    **{key: weights[f"{name}.{key}"] for key in layer.parameters(features)},
                    **{f"d_{key}": gradients[f"{name}.{key}"] for key in layer.parameters(features)},
                    **{key: buffers[f"{name}.{key}"] for key in layer.buffers(features)},
                    **{
                        key: lane_buffer(len(self.weights), s, self.weights)
                        for key, s in layer.scratch(batch, features).items()
                    },
                ),
            )

    def reseed(self, name: str, rngs: list[Generator]) -> None:
        """Give a dropout layer the streams of an epoch, one a lane. Its sites hold this list: it is filled, not replaced."""
        self.rngs.setdefault(name, [])[:] = rngs

    def forward(self, x: Any, training: bool) -> Tensor:
        """Logits (lanes, classes, batch) of inputs (lanes, batch, features), which may be Sparse where a Linear is first.

        Layers are bound anew when `x` or `training` is not that of the last call: a buffer that is filled again costs least.
        """
        inputs, trained, bound = self._forward
        if inputs is not x or trained is not training:
            bound = _walk([partial(layer.forward, at, training=training) for layer, at in self.sites(x.shape[1])], x)
            self._forward, self._backward = (x, training, bound), (None, UNBOUND)
        for call in bound.calls:
            call()
        return bound.out

    def backward(self, dlogits: Tensor) -> Tensor:
        """Write the gradients of all parameters, given the loss's with respect to the last forward's logits.

        Returns that with respect to its inputs, where the first layer has one.
        """
        given, bound = self._backward
        if given is not dlogits:
            sites = self.sites(self._forward[0].shape[1])
            bound = _walk([partial(layer.backward, at) for layer, at in reversed(sites)], dlogits)
            self._backward = dlogits, bound
        for call in bound.calls:
            call()
        return bound.out

    def load(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Set the weights and buffers of lane k."""
        Layout.of(self.arch, "parameters").load(self.weights[k], state)
        Layout.of(self.arch, "buffers").load(self.buffers[k], state)

    def state(self, k: int) -> State:
        """A copy of the weights and buffers of lane k, in torch.nn's names and layout."""
        return Layout.of(self.arch, "parameters").state(self.weights[k]) | Layout.of(self.arch, "buffers").state(
            self.buffers[k]
        )
