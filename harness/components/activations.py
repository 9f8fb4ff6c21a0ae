"""Activations: a row is a name, torch's module and its paper, and for speed the kernels that write into a buffer.

`value(z, out)` answers with the call that writes f(z), `gradient(dh, z, h, out)` with the one that writes dh f'(z), given
h = f(z). A row without them computes f by its module and the gradient by autograd of that one function, which is slower and
as right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from harness.components.layers import Bound, Call, Shapes, Site, kernel

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """h = f(z), elementwise. Buffers: z, h and dz are (lanes, batch, features)."""

    module: Callable[[], nn.Module]
    value: Callable[[Tensor, Tensor], Call] | None = None
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor], Call] | None = None

    def parameters(self, features: int) -> Shapes:
        return {}

    def buffers(self, features: int) -> Shapes:
        return {}

    def scratch(self, batch: int, features: int) -> Shapes:
        return {"h": (batch, features), "dz": (batch, features)}

    def forward(self, at: Site, z: Tensor, training: bool) -> Bound:
        at.z = z
        return Bound(at.h, [self.value(z, at.h) if self.value else partial(self._by_module, z, at.h)])

    def _by_module(self, z: Tensor, out: Tensor) -> None:
        for lane_z, lane_out in zip(z, out, strict=True):  # one lane at a time: the calls a lane would make alone
            lane_out.copy_(self.module()(lane_z))

    def backward(self, at: Site, dh: Tensor) -> Bound:
        """dz = dh f'(z)."""
        given = dh, at.z, at.h, at.dz
        return Bound(at.dz, [self.gradient(*given) if self.gradient else partial(self._by_autograd, *given)])

    def _by_autograd(self, dh: Tensor, z: Tensor, h: Tensor, out: Tensor) -> None:
        with torch.enable_grad():
            for lane_dh, lane_z, lane_out in zip(dh, z, out, strict=True):
                leaf = lane_z.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.module()(leaf), leaf, lane_dh)
                lane_out.copy_(gradient)

    def derivative(self, at: Site) -> Tensor:
        """f'(z) of the values that forward's call saw last, (lanes, batch, features), in a buffer of the site."""
        out, (call,) = self.backward(at, torch.ones_like(at.z))
        call()
        return out


def _gelu(z: Tensor, out: Tensor) -> Tensor:
    """z Phi(z), written out: torch's gelu takes another kernel, with other bits, for lanes that have padding between them."""
    return torch.mul(z, 1 / math.sqrt(2), out=out).erf_().add_(1).mul_(0.5).mul_(z)


def _gelu_gradient(dh: Tensor, z: Tensor, out: Tensor) -> Tensor:
    """dh (Phi(z) + z phi(z)), with Phi and phi the normal distribution and its density."""
    torch.mul(z, z, out=out).mul_(-0.5).exp_()
    slope_of_phi = out * z * (1 / math.sqrt(2 * math.pi))
    return torch.mul(z, 1 / math.sqrt(2), out=out).erf_().add_(1).mul_(0.5).add_(slope_of_phi).mul_(dh)


SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # the paper's eq. 14


def _tanh(z: Tensor, out: Tensor) -> Call:
    """tanh(z), on the CPU by NumPy: off by at most 1.8 ulp where torch is by 1.0, in a sixth of its time (AVX-512)."""
    if z.device.type != "cpu":
        return partial(torch.tanh, z, out=out)
    return partial(np.tanh, z.numpy(), out=out.numpy())


ACTIVATIONS: Mapping[str, Activation] = {
    # LeCun et al. 1998, Efficient BackProp, section 4.4
    "tanh": Activation(
        nn.Tanh,
        _tanh,
        lambda dh, z, h, out: kernel(aten.tanh_backward.grad_input, dh, h, grad_input=out),
    ),
    # Nair & Hinton 2010, ICML
    "relu": Activation(
        nn.ReLU,
        lambda z, out: partial(torch.clamp_min, z, 0, out=out),
        lambda dh, z, h, out: kernel(aten.threshold_backward.grad_input, dh, z, 0, grad_input=out),
    ),
    # Maas et al. 2013, ICML workshop; slope 0.01 below zero
    "leaky_relu": Activation(
        nn.LeakyReLU,
        lambda z, out: kernel(aten.leaky_relu.out, z, 0.01, out=out),
        lambda dh, z, h, out: kernel(aten.leaky_relu_backward.grad_input, dh, z, 0.01, False, grad_input=out),
    ),
    # Elfwing et al. 2017, arXiv:1702.03118
    "silu": Activation(
        nn.SiLU,
        lambda z, out: kernel(aten.silu.out, z, out=out),
        lambda dh, z, h, out: kernel(aten.silu_backward.grad_input, dh, z, grad_input=out),
    ),
    # Hendrycks & Gimpel 2016, arXiv:1606.08415; z Phi(z), the exact form
    "gelu": Activation(
        nn.GELU,
        lambda z, out: partial(_gelu, z, out),
        lambda dh, z, h, out: partial(_gelu_gradient, dh, z, out),
    ),
    # Clevert et al. 2015, arXiv:1511.07289
    "elu": Activation(
        nn.ELU,
        lambda z, out: kernel(aten.elu.out, z, out=out),
        lambda dh, z, h, out: kernel(aten.elu_backward.grad_input, dh, 1, 1, 1, True, h, grad_input=out),
    ),
    # Klambauer et al. 2017, arXiv:1706.02515
    "selu": Activation(
        nn.SELU,
        lambda z, out: kernel(aten.elu.out, z, SELU_ALPHA, SELU_SCALE, out=out),
        lambda dh, z, h, out: kernel(aten.elu_backward.grad_input, dh, SELU_ALPHA, SELU_SCALE, 1, True, h, grad_input=out),
    ),
    # the logistic function
    "sigmoid": Activation(
        nn.Sigmoid,
        lambda z, out: partial(torch.sigmoid, z, out=out),
        lambda dh, z, h, out: kernel(aten.sigmoid_backward.grad_input, dh, h, grad_input=out),
    ),
    # Dugas et al. 2001, NeurIPS
    "softplus": Activation(
        nn.Softplus,
        lambda z, out: kernel(aten.softplus.out, z, out=out),
        lambda dh, z, h, out: kernel(aten.softplus_backward.grad_input, dh, z, 1, 20, grad_input=out),
    ),
    # Collobert 2004, thesis: z cut to [-1, 1]
    "hardtanh": Activation(
        nn.Hardtanh,
        lambda z, out: partial(torch.clamp, z, -1, 1, out=out),
        lambda dh, z, h, out: kernel(aten.hardtanh_backward.grad_input, dh, z, -1, 1, grad_input=out),
    ),
    # no activation: the network is linear
    "identity": Activation(nn.Identity, lambda z, out: partial(out.copy_, z), lambda dh, z, h, out: partial(out.copy_, dh)),
}
