"""Initializations: how the weights of a linear layer start. A row is a name, a formula and its paper.

A function fills the weight of one layer, (out, in), from a stream; biases start at 0 and norms at scale 1, shift 0,
unless the row says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float32]


def _normal(out: int, fan_in: int, rng: Generator) -> Array:
    return rng.standard_normal((out, fan_in), dtype=np.float32)


def _orthogonal(out: int, fan_in: int, rng: Generator) -> Array:
    """Rows (or columns, where there are fewer) orthonormal, uniform over all such matrices.

    The sign of R's diagonal is moved into Q, as Mezzadri 2007, arXiv:math-ph/0609050, requires for uniformity.
    """
    tall = torch.from_numpy(rng.standard_normal((max(out, fan_in), min(out, fan_in))))
    q, r = torch.linalg.qr(tall)
    q = (q * r.diagonal().sign()).float().numpy()
    return np.ascontiguousarray(q if out >= fan_in else q.T)


def _uniform(shape: tuple[int, ...], fan_in: int, rng: Generator) -> Array:
    return (rng.random(shape, dtype=np.float32) * 2 - 1) * np.float32(fan_in**-0.5)


@dataclass(frozen=True)
class Init:
    """`weight(out, fan_in, rng)`, and for what is not a weight, `rest(shape, fan_in, rng)` where it is not constant.

    `norms` says whether `rest` also draws the scale and shift of norms.
    """

    weight: Callable[[int, int, Generator], Array]
    rest: Callable[[tuple[int, ...], int, Generator], Array] | None = None
    norms: bool = False


INITS: Mapping[str, Init] = {
    # every parameter from N(0, 1), biases and norms too: the study's deliberately bad start
    "normal": Init(_normal, rest=lambda shape, fan_in, rng: rng.standard_normal(shape, dtype=np.float32), norms=True),
    # He et al. 2015, arXiv:1502.01852, eq. 10: N(0, 2 / fan_in)
    "kaiming": Init(lambda out, fan_in, rng: _normal(out, fan_in, rng) * np.float32((2 / fan_in) ** 0.5)),
    # Glorot & Bengio 2010, AISTATS, eq. 12, as a normal: N(0, 2 / (fan_in + out))
    "xavier": Init(lambda out, fan_in, rng: _normal(out, fan_in, rng) * np.float32((2 / (fan_in + out)) ** 0.5)),
    # LeCun et al. 1998, Efficient BackProp, eq. 16: N(0, 1 / fan_in)
    "lecun": Init(lambda out, fan_in, rng: _normal(out, fan_in, rng) * np.float32(fan_in**-0.5)),
    # Saxe et al. 2014, arXiv:1312.6120
    "orthogonal": Init(_orthogonal),
    # nn.Linear's default: weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    "torch": Init(lambda out, fan_in, rng: _uniform((out, fan_in), fan_in, rng), rest=_uniform),
}
