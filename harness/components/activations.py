"""Activations: a row is a name, torch's module and its paper; the slope is there for speed and for the health probe.

`value(z, out)` writes f(z); `slope(z, h, out)` writes f'(z), given h = f(z). A row without them computes f by its module
and f' by autograd of that one function, which is slower and as right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.components.layers import Shapes, Site

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """h = f(z), elementwise. Buffers: z, h and the slope are (lanes, batch, features)."""

    module: Callable[[], nn.Module]
    value: Callable[[Tensor, Tensor], Tensor] | None = None
    slope: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def parameters(self, features: int) -> Shapes:
        return {}

    def buffers(self, features: int) -> Shapes:
        return {}

    def scratch(self, batch: int, features: int) -> Shapes:
        return {"h": (batch, features), "s": (batch, features)}

    def forward(self, at: Site, z: Tensor, training: bool) -> Tensor:
        at.z = z
        if self.value is not None:
            return self.value(z, at.h)
        for lane_z, lane_h in zip(z, at.h, strict=True):  # one lane at a time: the calls a lane would make alone
            lane_h.copy_(self.module()(lane_z))
        return at.h

    def derivative(self, at: Site) -> Tensor:
        """f'(z) of the last forward, (lanes, batch, features), in a buffer of the site."""
        if self.slope is not None:
            return self.slope(at.z, at.h, at.s)
        with torch.enable_grad():
            for lane_z, lane_s in zip(at.z, at.s, strict=True):
                z = lane_z.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.module()(z).sum(), z)
                lane_s.copy_(gradient)
        return at.s

    def backward(self, at: Site, dh: Tensor) -> Tensor:
        """dz = dh f'(z)."""
        return self.derivative(at).mul_(dh)


def _silu_slope(z: Tensor, h: Tensor, out: Tensor) -> Tensor:
    """s + h (1 - s), with s the logistic function of z."""
    torch.sigmoid(z, out=out)
    return out.add_(h * (1 - out))


def _gelu(z: Tensor, out: Tensor) -> Tensor:
    """z Phi(z), written out: torch's gelu takes another kernel, with other bits, for lanes that have padding between them."""
    return torch.mul(z, 1 / math.sqrt(2), out=out).erf_().add_(1).mul_(0.5).mul_(z)


def _gelu_slope(z: Tensor, h: Tensor, out: Tensor) -> Tensor:
    """Phi(z) + z phi(z), with Phi and phi the normal distribution and its density."""
    torch.mul(z, z, out=out).mul_(-0.5).exp_()
    slope_of_phi = out * z * (1 / math.sqrt(2 * math.pi))
    return torch.mul(z, 1 / math.sqrt(2), out=out).erf_().add_(1).mul_(0.5).add_(slope_of_phi)


SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # the paper's eq. 14

ACTIVATIONS: Mapping[str, Activation] = {
    # LeCun et al. 1998, Efficient BackProp, section 4.4; tanh' = 1 - tanh^2
    "tanh": Activation(
        nn.Tanh,
        lambda z, out: torch.tanh(z, out=out),
        lambda z, h, out: torch.mul(h, h, out=out).neg_().add_(1),
    ),
    # Nair & Hinton 2010, ICML
    "relu": Activation(
        nn.ReLU,
        lambda z, out: torch.clamp_min(z, 0, out=out),
        lambda z, h, out: torch.gt(z, 0, out=out),
    ),
    # Maas et al. 2013, ICML workshop; slope 0.01 below zero
    "leaky_relu": Activation(
        nn.LeakyReLU,
        lambda z, out: aten.leaky_relu.out(z, 0.01, out=out),
        lambda z, h, out: torch.gt(z, 0, out=out).mul_(0.99).add_(0.01),
    ),
    # Elfwing et al. 2017, arXiv:1702.03118
    "silu": Activation(nn.SiLU, lambda z, out: aten.silu.out(z, out=out), _silu_slope),
    # Hendrycks & Gimpel 2016, arXiv:1606.08415; z Phi(z), the exact form
    "gelu": Activation(nn.GELU, _gelu, _gelu_slope),
    # Clevert et al. 2015, arXiv:1511.07289; h + 1 = exp(z) below zero
    "elu": Activation(
        nn.ELU,
        lambda z, out: aten.elu.out(z, out=out),
        lambda z, h, out: torch.clamp_max(h, 0, out=out).add_(1),
    ),
    # Klambauer et al. 2017, arXiv:1706.02515; below zero h + scale alpha = scale alpha exp(z)
    "selu": Activation(
        nn.SELU,
        lambda z, out: aten.elu.out(z, SELU_ALPHA, SELU_SCALE, out=out),
        lambda z, h, out: torch.add(h, SELU_SCALE * SELU_ALPHA, out=out).masked_fill_(z > 0, SELU_SCALE),
    ),
    # the logistic function; s' = s (1 - s)
    "sigmoid": Activation(
        nn.Sigmoid,
        lambda z, out: torch.sigmoid(z, out=out),
        lambda z, h, out: torch.mul(h, h, out=out).neg_().add_(h),
    ),
    # Dugas et al. 2001, NeurIPS; its slope is the logistic function
    "softplus": Activation(
        nn.Softplus,
        lambda z, out: aten.softplus.out(z, out=out),
        lambda z, h, out: torch.sigmoid(z, out=out),
    ),
    # Collobert 2004, thesis: z cut to [-1, 1]
    "hardtanh": Activation(
        nn.Hardtanh,
        lambda z, out: torch.clamp(z, -1, 1, out=out),
        lambda z, h, out: torch.lt(z.abs(), 1, out=out),
    ),
    # no activation: the network is linear
    "identity": Activation(nn.Identity, lambda z, out: out.copy_(z), lambda z, h, out: out.fill_(1)),
}
