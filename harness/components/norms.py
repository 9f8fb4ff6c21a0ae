"""Normalizations: a row is a name, a class and its paper. x, y and their gradients are (lanes, batch, features).

`batchnorm` and `layernorm` call torch's own kernels, one lane at a time; the `_scratch` ones write the same formulas
out, as does `rmsnorm`. All use biased variances and eps = 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from harness.components.layers import Bound, Call, Layer, Shapes, Site, kernel
from harness.modules import BatchNorm1d, LayerNorm1d

aten = torch.ops.aten


class Formula:
    """A norm as one call forward, `_value`, and one back, `_gradient`."""

    _value: Callable[..., None]
    _gradient: Callable[..., None]

    def forward(self, at: Site, x: Tensor, training: bool) -> Bound:
        at.training = training
        return Bound(at.y, [partial(self._value, at, x, training)])

    def backward(self, at: Site, dy: Tensor) -> Bound:
        return Bound(at.dx, [partial(self._gradient, at, dy, at.training)])


@dataclass(frozen=True)
class BatchNormScratch(Formula):
    """y = weight (x - mean) / sqrt(var + eps) + bias, mean and var over the batch.  Ioffe & Szegedy 2015, arXiv:1502.03167.

    In eval mode mean and var are running averages over training batches: r <- (1 - momentum) r + momentum batch, with
    the unbiased variance, as torch has it (the paper's algorithm 2 averages over batches instead).
    """

    eps: float = 1e-5
    momentum: float = 0.1
    needs_two_samples: ClassVar[bool] = True  # one sample has no variance

    def module(self, features: int) -> nn.Module:
        return BatchNorm1d(features, self.eps, self.momentum)

    def parameters(self, features: int) -> Shapes:
        return {"weight": (features,), "bias": (features,)}

    def buffers(self, features: int) -> Shapes:
        return {"running_mean": (features,), "running_var": (features,)}

    def scratch(self, batch: int, features: int) -> Shapes:
        full, row = (batch, features), (1, features)
        return {"y": full, "xhat": full, "t": full, "dx": full, "mean": row, "inv": row, "row": row}

    def _value(self, at: Site, x: Tensor, training: bool) -> None:
        if training:
            torch.mean(x, 1, keepdim=True, out=at.mean)
            torch.sub(x, at.mean, out=at.xhat)
            torch.mean(torch.mul(at.xhat, at.xhat, out=at.t), 1, keepdim=True, out=at.inv)
            at.running_mean.lerp_(at.mean, self.momentum)
            at.running_var.lerp_(torch.mul(at.inv, x.shape[1] / (x.shape[1] - 1), out=at.row), self.momentum)
        else:
            torch.sub(x, at.running_mean, out=at.xhat)
            at.inv.copy_(at.running_var)
        at.inv.add_(self.eps).sqrt_().reciprocal_()
        at.xhat.mul_(at.inv)
        torch.mul(at.xhat, at.weight, out=at.y).add_(at.bias)

    def _gradient(self, at: Site, dy: Tensor, training: bool) -> None:
        """dx = weight / sqrt(var + eps) (dy - mean(dy) - xhat mean(dy xhat)); in eval mode the means are 0."""
        torch.sum(dy, 1, keepdim=True, out=at.d_bias)
        torch.sum(torch.mul(dy, at.xhat, out=at.t), 1, keepdim=True, out=at.d_weight)
        at.dx.copy_(dy)
        if training:
            batch = dy.shape[1]
            at.dx.sub_(torch.mul(at.d_bias, 1 / batch, out=at.row))
            at.dx.sub_(torch.mul(at.xhat, torch.mul(at.d_weight, 1 / batch, out=at.row), out=at.t))
        at.dx.mul_(torch.mul(at.inv, at.weight, out=at.row))


@dataclass(frozen=True)
class LayerNormScratch(Formula):
    """y = weight (x - mean) / sqrt(var + eps) + bias, mean and var over the features.  Ba et al. 2016, arXiv:1607.06450."""

    eps: float = 1e-5
    needs_two_samples: ClassVar[bool] = False

    def module(self, features: int) -> nn.Module:
        return LayerNorm1d(features, self.eps)

    def parameters(self, features: int) -> Shapes:
        return {"weight": (features,), "bias": (features,)}

    def buffers(self, features: int) -> Shapes:
        return {}

    def scratch(self, batch: int, features: int) -> Shapes:
        full, column = (batch, features), (batch, 1)
        return {"y": full, "xhat": full, "t": full, "dx": full, "inv": column, "column": column}

    def _value(self, at: Site, x: Tensor, training: bool) -> None:
        torch.sub(x, torch.mean(x, 2, keepdim=True, out=at.column), out=at.xhat)
        torch.mean(torch.mul(at.xhat, at.xhat, out=at.t), 2, keepdim=True, out=at.inv)
        at.xhat.mul_(at.inv.add_(self.eps).sqrt_().reciprocal_())
        torch.mul(at.xhat, at.weight, out=at.y).add_(at.bias)

    def _gradient(self, at: Site, dy: Tensor, training: bool) -> None:
        """With g = weight dy: dx = (g - mean(g) - xhat mean(g xhat)) / sqrt(var + eps), means over the features."""
        torch.sum(dy, 1, keepdim=True, out=at.d_bias)
        torch.sum(torch.mul(dy, at.xhat, out=at.t), 1, keepdim=True, out=at.d_weight)
        torch.mul(dy, at.weight, out=at.dx)
        torch.mean(torch.mul(at.dx, at.xhat, out=at.t), 2, keepdim=True, out=at.column)
        torch.mul(at.xhat, at.column, out=at.t)
        at.dx.sub_(torch.mean(at.dx, 2, keepdim=True, out=at.column)).sub_(at.t)
        at.dx.mul_(at.inv)


@dataclass(frozen=True)
class RMSNorm(Formula):
    """y = weight x / sqrt(mean(x^2) + eps), the mean over the features.  Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4."""

    eps: float = 1e-5
    needs_two_samples: ClassVar[bool] = False

    def module(self, features: int) -> nn.Module:
        return nn.RMSNorm(features, self.eps)

    def parameters(self, features: int) -> Shapes:
        return {"weight": (features,)}

    def buffers(self, features: int) -> Shapes:
        return {}

    def scratch(self, batch: int, features: int) -> Shapes:
        full, column = (batch, features), (batch, 1)
        return {"y": full, "xhat": full, "t": full, "dx": full, "inv": column, "column": column}

    def _value(self, at: Site, x: Tensor, training: bool) -> None:
        torch.mean(torch.mul(x, x, out=at.t), 2, keepdim=True, out=at.inv)
        torch.mul(x, at.inv.add_(self.eps).sqrt_().reciprocal_(), out=at.xhat)
        torch.mul(at.xhat, at.weight, out=at.y)

    def _gradient(self, at: Site, dy: Tensor, training: bool) -> None:
        """With g = weight dy: dx = (g - xhat mean(g xhat)) / sqrt(mean(x^2) + eps)."""
        torch.sum(torch.mul(dy, at.xhat, out=at.t), 1, keepdim=True, out=at.d_weight)
        torch.mul(dy, at.weight, out=at.dx)
        torch.mean(torch.mul(at.dx, at.xhat, out=at.t), 2, keepdim=True, out=at.column)
        at.dx.sub_(torch.mul(at.xhat, at.column, out=at.t)).mul_(at.inv)


class BatchNorm(BatchNormScratch):
    """The formula of BatchNormScratch by torch's native kernel, one lane at a time."""

    def module(self, features: int) -> nn.Module:
        return nn.BatchNorm1d(features, self.eps, self.momentum)

    def scratch(self, batch: int, features: int) -> Shapes:
        full, row = (batch, features), (1, features)
        return {"y": full, "dx": full, "mean": row, "inv": row}

    def forward(self, at: Site, x: Tensor, training: bool) -> Bound:
        at.x, at.training = x, training
        lanes = at.vectors("weight", "bias", "running_mean", "running_var", "mean", "inv")
        calls: list[Call] = [
            kernel(
                aten.native_batch_norm.out, x_k, weight, bias, running_mean, running_var, training, self.momentum, self.eps,
                out=y, save_mean=mean, save_invstd=inv,
            )
            for x_k, y, (weight, bias, running_mean, running_var, mean, inv) in zip(x, at.y, lanes, strict=True)
        ]  # fmt: skip
        return Bound(at.y, calls)

    def backward(self, at: Site, dy: Tensor) -> Bound:
        lanes = at.vectors("weight", "running_mean", "running_var", "mean", "inv", "d_weight", "d_bias")
        calls: list[Call] = [
            kernel(
                aten.native_batch_norm_backward.out, dy_k, x, weight, running_mean, running_var, mean, inv, at.training,
                self.eps, [True, True, True], out0=dx, out1=d_weight, out2=d_bias,
            )
            for dy_k, x, dx, (weight, running_mean, running_var, mean, inv, d_weight, d_bias)
            in zip(dy, at.x, at.dx, lanes, strict=True)
        ]  # fmt: skip
        return Bound(at.dx, calls)


class LayerNorm(LayerNormScratch):
    """The formula of LayerNormScratch by torch's native kernel, one lane at a time."""

    def module(self, features: int) -> nn.Module:
        return nn.LayerNorm(features, self.eps)

    def scratch(self, batch: int, features: int) -> Shapes:
        full, column = (batch, features), (batch, 1)
        return {"y": full, "dx": full, "mean": column, "inv": column}

    def forward(self, at: Site, x: Tensor, training: bool) -> Bound:
        at.x, lanes = x, at.vectors("weight", "bias")
        calls: list[Call] = [
            kernel(aten.native_layer_norm.out, x_k, [x.shape[2]], weight, bias, self.eps, out0=y, out1=mean, out2=inv)
            for x_k, y, mean, inv, (weight, bias) in zip(x, at.y, at.mean, at.inv, lanes, strict=True)
        ]  # fmt: skip
        return Bound(at.y, calls)

    def backward(self, at: Site, dy: Tensor) -> Bound:
        lanes = at.vectors("weight", "bias", "d_weight", "d_bias")
        calls: list[Call] = [
            kernel(
                aten.native_layer_norm_backward.out, dy_k, x, [dy.shape[2]], mean, inv, weight, bias, [True, True, True],
                out0=dx, out1=d_weight, out2=d_bias,
            )
            for dy_k, x, mean, inv, dx, (weight, bias, d_weight, d_bias)
            in zip(dy, at.x, at.mean, at.inv, at.dx, lanes, strict=True)
        ]  # fmt: skip
        return Bound(at.dx, calls)


@dataclass(frozen=True)
class ByAutograd(Formula):
    """Any torch module on (batch, features) whose state is its parameters, as a norm; its gradient is autograd's.

    Slower than a formula with its gradient, and as right: a row of the table is then one line.
    """

    make: Callable[[int], nn.Module]
    needs_two_samples: ClassVar[bool] = False

    def module(self, features: int) -> nn.Module:
        return self.make(features)

    def parameters(self, features: int) -> Shapes:
        with torch.device("meta"):
            return {name: tuple(value.shape) for name, value in self.make(features).named_parameters()}

    def buffers(self, features: int) -> Shapes:
        return {}

    def scratch(self, batch: int, features: int) -> Shapes:
        return {"y": (batch, features), "dx": (batch, features)}

    def _value(self, at: Site, x: Tensor, training: bool) -> None:
        names, at.graphs = list(self.parameters(x.shape[2])), []
        with torch.device("meta"):
            module = self.make(x.shape[2])
        with torch.enable_grad():
            for k in range(len(x)):
                inputs = [t.detach().requires_grad_() for t in (x[k], *(getattr(at, name)[k, 0] for name in names))]
                y = torch.func.functional_call(module, dict(zip(names, inputs[1:], strict=True)), (inputs[0],))
                at.graphs.append((y, inputs))
                at.y[k].copy_(y.detach())

    def _gradient(self, at: Site, dy: Tensor, training: bool) -> None:
        places = [at.dx[:, None], *(getattr(at, f"d_{name}") for name in self.parameters(dy.shape[2]))]
        for k, (y, inputs) in enumerate(at.graphs):
            for place, gradient in zip(places, torch.autograd.grad(y, inputs, dy[k]), strict=True):
                place[k, 0].copy_(gradient)


class Norm(Layer, Protocol):
    """A layer that also knows torch's module of it, and whether it can train on a single sample."""

    needs_two_samples: ClassVar[bool]

    def module(self, features: int) -> nn.Module:
        """The same norm as torch has it, for people and for tests to compare with."""
        ...


NORMS: Mapping[str, Norm | None] = {
    "none": None,
    "batchnorm": BatchNorm(),  # Ioffe & Szegedy 2015, arXiv:1502.03167
    "layernorm": LayerNorm(),  # Ba et al. 2016, arXiv:1607.06450
    "batchnorm_scratch": BatchNormScratch(),
    "layernorm_scratch": LayerNormScratch(),
    "rmsnorm": RMSNorm(),  # Zhang & Sennrich 2019, arXiv:1910.07467
}
