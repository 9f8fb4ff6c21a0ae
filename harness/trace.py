"""What a run passes through, as digests, so that a repetition can say where it first differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.architecture import Architecture
from harness.checkpoint import state_digest
from harness.config import RunConfig
from harness.data import Data
from harness.minibatches import score
from harness.network import Layout
from harness.results import EpochRecord, history_digest
from harness.training import Stack, step, subsets

FIRST = 20  # steps whose losses are kept
BEGINNINGS = ("split", "initial_weights", "first_permutation", "first_batch", "first_gradients", "first_losses")


def beginnings(arch: Architecture, config: RunConfig, data: Data) -> dict[str, Any]:
    """A run's first things in the order of BEGINNINGS: digests, and the losses of its first steps as hexadecimal floats.

    The steps are taken by a network of their own; a lane of any stack takes the same ones to the last bit.
    """
    stack = Stack.of(arch, [config], data)
    found: dict[str, Any] = {
        "split": _digest(*subsets(config, len(data.train))),
        "initial_weights": state_digest(stack.network.state(0)),
    }
    stack.epoch = 1
    stack.reseed_dropout()
    batches, losses = stack.batches(), list[str]()
    found["first_permutation"] = _digest(*(rows.flatten() for rows in batches.rows))
    for number, batch in enumerate(islice(batches, FIRST)):
        if number == 0:
            found["first_batch"] = _digest(batch.inputs.to_dense(), batch.labels)
        step(stack, batch)
        if number == 0:
            found["first_gradients"] = state_digest(Layout.of(arch, "parameters").state(stack.network.gradients[0]))
        losses.append(score(batch.log_p[0], batch.labels[0])[0].hex())
    return {**found, "first_losses": losses}


def whole(start: Mapping[str, Any], history: Sequence[EpochRecord]) -> dict[str, Any]:
    """The beginnings of a run with the digests of its weights after each epoch, 0 included, and of all its curves."""
    return {**start, "epochs": [done.state_digest for done in history], "metrics": history_digest(history)}


def _digest(*parts: Tensor | NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        array = torch.as_tensor(part).cpu().contiguous().numpy()
        digest.update(f"{array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
