"""The minibatches of one epoch: each seed's in its own order, and what the network said to every sample of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.components.layers import label_gradient
from harness.data import Split
from harness.network import lane_buffer
from harness.sparse import Sparse

# Samples of all orders that are made ready at once. Pixels that were gathered are soon used, while the cache holds them;
# finding lit ones empties it, so that is done seldom.
AHEAD = 768  # 24 minibatches of 32
LIT_AHEAD = 6144  # 192 minibatches of 32; twice as many gain nothing


class Batch(NamedTuple):
    """One minibatch of all lanes; `inputs` and `dlogits` are buffers, filled again for the next."""

    inputs: Any  # (lanes, batch, features): a tensor, or Sparse
    labels: Tensor  # (lanes, batch)
    d_log_p: Tensor  # (lanes, classes, batch): of the batch's mean loss, with respect to log_p
    log_p: Tensor  # (lanes, classes, batch): the log-probabilities, for the loop to write
    dlogits: Tensor  # (lanes, classes, batch): the loss's gradient, for the loop to write


class Minibatches:
    """To be walked through once; then `curves` tells what training saw.

    Labels, their gradients and log-probabilities are tensors of the whole epoch: a step then makes no other call for its
    loss than those that it learns from, where summing it up at each step took a tenth of the time.
    """

    def __init__(
        self, split: Split, orders: Tensor, lanes: Sequence[int], batch_size: int, classes: int, sparse: bool = False
    ) -> None:
        """`orders` (orders, samples) are rows of the split, `lanes` tells which of them each lane learns in.

        The last batch may be shorter. With `sparse`, inputs are the lit pixels alone, where the split has those.
        """
        self.split, self.classes, self.lit = split, classes, split.lit if sparse else None
        # lanes of a tensor may share all of their memory or none of it, and on a GPU nobody has tried whether that moves bits
        if self.lit is None and (len(orders) > 1 or split.pixels.is_cuda):
            orders, lanes = orders[lanes], range(len(lanes))
        whole = orders.shape[1] - orders.shape[1] % batch_size
        cuts = (orders[:, :whole].unflatten(1, (-1, batch_size)), orders[:, None, whole:])
        self.lanes = lanes
        self.rows = [cut.transpose(0, 1).contiguous() for cut in cuts if cut.numel()]  # (steps, orders, batch)
        self.labels = [split.labels[rows[:, lanes]] for rows in self.rows]  # (steps, lanes, batch)
        self.log_p = [torch.empty(*its.shape[:2], classes, its.shape[2], device=its.device) for its in self.labels]

    def __iter__(self) -> Iterator[Batch]:
        lanes, features = len(self.lanes), self.split.pixels.shape[1]
        for rows, labels, log_p in zip(self.rows, self.labels, self.log_p, strict=True):
            _, orders, batch = rows.shape
            inputs: Any
            if self.lit is None:
                inputs, ahead = log_p.new_empty(orders, batch, features).expand(lanes, -1, -1), AHEAD
            else:
                inputs, ahead = Sparse.empty(lanes, batch, features), LIT_AHEAD
            dlogits = lane_buffer(lanes, (self.classes, batch), log_p)
            steps = math.ceil(ahead / (orders * batch))
            parts = (part.split(steps) for part in (rows, labels, label_gradient(labels, log_p), log_p))
            for some, *its in zip(*parts, strict=True):
                for filled, its_labels, its_d_log_p, its_log_p in zip(self._filled(inputs, some), *its, strict=True):
                    yield Batch(filled, its_labels, its_d_log_p, its_log_p, dlogits)

    def _filled(self, inputs: Any, rows: Tensor) -> Iterator[Tensor | Sparse]:
        """`inputs`, filled for one step after the other, given their rows of the split, (steps, orders, batch)."""
        pixels, scale = self.split.pixels, self.split.scale
        if self.lit is not None:
            yield from self.lit.steps(rows, self.lanes, scale.write, inputs)
        else:
            memory = inputs[: rows.shape[1]]  # of the first lane, where all share it
            for some in pixels.index_select(0, rows.flatten()).unflatten(0, rows.shape):
                scale.write(some, memory)
                yield inputs

    def curves(self, lane: int) -> tuple[float, float]:
        """Mean loss and accuracy of a lane over the samples of the epoch, as they were trained."""
        log_p = torch.cat([part[:, lane].transpose(0, 1).flatten(1) for part in self.log_p], 1)
        return score(log_p, torch.cat([part[:, lane].flatten() for part in self.labels]))


def score(log_p: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy, given log-probabilities (classes, samples) and labels (samples,)."""
    losses = log_p.gather(0, labels[None]).double().neg_()
    most_likely = log_p.max(0).indices  # as argmax has it, in a sixth of its time
    return losses.mean().item(), most_likely.eq_(labels).double().mean().item()
