"""The health of hidden layers on a fixed probe batch: do activations live, and does gradient reach the weights?

A hidden layer is a linear layer but the last, with what follows it up to the next; its output is that of its last activation
(of its last norm, or its own, where it has none).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from harness.components.activations import Activation
from harness.components.layers import Linear, cross_entropy
from harness.network import Network, lane_buffer

PROBE_SAMPLES = 256
FLAT = 0.02  # a slope below it passes on less than a fiftieth of the gradient; for tanh, |h| > 0.99


def measure(network: Network, inputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Health of each hidden layer of a one-lane network, in eval mode, on inputs (1, n, features) and labels (1, n).

    `hidden1/mean`, `/std`: of the layer's outputs over samples and units. `/saturated`: share of outputs where the
    activation's slope is flat. `/dead`: share of units that are flat for every sample. `/grad_norm`: L2 norm of the
    probe loss's gradient with respect to the layer's weight matrix. Weights and running statistics stay as they are.
    """
    logits = network.forward(inputs, training=False)
    cross_entropy(logits, labels, gradient := lane_buffer(1, tuple(logits.shape[1:]), logits))
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


def histograms(network: Network, inputs: Tensor, bins: int = 60) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each hidden layer of a one-lane network, the share of outputs in each bin and the bins' edges."""
    network.forward(inputs, training=False)
    found = {}
    for name, _, _, output in _hidden(network, inputs.shape[1]):
        values = output.double().cpu().numpy()
        counts, edges = np.histogram(values[np.isfinite(values)], bins)
        found[name] = (counts / max(values.size, 1), edges)
    return found


Found = tuple[str, SimpleNamespace, tuple[Activation, SimpleNamespace] | None, Tensor]


def _hidden(network: Network, batch: int) -> Iterator[Found]:
    """Name, the linear's site, the activation with its site if there is one, and the output (n, units) of each hidden layer."""
    sites: list[tuple[Any, SimpleNamespace]] = network.sites(batch)
    starts = [i for i, (layer, _) in enumerate(sites) if isinstance(layer, Linear)]
    for number, (start, end) in enumerate(pairwise(starts), 1):
        block = sites[start:end][::-1]  # from the output back
        activation = next(((layer, at) for layer, at in block if isinstance(layer, Activation)), None)
        norm = next(at for _, at in block if hasattr(at, "weight"))  # the linear itself, where there is none
        yield f"hidden{number}", sites[start][1], activation, activation[1].h[0] if activation else norm.y[0]
