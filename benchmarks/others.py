"""Other libraries on the same network and data, where they are installed: pip install -e '.[bench]'."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.contest import LIMIT, NOTEBOOK, Contender, Epoch
from benchmarks.torch_ways import network, with_autograd
from harness.config import RunConfig
from harness.data import Data
from harness.mirrors import torchvision_module


def contenders(config: RunConfig, data: Data, say: Callable[[str], None]) -> Iterator[Contender]:
    """Those that can be imported; the others are named and left out."""
    for name, start in (
        ("JAX jit(scan)", _jax),
        ("Lightning", _lightning),
        ("Keras 3, jax", _keras),
        ("scikit-learn", _sklearn),
    ):
        try:
            yield Contender(name, start(config, data), NOTEBOOK, LIMIT)
        except ImportError as error:
            say(f"left out: {name}: {error}")


def _jax(config: RunConfig, data: Data) -> Callable[[], Epoch]:
    """The whole epoch as one compiled scan: gradients by jax.grad, Adam by optax, losses summed on the way."""
    import jax
    import jax.numpy as jnp
    import optax

    images, labels = jnp.asarray(data.train.images.numpy()), jnp.asarray(data.train.labels.numpy())
    steps, batch = len(data.train) // config.batch_size, config.batch_size
    rule = {"adam": optax.adam, "sgd": optax.sgd, "rmsprop": optax.rmsprop}[config.optimizer](config.lr)

    def loss(weights: Any, inputs: Any, wanted: Any) -> Any:
        hidden = jnp.tanh(inputs @ weights[0] + weights[1])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ weights[2] + weights[3], wanted).mean()

    @jax.jit
    def epoch(weights: Any, state: Any, key: Any) -> Any:
        order = jax.random.permutation(key, len(labels))[: steps * batch].reshape(steps, batch)

        def step(carry: Any, index: Any) -> Any:
            weights, state = carry
            value, gradient = jax.value_and_grad(loss)(weights, images[index], labels[index])
            updates, state = rule.update(gradient, state)
            return (optax.apply_updates(weights, updates), state), value

        (weights, state), losses = jax.lax.scan(step, (weights, state), order)
        return weights, state, losses.mean()

    def start() -> Epoch:
        state_dict = network(config).state_dict().values()
        weights: Any = [jnp.asarray(t.numpy().T) for t in state_dict]
        state, key = rule.init(weights), jax.random.key(0)

        def run() -> float:
            nonlocal weights, state, key
            began = time.perf_counter()
            key, used = jax.random.split(key)
            weights, state, mean = epoch(weights, state, used)
            mean.block_until_ready()
            return time.perf_counter() - began

        return run

    return start


def _lightning(config: RunConfig, data: Data) -> Callable[[], Epoch]:
    """A LightningModule on a DataLoader of tensors in memory, everything optional switched off."""
    import logging

    torchvision_module()  # lightning imports it, and PyPI's is broken beside a torch without CUDA
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network(config)

        def training_step(self, batch: Any, index: int) -> Any:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=config.lr)

    def start() -> Epoch:
        dataset = torch.utils.data.TensorDataset(data.train.images, data.train.labels)
        loader = torch.utils.data.DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
        module = Module()
        off = {f"enable_{part}": False for part in ("checkpointing", "progress_bar", "model_summary")} | {"logger": False}

        def run() -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **off)
                began = time.perf_counter()
                trainer.fit(module, loader)
                return time.perf_counter() - began

        return with_autograd(run)

    return start


def _keras(config: RunConfig, data: Data) -> Callable[[], Epoch]:
    """A Sequential and fit() on arrays."""
    import os

    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    def start() -> Epoch:
        layers = [keras.layers.Dense(config.hidden_dim, activation="tanh"), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input((784,)), *layers])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(config.lr), loss)
        images, labels = data.train.images.numpy(), data.train.labels.numpy()

        def run() -> float:
            began = time.perf_counter()
            model.fit(images, labels, batch_size=config.batch_size, epochs=1, verbose=0)
            return time.perf_counter() - began

        return run

    return start


def _sklearn(config: RunConfig, data: Data) -> Callable[[], Epoch]:
    """MLPClassifier with one more iteration at a call."""
    from sklearn.neural_network import MLPClassifier

    def start() -> Epoch:
        model = MLPClassifier(
            (config.hidden_dim,), activation="tanh", batch_size=config.batch_size, learning_rate_init=config.lr,
            alpha=0, max_iter=1, warm_start=True, n_iter_no_change=10**6,
        )  # fmt: skip
        images, labels = data.train.images.numpy(), data.train.labels.numpy()

        def run() -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                began = time.perf_counter()
                model.fit(images, labels)
                return time.perf_counter() - began

        return run

    return start
