"""Sparse inputs: of images that are mostly dark, only the lit pixels are multiplied.

A row of x W is the sum of those rows of W where the sample is lit, and a row of x' dy that of the samples which light the
pixel, each times the pixel's value. torch's `embedding_bag` sums such rows one after the other, for each lane by itself.

Minibatches are taken apart by scipy's compiled routines themselves, `_sparsetools`, private but the same from 1.15 to 1.17: an
array of scipy's for each minibatch would take three to four times as long to transpose it, for its checks, and one for all of
them up to a third longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import _sparsetools, csr_array, get_index_dtype
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


class Matrices(NamedTuple):
    """Sparse matrices of equally many rows, one behind the other: the columns and values of all their entries, (entries,).

    `starts` (matrices, rows + 1): where each one's rows start among its own entries, and where the last row ends.
    """

    columns: NDArray[Any]
    values: NDArray[Any]
    starts: NDArray[Any]

    def transposed(self, width: int) -> Matrices:
        """Each one's transpose, of matrices with `width` columns: as `csr_array.tocsc` makes it, without its checks."""
        rows, values = np.empty_like(self.columns), np.empty_like(self.values)
        column_starts, end = np.empty((len(self.starts), width + 1), self.starts.dtype), 0
        for starts, turned_starts in zip(self.starts, column_starts, strict=True):
            its = slice(end, end := end + starts[-1])
            before, after = (starts, self.columns[its], self.values[its]), (turned_starts, rows[its], values[its])
            _sparsetools.csr_tocsc(len(starts) - 1, width, *before, *after)
        return Matrices(rows, values, column_starts)

    def each(self) -> list[Rows]:
        """Each by itself."""
        parts = (torch.from_numpy(part).split(self.starts[:, -1].tolist()) for part in (self.columns, self.values))
        return list(map(Rows, *parts, torch.from_numpy(self.starts[:, :-1])))


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

    def product(self, dense: Tensor, out: Tensor, bias: Tensor | None = None) -> Callable[[], None]:
        """The call that writes the product of each lane (+ bias) to `out`: with (lanes, m, p) to (lanes, n, p).

        Tensors are cut into lanes once, here: at each call it would take longer than adding a bias.
        """
        lanes = list(zip(dense, out, [None] * len(out) if bias is None else bias, strict=True))

        def write() -> None:
            for rows, (by, to, plus) in zip(self.rows, lanes, strict=True):
                sums = rows.times(by)
                if plus is None:
                    to.copy_(sums)
                else:
                    torch.add(sums, plus, out=to)

        return write

    def to_dense(self) -> Tensor:
        """As a tensor (lanes, n, m)."""
        return torch.stack([rows.times(torch.eye(self.shape[2])) for rows in self.rows])


@dataclass(frozen=True)
class LitPixels:
    """The pixels of a split that are not 0, in compressed rows of bytes (samples, features)."""

    matrix: csr_array

    @classmethod
    def of(cls, pixels: Tensor) -> LitPixels:
        """Found in the samples as they lie in memory: scipy looks for rows and columns, which takes three times as long.

        A few hundred samples at a time, for what lies between.
        """
        parts = [some.numpy() for some in pixels.split(500)]
        starts = np.zeros(len(pixels) + 1, get_index_dtype(maxval=pixels.numel()))
        np.cumsum(np.concatenate([np.count_nonzero(some, axis=1) for some in parts]), out=starts[1:])
        columns, values, end = np.empty(starts[-1], starts.dtype), np.empty(starts[-1], np.uint8), 0
        for some in parts:
            lit = np.flatnonzero(some != 0)
            its = slice(end, end := end + len(lit))
            columns[its], values[its] = lit % some.shape[1], some.ravel()[lit]
        return cls(csr_array((values, columns, starts), shape=pixels.shape))

    def inputs(self, rows: slice | Tensor, scale: Write) -> Sparse:
        """Some samples, for one lane to be evaluated on."""
        some = self.matrix[rows if isinstance(rows, slice) else rows.numpy()]
        found = Matrices(some.indices, _scaled(some.data, scale), some.indptr[None])
        return Sparse.empty(1, *some.shape).fill(found.each(), [])

    def steps(self, rows: Tensor, lanes: Sequence[int], scale: Write, inputs: Sparse) -> Iterator[Sparse]:
        """`inputs`, filled for one step after the other; of `rows` (steps, orders, batch), lane k learns order `lanes[k]`."""
        steps, orders, batch = rows.shape
        columns, pixels, starts = self._taken(rows.flatten().numpy())
        firsts = starts[:-1].reshape(steps * orders, batch)
        found = Matrices(columns, _scaled(pixels, scale), np.column_stack([firsts, starts[batch::batch]]) - firsts[:, :1])
        ways = found.each(), found.transposed(self.matrix.shape[1]).each()
        for step in range(0, steps * orders, orders):
            yield inputs.fill(*([way[step + order] for order in lanes] for way in ways))

    def _taken(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[Any]]:
        """Columns, pixels and starts of `matrix[rows]`, without most of its checks. Raises IndexError for a row it lacks."""
        whole = self.matrix
        if not 0 <= rows.min() <= rows.max() < whole.shape[0]:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {whole.shape[0]} samples")
        starts = np.zeros(len(rows) + 1, whole.indptr.dtype)
        np.cumsum(whole.indptr[rows + 1] - whole.indptr[rows], out=starts[1:])
        columns, pixels = np.empty(starts[-1], whole.indices.dtype), np.empty(starts[-1], whole.data.dtype)
        asked = rows.astype(whole.indptr.dtype)
        _sparsetools.csr_row_index(len(rows), asked, whole.indptr, whole.indices, whole.data, columns, pixels)
        return columns, pixels, starts


def _scaled(pixels: NDArray[np.uint8], scale: Write) -> NDArray[np.float32]:
    return scale(torch.from_numpy(pixels), torch.empty(len(pixels))).numpy()


def share(pixels: Tensor) -> float:
    """Of pixels that are not 0."""
    return torch.count_nonzero(pixels).item() / pixels.numel()


def pays(width: int, batch: int) -> bool:
    """Whether a first layer of `width` units multiplies lit pixels alone.

    Only on AMD's processors with AVX-512: on AMD's without it and on Intel's, MKL's products of all pixels are as fast or
    faster, and elsewhere nobody has measured. Not with portable numerics: these sums are FBGEMM's, which compiles them for the
    processor that it finds and can be capped (`FBGEMM_ENABLE_INSTRUCTIONS`) no lower than AVX2.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    measured = wide and "AuthenticAMD" in processor("vendor_id") and current() == NATIVE
    return measured and width >= LEAST_WIDTH and batch >= LEAST_BATCH
