"""The notebook's two hand-written layers as torch modules, drop-in for torch.nn's; autograd differentiates them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BatchNorm1d(nn.Module):
    """Normalizes each feature over the batch: y = weight (x - mean) / sqrt(var + eps) + bias, x (batch, features).

    Ioffe & Szegedy 2015, arXiv:1502.03167. In train mode mean and (biased) variance are the batch's, and the running ones
    move by `momentum` towards the batch's mean and unbiased variance; in eval mode the running ones are used.
    State keys, shapes and errors are those of torch.nn.BatchNorm1d, so weights load both ways.

    Raises ValueError for inputs that are not (batch, features), or for a single sample in train mode.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dim() != 2:
            raise ValueError(f"expected 2D input (got {inputs.dim()}D input)")
        if self.training and len(inputs) == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {inputs.size()}")
        if inputs.shape[1] != self.num_features:
            raise RuntimeError(f"expected {self.num_features} features, got {inputs.shape[1]}")
        _check_dtype(inputs, self.weight)
        whole = inputs.to(self.weight.dtype)
        mean, var = self._statistics(whole) if self.training else (self.running_mean, self.running_var)
        return ((whole - mean) / torch.sqrt(var + self.eps) * self.weight + self.bias).to(inputs.dtype)

    def _statistics(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of the batch, (features,) each; moves the running ones."""
        batch = len(inputs)
        mean = inputs.mean(0)
        var = (inputs - mean).square().mean(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            if not batch:
                return mean, var
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * batch / (batch - 1), self.momentum)
        return mean, var

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class LayerNorm1d(nn.Module):
    """Normalizes each sample over its features: y = weight (x - mean) / sqrt(var + eps) + bias, x (batch, features).

    Ba et al. 2016, arXiv:1607.06450; the same in train and eval mode. State keys are those of torch.nn.LayerNorm.

    Raises RuntimeError for inputs whose last dimension is not `num_features`.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.shape[-1] != self.num_features:
            raise RuntimeError(
                f"expected input with shape [*, {self.num_features}], but got input of size {list(inputs.shape)}"
            )
        _check_dtype(inputs, self.weight)
        whole = inputs.to(self.weight.dtype)
        centered = whole - whole.mean(-1, keepdim=True)
        var = centered.square().mean(-1, keepdim=True)
        return (centered / torch.sqrt(var + self.eps) * self.weight + self.bias).to(inputs.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


def _check_dtype(inputs: Tensor, weight: Tensor) -> None:
    """Refuse what torch refuses: it takes half precision beside whole, as autocast has it, and no other mixture."""
    mixed = weight.dtype == torch.float32 and inputs.dtype in (torch.float16, torch.bfloat16)
    if inputs.dtype != weight.dtype and not mixed:
        raise RuntimeError(f"expected input of {weight.dtype}, as the weight is, but got {inputs.dtype}")
