"""The health of hidden layers on a fixed probe batch: do activations live, and does gradient reach the weights?

A hidden layer is a linear layer but the last, with what follows it up to the next; its output is that of its last activation
(of its last norm, or its own, where it has none).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.components.activations import Activation
from harness.components.layers import Linear, Site, cross_entropy
from harness.network import Network

PROBE_SAMPLES = 256
FLAT = 0.005  # a slope below it passes on less than a two-hundredth of the gradient; for tanh, |h| > 0.9975


def measure(network: Network, inputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Health of each hidden layer of a one-lane network, in eval mode, on inputs (1, n, features) and labels (1, n).

    `hidden1/mean`, `/std`: of the layer's outputs over samples and units. `/saturated`: share of outputs where the
    activation's slope is flat. `/dead`: share of units that are flat for every sample. `/grad_norm`: L2 norm of the
    probe loss's gradient with respect to the layer's weight matrix. Weights and running statistics stay as they are.
    """
    logits = network.forward(inputs, training=False)
    cross_entropy(logits, labels, gradient := torch.empty_like(logits))
    network.backward(gradient)
    found = {}
    for name, linear, activation, output in _hidden(network, inputs.shape[1]):
        found[f"{name}/mean"] = output.double().mean().item()
        found[f"{name}/std"] = output.double().std(correction=0).item()
        flat = activation[0].derivative(activation[1])[0].abs() < FLAT if activation else output.new_zeros(output.shape).bool()
        found[f"{name}/saturated"] = flat.double().mean().item()
        found[f"{name}/dead"] = flat.all(0).double().mean().item()
        found[f"{name}/grad_norm"] = linear.d_weight.double().norm().item()
    return found


def outputs(network: Network, inputs: Tensor) -> dict[str, np.ndarray]:
    """The outputs of each hidden layer of a one-lane network in eval mode, (n, units), on inputs (1, n, features)."""
    network.forward(inputs, training=False)
    return {name: output.cpu().numpy().copy() for name, _, _, output in _hidden(network, inputs.shape[1])}


Found = tuple[str, Site, tuple[Activation, Site] | None, Tensor]


def _hidden(network: Network, batch: int) -> Iterator[Found]:
    """Name, the linear's site, the activation with its site if there is one, and the output (n, units) of each hidden layer."""
    sites: list[tuple[Any, Site]] = network.sites(batch)
    starts = [i for i, (layer, _) in enumerate(sites) if isinstance(layer, Linear)]
    for number, (start, end) in enumerate(pairwise(starts), 1):
        block = sites[start:end][::-1]  # from the output back
        activation = next(((layer, at) for layer, at in block if isinstance(layer, Activation)), None)
        norm = next(at for _, at in block if hasattr(at, "weight"))  # the linear itself, where there is none
        yield f"hidden{number}", sites[start][1], activation, activation[1].h[0] if activation else norm.y[0]
