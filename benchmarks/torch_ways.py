"""The ways people write it: the notebooks' loop, and PyTorch on tensors in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.contest import Epoch
from harness.architecture import build_network
from harness.config import RunConfig
from harness.data import Data
from harness.mirrors import torchvision_module

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}


def network(config: RunConfig) -> nn.Module:
    """The config's network as torch has it."""
    return build_network(config).train()


def notebook(config: RunConfig) -> Callable[[], Epoch]:
    """torchvision's dataset, ToTensor for every image, a DataLoader, torch.optim and `.item()` at every step."""

    def start() -> Epoch:
        torchvision = torchvision_module()
        from torchvision import transforms

        parts: list[Any] = [transforms.ToTensor()]
        if config.normalize == "standard":
            parts.append(transforms.Normalize((0.1307,), (0.3081,)))
        dataset = torchvision.MNIST(config.data_dir, train=True, transform=transforms.Compose(parts))
        loader = DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
        model = network(config)
        optimizer = OPTIMIZERS[config.optimizer](model.parameters(), lr=config.lr)

        def epoch() -> float:
            total, correct, began = 0.0, 0, time.perf_counter()
            for inputs, labels in loader:
                optimizer.zero_grad()
                logits = model(inputs)
                loss = F.cross_entropy(logits, labels)
                loss.backward()
                optimizer.step()
                total += loss.item()
                correct += int((logits.argmax(1) == labels).sum().item())
            return time.perf_counter() - began

        return with_autograd(epoch)

    return start


def in_memory(config: RunConfig, data: Data, **fast: bool) -> Callable[[], Epoch]:
    """All pixels as one tensor, batches by index, losses read once an epoch; `fast` goes to torch.optim (fused=True)."""

    def start() -> Epoch:
        model = network(config)
        optimizer = OPTIMIZERS[config.optimizer](model.parameters(), lr=config.lr, **fast)
        images, labels = data.train.images, data.train.labels

        def epoch() -> float:
            began, total = time.perf_counter(), torch.zeros(())
            for index in torch.randperm(len(labels)).split(config.batch_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images[index]), labels[index])
                loss.backward()
                optimizer.step()
                total += loss.detach()
            total.item()
            return time.perf_counter() - began

        return with_autograd(epoch)

    return start


def with_autograd(epoch: Epoch) -> Epoch:
    """An epoch as in a process of its own: autograd on, denormals as torch leaves them."""

    def alone() -> float:
        torch.set_flush_denormal(False)
        with torch.enable_grad():
            return epoch()

    return alone
