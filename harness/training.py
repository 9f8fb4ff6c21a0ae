"""The loop: K runs of one shape train as one stack, and each epoch yields a plain record for every lane."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness import health, memory
from harness.architecture import Architecture, State, initial_state
from harness.components.layers import Call, Dropout, Linear, log_softmax, logit_gradient
from harness.components.optimizers import OPTIMIZERS, Optimizer, Rows
from harness.config import RunConfig
from harness.data import Data
from harness.errors import InputError, refusal
from harness.limits import MOST_NUMBERS
from harness.minibatches import Batch, Minibatches, score
from harness.network import Layout, Network
from harness.results import EpochRecord, has_diverged
from harness.seeding import stream
from harness.sparse import pays

EVALUATION_BATCH = 1000  # samples; part of every result, as products of other shapes round differently
MAY_DIFFER = ("init", "seed", "lr", "weight_decay")  # in what lanes of one stack may differ
Index = NDArray[np.int64]


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """One thread, whole float32, no denormals, no autograd: the arithmetic that every run is made of. Restores the process's
    settings.
    """
    threads, grad, dtype = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    backends: Any = torch.backends
    products = (backends.cuda.matmul, backends.mkldnn.matmul)
    precisions = [product.fp32_precision for product in products]
    flushed = not (torch.full((8,), 1e-39, dtype=torch.float32) * 0.5).any()  # torch tells of the other two, not of this one
    torch.set_num_threads(1)  # two threads gave other bits from one process to the next
    torch.set_flush_denormal(True)  # moments of pixels that are never lit decay into denormals, which are slow
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float32)
    for product in products:
        product.fp32_precision = "ieee"  # not TF32 or bfloat16, whatever the process asked for
    try:
        yield
    finally:
        for product, precision in zip(products, precisions, strict=True):
            product.fp32_precision = "none"  # as the backend has it, where it was so before
            if product.fp32_precision != precision:
                product.fp32_precision = precision
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)
        torch.set_grad_enabled(grad)


@dataclass
class Stack:
    """K runs of one shape: their network, optimizer state and shares of the data. One lane alone is K = 1."""

    arch: Architecture
    configs: Sequence[RunConfig]
    data: Data
    network: Network
    kept: list[Tensor]  # (lanes, parameters) each: the optimizer's moments
    optimizer: Optimizer
    updates: list[Call]  # its steps, each of the lanes of one lr and weight_decay
    counter: Tensor  # (), the number of steps, for the optimizer to read
    train: list[Index]  # of each lane: rows of the training set it learns from
    held_out: list[Index]  # and those it does not
    epoch: int = 0
    steps: int = 0  # taken so far
    start: dict[int, Mapping[str, float]] = field(default_factory=dict)  # of each lane: its curves at epoch 0
    probed: dict[int, Tensor] = field(default_factory=dict)  # of each lane: rows of its probe batch
    diverged: set[int] = field(default_factory=set)
    evaluation: dict[int, float] = field(default_factory=dict)  # of each lane: its seconds of evaluation in this process
    lanes: list[Network] = field(default_factory=list)  # each lane as a network of its own

    @classmethod
    def of(cls, arch: Architecture, configs: Sequence[RunConfig], data: Data) -> Stack:
        """A stack before training. Raises InputError when two configs differ in what all lanes share."""
        first = configs[0]
        for name in RunConfig.model_fields:
            if name not in MAY_DIFFER and len({getattr(config, name) for config in configs}) > 1:
                raise InputError(f"lanes of one stack must share {name}; they may differ in {', '.join(MAY_DIFFER)}")
        network = Network.zeros(arch, len(configs), first.device)
        lanes = [network.lane(k) for k in range(len(configs))]
        for k, config in enumerate(configs):
            network.load(k, initial_state(arch, config.init, config.seed))
        optimizer = OPTIMIZERS[first.optimizer]
        kept = [memory.zeros(*network.weights.shape, device=first.device) for _ in optimizer.moments]
        counter = torch.zeros((), device=first.device)
        alike: dict[tuple[float, float], list[int]] = {}
        for k, config in enumerate(configs):
            alike.setdefault((config.lr, config.weight_decay), []).append(k)
        updates = [
            optimizer.update(Rows(
                [network.weights[k] for k in ks], [network.gradients[k] for k in ks],
                tuple([moment[k] for k in ks] for moment in kept), [counter] * len(ks), *shared,
            ))
            for shared, ks in alike.items()
        ]  # fmt: skip
        parts = [subsets(config, len(data.train)) for config in configs]
        return cls(
            arch,
            configs,
            data,
            network,
            kept,
            optimizer,
            updates,
            counter,
            [p[0] for p in parts],
            [p[1] for p in parts],
            lanes=lanes,
        )

    def batches(self) -> Minibatches:
        """The minibatches of this epoch, drawn once for all lanes of a seed."""
        config = self.configs[0]
        learned = {c.seed: rows for c, rows in zip(self.configs, self.train, strict=True)}
        orders = np.stack([stream(seed, "shuffle", self.epoch).permutation(rows) for seed, rows in learned.items()])
        some = torch.from_numpy(orders[:, : config.max_batches * config.batch_size or None]).to(config.device)
        lanes = [list(learned).index(c.seed) for c in self.configs]
        return Minibatches(self.data.train, some, lanes, config.batch_size, self.arch.num_classes, self.sparse)

    @property
    def sparse(self) -> bool:
        """Whether the first layer multiplies lit pixels alone, of data that has them."""
        first = self.arch.layers[0].layer
        return type(first) is Linear and pays(first.size, self.configs[0].batch_size)

    def reseed_dropout(self) -> None:
        """Give each dropout layer the streams of this epoch."""
        names = [placed.name for placed in self.arch.layers if isinstance(placed.layer, Dropout)]
        for i, name in enumerate(names):
            self.network.reseed(name, [stream(c.seed, "dropout", self.epoch, i) for c in self.configs])

    def probe(self, lane: int) -> tuple[Tensor, Tensor]:
        """A lane's fixed probe batch out of what it learns from: inputs (1, n, features), labels (1, n)."""
        if lane not in self.probed:
            rows = stream(self.configs[lane].seed, "probe").permutation(self.train[lane])[: health.PROBE_SAMPLES]
            self.probed[lane] = torch.from_numpy(rows).to(self.configs[0].device)
        some = self.data.train[self.probed[lane]]
        return some.images[None], some.labels[None]

    def moments(self, lane: int) -> dict[str, State]:
        """A copy of a lane's optimizer state, in the weights' names and layout."""
        layout, names = Layout.of(self.arch, "parameters"), self.optimizer.moments
        return {name: layout.state(moment[lane]) for name, moment in zip(names, self.kept, strict=True)}

    def restore(self, lane: int, epoch: int, steps: int, state: State, moments: Mapping[str, State]) -> None:
        """Put a lane back where `epoch`, `steps`, `network.state(lane)` and `moments(lane)` were taken.

        Raises ValueError when another lane was put back at another epoch: all lanes of a stack take the same steps.
        """
        if self.epoch not in (0, epoch):
            raise ValueError(f"lane {lane} was at epoch {epoch}, the stack is at {self.epoch}")
        self.network.load(lane, state)
        layout, names = Layout.of(self.arch, "parameters"), self.optimizer.moments
        for name, moment in zip(names, self.kept, strict=True):
            layout.load(moment[lane], moments[name])
        self.steps = steps
        self.epoch = epoch


def subsets(config: RunConfig, samples: int) -> tuple[Index, Index]:
    """The rows of the training set that a run learns from and those that it holds out, by the seed's own split."""
    if not config.validation:
        return np.arange(samples), np.arange(0)
    order = stream(config.seed, "subset", 1).permutation(samples)  # without an index it is the split of a dataset
    held_out = round(samples * config.validation)
    return order[held_out:], order[:held_out]


def sample_counts(config: RunConfig, data: Data) -> dict[str, int]:
    """How many samples a run learns from in an epoch (`train`), holds out (`val`) and is tested on (`test`)."""
    learned, held_out = map(len, subsets(config, len(data.train)))
    most = config.max_batches * config.batch_size or max(learned, held_out, len(data.test))
    return {"train": min(learned, most), "val": min(held_out, most), "test": min(len(data.test), most)}


def check(arch: Architecture, config: RunConfig, data: Data) -> None:
    """Raise InputError, in one line, when a config cannot train on this data."""
    pixels, (learned, held_out) = data.train.pixels.shape[1], map(len, subsets(config, len(data.train)))
    for name, given, wanted in (("input_size", arch.input_size, pixels), ("num_classes", arch.num_classes, data.num_classes)):
        if given != wanted:
            raise InputError(refusal(f"layer list {name}", given, f"{wanted}, as {data.name} has it"))
    if config.validation and not (held_out and learned):
        text = f"a share that leaves {data.name}'s {len(data.train)} training samples on both sides"
        raise InputError(refusal("validation", config.validation, text))
    if config.batch_size > learned:
        raise InputError(refusal("batch_size", config.batch_size, f"at most {learned}, the training samples of {data.name}"))
    if (count := numbers(arch, config, len(data.test))) > MOST_NUMBERS:
        raise InputError(
            f"batch_size={config.batch_size}, {len(arch.layers)} layers and {arch.parameters} parameters take {count} numbers "
            f"in memory; allowed: at most {MOST_NUMBERS}"
        )
    full, last = divmod(learned, config.batch_size)
    trains_last = last and (not config.max_batches or config.max_batches > full)
    if arch.needs_two_samples and (config.batch_size == 1 or (trains_last and last == 1)):
        raise InputError(
            f"batch_size={config.batch_size} leaves a last batch of one of {learned} training samples, "
            f"which has no variance for batchnorm; allowed: a batch_size that leaves none or more than one"
        )


def numbers(arch: Architecture, config: RunConfig, tested: int) -> int:
    """How many float32 a run works on: weights, gradients and moments, and what layers keep of a batch, trained or tested."""
    moments = len(OPTIMIZERS[config.optimizer].moments)
    shapes = (
        shape
        for batch in (config.batch_size, min(EVALUATION_BATCH, tested))
        for placed in arch.layers
        for shape in placed.layer.scratch(batch, placed.features).values()
    )
    return (2 + moments) * arch.parameters + sum(map(math.prod, shapes))


def train(stack: Stack, probe: bool = True) -> Iterator[EpochRecord]:
    """Train all lanes to the last epoch; yields one record a lane and epoch, first of all epoch 0, before training.

    A lane that diverges yields its last record then. While a record is held, its lane stands at that epoch.
    """
    config, lanes = stack.configs[0], len(stack.configs)
    if stack.sparse:
        _ = stack.data.train.lit  # found once in a process, which is no epoch's time
    if stack.epoch == 0:
        yield from (measured(stack, lane, probe) for lane in range(lanes))
    while stack.epoch < config.epochs and len(stack.diverged) < lanes:
        stack.epoch += 1
        start = time.perf_counter()  # an epoch shuffles, too
        stack.reseed_dropout()
        batches = stack.batches()
        for batch in batches:
            step(stack, batch)
        means = [batches.curves(lane) for lane in range(lanes)]
        seconds = (time.perf_counter() - start) / lanes
        for lane in sorted(set(range(lanes)) - stack.diverged):
            trained = dict(zip(("train/loss", "train/accuracy"), means[lane], strict=True))
            yield (done := measured(stack, lane, probe, trained, seconds))
            if done.diverged:
                stack.diverged.add(lane)


def step(stack: Stack, batch: Batch) -> None:
    """All lanes learn from a minibatch: forward, the loss's gradient, backward, update."""
    logits = stack.network.forward(batch.inputs, training=True)
    log_softmax(logits, out=batch.log_p)
    stack.network.backward(logit_gradient(batch.d_log_p, batch.log_p, batch.dlogits))
    stack.steps += 1
    stack.counter.fill_(stack.steps)  # in less time than adding 1 takes
    for update in stack.updates:
        update()


def measured(
    stack: Stack, lane: int, probe: bool, trained: Mapping[str, float] = {}, seconds: float | None = None
) -> EpochRecord:
    """A lane's record of this epoch: what training saw, validation and test in eval mode, and the health of its layers."""
    curves = dict(trained)
    with _timed(stack, lane):
        if len(stack.held_out[lane]):
            curves |= evaluate(stack, lane, "val")
        curves |= evaluate(stack, lane, "test")
        health_of = health.measure(stack.lanes[lane], *stack.probe(lane)) if probe else {}
    start = stack.start.setdefault(lane, curves)
    diverged = stack.epoch > 0 and has_diverged(curves, start, stack.data.num_classes)
    return EpochRecord(stack.epoch, curves, lane, health_of, seconds, diverged)


def finals(stack: Stack, lane: int, end: EpochRecord) -> dict[str, float]:
    """A lane's curves after its last epoch, all of them in eval mode, the training loss too."""
    with _timed(stack, lane):
        return {**end.curves, **evaluate(stack, lane, "train")}


@contextmanager
def _timed(stack: Stack, lane: int) -> Iterator[None]:
    """Count this as evaluation of a lane."""
    start = time.perf_counter()
    yield
    stack.evaluation[lane] = stack.evaluation.get(lane, 0.0) + time.perf_counter() - start


def evaluate(stack: Stack, lane: int, part: str) -> dict[str, float]:
    """`{part}/loss` and `{part}/accuracy` of a lane in eval mode; `part` is train, val or test.

    With max_batches = n, on the first n * batch_size of them.
    """
    config, data, network = stack.configs[lane], stack.data, stack.lanes[lane]
    split, most = data.test if part == "test" else data.train, config.max_batches * config.batch_size or None
    parts: Iterable[slice | Tensor]
    if config.validation and part != "test":
        rows = torch.from_numpy(stack.train[lane] if part == "train" else stack.held_out[lane])[:most].to(config.device)
        parts = rows.split(EVALUATION_BATCH)
    else:
        end = min(len(split), most or len(split))
        parts = (slice(start, min(start + EVALUATION_BATCH, end)) for start in range(0, end, EVALUATION_BATCH))
    lit = split.lit if stack.sparse else None
    buffer = network.weights.new_empty(EVALUATION_BATCH, split.pixels.shape[1])  # once: one a part would scatter the memory
    log_p, labels = list[Tensor](), list[Tensor]()
    for some in parts:
        labels.append(split.labels[some])
        inputs = (
            split.scale.write(split.pixels[some], buffer[: len(labels[-1])])[None]
            if lit is None
            else lit.inputs(some, split.scale.write)
        )
        log_p.append(log_softmax(network.forward(inputs, training=False))[0])
    return dict(zip((f"{part}/loss", f"{part}/accuracy"), score(torch.cat(log_p, 1), torch.cat(labels)), strict=True))
