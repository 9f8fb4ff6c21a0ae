"""From a config or a layer list to named layers, their initial weights and, for people, a torch module."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from harness import layerlist
from harness.components.activations import ACTIVATIONS, Activation
from harness.components.inits import INITS
from harness.components.layers import Dropout, Linear, Output
from harness.components.norms import NORMS
from harness.config import RunConfig
from harness.layerlist import NORM_TYPES, DropoutSpec, LayerList, LinearSpec
from harness.seeding import stream

State = dict[str, Tensor]  # weights and buffers under the names and in the layout of torch.nn
PIXELS, CLASSES = 784, 10  # of every dataset so far, and so of network=mlp


@dataclass(frozen=True)
class Placed:
    """A layer under its name in the network."""

    name: str
    layer: Any  # a components.layers.Layer that also knows its torch `module`
    features: int  # that reach it
    block: int  # linear layers up to and including this one: the index of its init stream

    def module(self) -> nn.Module:
        """The same layer as torch has it."""
        return self.layer.module() if isinstance(self.layer, Activation) else self.layer.module(self.features)


@dataclass(frozen=True)
class Architecture:
    """Named layers in order, from `input_size` features to `num_classes` logits."""

    input_size: int
    num_classes: int
    layers: tuple[Placed, ...]

    @property
    def needs_two_samples(self) -> bool:
        """Whether a layer has no training statistics for a single sample."""
        return any(getattr(placed.layer, "needs_two_samples", False) for placed in self.layers)

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(math.prod(shape) for placed in self.layers for shape in placed.layer.parameters(placed.features).values())


def architecture(spec: RunConfig | LayerList) -> Architecture:
    """The named layers of a config or a layer list; an output linear is appended. One builder serves both."""
    layers = spec.layers() if isinstance(spec, RunConfig) else spec
    if layers is not None:
        return _named(layers.input_size, layers.num_classes, [_layer(entry) for entry in layers.layers])
    assert isinstance(spec, RunConfig)
    parts = [Linear(spec.hidden_dim), NORMS[spec.norm], ACTIVATIONS[spec.act], Dropout(spec.dropout) if spec.dropout else None]
    return _named(PIXELS, CLASSES, [part for part in parts if part is not None])


def _layer(entry: Any) -> Any:
    if isinstance(entry, LinearSpec):
        return Linear(entry.size)
    if isinstance(entry, DropoutSpec):
        return Dropout(entry.rate)
    return NORMS[NORM_TYPES[entry.type]] if entry.type in NORM_TYPES else ACTIVATIONS[entry.type]


def _named(input_size: int, num_classes: int, parts: Sequence[Any]) -> Architecture:
    """`parts` and the output linear under names counted by kind: linear1, norm1, act1, dropout1, linear2."""
    placed: list[Placed] = []
    counts = {"linear": 0, "norm": 0, "act": 0, "dropout": 0}
    features = input_size
    for part in [*parts, Output(num_classes)]:
        kind = {Linear: "linear", Output: "linear", Activation: "act", Dropout: "dropout"}.get(type(part), "norm")
        counts[kind] += 1
        if isinstance(part, Linear) and not placed:
            part = replace(part, first=True)
        placed.append(Placed(f"{kind}{counts[kind]}", part, features, counts["linear"]))
        features = part.size if isinstance(part, Linear) else features
    return Architecture(input_size, num_classes, tuple(placed))


def initial_state(arch: Architecture, init: str, seed: int) -> State:
    """Weights and buffers before training; a linear's weight is (out, in), as in torch.nn.

    A linear and what follows it share a stream, and the linear draws first: neither a norm nor another activation moves
    the weights of any linear.
    """
    row, state = INITS[init], {}
    streams: dict[int, Generator] = {}
    for placed in arch.layers:
        rng = streams.setdefault(placed.block, stream(seed, "init", placed.block))
        linear, features = isinstance(placed.layer, Linear), placed.features
        for name, shape in placed.layer.parameters(features).items():
            if linear and name == "weight":
                values = row.weight(placed.layer.size, features, rng)
            elif row.rest and (linear or row.norms):
                values = row.rest(shape, features, rng)
            else:
                values = np.full(shape, 0 if linear or name == "bias" else 1, np.float32)
            state[f"{placed.name}.{name}"] = torch.from_numpy(values)
        for name, shape in placed.layer.buffers(features).items():
            state[f"{placed.name}.{name}"] = torch.full(shape, float(name == "running_var"), dtype=torch.float32)
    return state


def empty_module(arch: Architecture) -> nn.Module:
    """The network as a torch module whose tensors have shapes but no memory; it takes (batch, 28, 28) or (batch, 784)."""
    with torch.device("meta"):  # nn.Linear() would draw its weights from the global generator
        layers = OrderedDict((placed.name, placed.module()) for placed in arch.layers)
        return nn.Sequential(OrderedDict(flatten=nn.Flatten(), **layers))


def as_module(arch: Architecture, state: Mapping[str, Tensor], steps: int = 0) -> nn.Module:
    """The network as a torch module in eval mode, with these weights after so many steps."""
    module = empty_module(arch)
    counted = {name: torch.tensor(steps) for name in module.state_dict() if name.endswith("num_batches_tracked")}
    module.load_state_dict({name: tensor.clone() for name, tensor in {**counted, **state}.items()}, assign=True)
    return module.requires_grad_().eval()


def build_network(spec: RunConfig | LayerList | Mapping[str, Any] | str | Path, seed: int | None = None) -> nn.Module:
    """A torch module with freshly drawn weights, from a layer list, its path or a RunConfig.

    The weights are those that a run starts from: a config's own `init` and seed (unless `seed` is given), for a layer list
    nn.Linear's default distribution and seed 0. Raises InputError for a list that is not one.

    >>> build_network({"layers": [{"type": "linear", "size": 64}, {"type": "relu"}]})(torch.zeros(1, 784)).shape
    torch.Size([1, 10])
    """
    if spec == "mlp":
        spec = RunConfig(init="torch")
    elif isinstance(spec, str | Path):
        spec = layerlist.read(spec)
    elif isinstance(spec, Mapping):
        spec = layerlist.parse(dict(spec))
    init, own = (spec.init, spec.seed) if isinstance(spec, RunConfig) else ("torch", 0)
    arch = architecture(spec)
    return as_module(arch, initial_state(arch, init, own if seed is None else RunConfig(seed=seed).seed)).train()


def count_parameters(model: nn.Module) -> int:
    """How many numbers of a torch module are learned."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
