"""Sparse inputs: of images that are mostly dark, only the lit pixels are multiplied.

A row of x W is the sum of those rows of W where the sample is lit, and a row of x' dy that of the samples which light the
pixel, each times the pixel's value. torch's `embedding_bag` sums such rows one after the other, for each lane by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from torch import Tensor

from harness.numerics import NATIVE, current, processor

# Where the lit pixels alone take less time than all of them by MKL, preparation counted (AMD EPYC, with AVX-512).
MOST_LIT = 0.4  # of all pixels; MNIST has 0.19
LEAST_WIDTH = 64
LEAST_BATCH = 16
SUM = 0  # as torch counts the modes of a bag: torch.nn.functional, which knows it by name, checks for as long as a tenth of it

Write = Callable[[Tensor, Tensor], Tensor]  # bytes as inputs, into the second, which is returned


class Rows(NamedTuple):
    """A sparse matrix, row after row: its entries' columns and values, (entries,), and where each row starts, (rows,)."""

    columns: Tensor
    values: Tensor
    starts: Tensor

    def times(self, dense: Tensor) -> Tensor:
        """The product with a matrix (columns, n), whose rows are contiguous: (rows, n)."""
        return torch.embedding_bag(dense, self.columns, self.starts, False, SUM, False, self.values)[0]


@dataclass(frozen=True, eq=False)
class Sparse:
    """A sparse matrix for each lane, (lanes, n, m): a place, as a tensor is, that one matrix after another may fill.

    What is filled is `ways`, which a transpose shares.
    """

    shape: tuple[int, int, int]
    ways: list[list[Rows]]  # the lanes' rows and, where they are asked for, those of the transposes
    turned: bool = False

    @classmethod
    def empty(cls, lanes: int, n: int, m: int) -> Sparse:
        return cls((lanes, n, m), [[], []])

    def fill(self, rows: list[Rows], transposed: list[Rows]) -> Sparse:
        """Put another matrix in each lane."""
        self.ways[:] = rows, transposed
        return self

    @property
    def mT(self) -> Sparse:
        """The transposes of whatever this holds, now and later."""
        lanes, n, m = self.shape
        return Sparse((lanes, m, n), self.ways, not self.turned)

    @property
    def rows(self) -> list[Rows]:
        return self.ways[self.turned]

    def times(self, dense: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        """Write the product of each lane (+ bias) to `out`: with (lanes, m, p) to (lanes, n, p)."""
        if bias is None:
            for rows, by, to in zip(self.rows, dense, out, strict=True):
                to.copy_(rows.times(by))
        else:
            for rows, by, to, plus in zip(self.rows, dense, out, bias, strict=True):
                torch.add(rows.times(by), plus, out=to)

    def to_dense(self) -> Tensor:
        """As a tensor (lanes, n, m)."""
        return torch.stack([rows.times(torch.eye(self.shape[2])) for rows in self.rows])


@dataclass(frozen=True)
class LitPixels:
    """The pixels of a split that are not 0, in compressed rows of bytes (samples, features)."""

    matrix: csr_array

    @classmethod
    def of(cls, pixels: Tensor) -> LitPixels:
        """A thousand samples at a time: what lies between takes memory."""
        return cls(vstack([csr_array(some.numpy()) for some in pixels.split(1000)], format="csr"))

    def inputs(self, rows: slice | Tensor, scale: Write) -> Sparse:
        """Some samples, for one lane to be evaluated on."""
        some = self.matrix[rows if isinstance(rows, slice) else rows.numpy()]
        return Sparse.empty(1, *some.shape).fill(_groups(some.indices, _scaled(some, scale), some.indptr, [some.nnz]), [])

    def steps(self, rows: Tensor, lanes: Sequence[int], scale: Write, inputs: Sparse) -> Iterator[Sparse]:
        """`inputs`, filled for one step after the other; of `rows` (steps, orders, batch), lane k learns order `lanes[k]`."""
        count, orders, batch = rows.shape
        features, groups = self.matrix.shape[1], count * orders
        some = self.matrix[rows.flatten().numpy()]
        values, sizes = _scaled(some, scale), (some.indptr[batch::batch] - some.indptr[:-1:batch]).tolist()
        # one matrix, in which each group of samples has columns of its own: one call transposes all groups
        group = np.repeat(np.arange(groups, dtype=some.indices.dtype), sizes)
        apart = csr_array((values, some.indices + group * features, some.indptr), (groups * batch, groups * features))
        turned = apart.tocsc()
        ways = (
            _groups(some.indices, values, some.indptr, sizes),
            _groups(turned.indices - group * batch, turned.data, turned.indptr, sizes),
        )
        for step in range(0, groups, orders):
            yield inputs.fill(*([way[step + order] for order in lanes] for way in ways))


def _scaled(some: csr_array, scale: Write) -> NDArray[np.float32]:
    return scale(torch.from_numpy(some.data), torch.empty(some.nnz)).numpy()


def _groups(columns: NDArray[Any], values: NDArray[Any], starts: NDArray[Any], sizes: list[int]) -> list[Rows]:
    """Rows cut into groups, of `sizes` entries and equally many rows."""
    heads = starts[:-1].reshape(len(sizes), -1)
    parts = map(torch.from_numpy, (columns, values))
    return list(map(Rows, *(part.split(sizes) for part in parts), torch.from_numpy(heads - heads[:, :1])))


def share(pixels: Tensor) -> float:
    """Of pixels that are not 0."""
    return torch.count_nonzero(pixels).item() / pixels.numel()


def pays(width: int, batch: int) -> bool:
    """Whether a first layer of `width` units multiplies lit pixels alone.

    Only on AMD's processors with AVX-512: on AMD's without it and on Intel's, MKL's products of all pixels are as fast or
    faster, and elsewhere nobody has measured. Not with portable numerics: torch compiles these sums for the processor that it
    finds, and nothing caps that.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    measured = wide and "AuthenticAMD" in processor("vendor_id") and current() == NATIVE
    return measured and width >= LEAST_WIDTH and batch >= LEAST_BATCH
