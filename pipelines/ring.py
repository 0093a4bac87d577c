"""Rows by their number, in columns of a capacity that is a power of two: row ``n`` lies at ``n % capacity``.

Memory is zero pages, which the system commits on first use; what is let go of is given back to it. So a ring takes what its
rows take, whatever its capacity.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike

#: The least capacity.
MIN_ROWS = 1 << 12
#: Rows that are given back at once: of so many, each column takes whole pages, whatever it takes for a row.
_STRETCH = mmap.PAGESIZE
_COPIED = 16 * _STRETCH  # at once, when a ring is laid out anew

#: Shape and dtype of what a column holds for a row.
Column = tuple[tuple[int, ...], DTypeLike]


def capacity_for(rows: int) -> int:
    """Of a ring that holds so many rows at once."""
    return max(MIN_ROWS, 1 << rows.bit_length())


class Ring:
    """Columns of rows.

    Args:
        columns: what each holds for a row.
        capacity: rows at once, a power of two.
        first: number of the first row to come.

    Attributes:
        arrays: [capacity, ...] each, zero where nothing has been written.
    """

    def __init__(self, columns: Sequence[Column], capacity: int, first: int = 0) -> None:
        self.capacity = capacity
        self._columns = tuple(columns)
        sizes = [int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in columns]
        self.row_nbytes = sum(sizes)
        self._pages = [mmap.mmap(-1, max(1, capacity * size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for size in sizes]
        self.arrays = tuple(
            np.frombuffer(pages, dtype, capacity * size // np.dtype(dtype).itemsize).reshape(capacity, *shape)
            for pages, size, (shape, dtype) in zip(self._pages, sizes, columns, strict=True)
        )
        self._kept_from = first

    def at(self, first: int, last: int) -> np.ndarray:
        """Where the rows ``[first, last)`` lie, int64[N]."""
        return np.arange(first, last) & (self.capacity - 1)

    def nbytes(self, last: int) -> int:
        """Bytes of the rows before ``last`` that have not been given back."""
        return (last - self._kept_from) * self.row_nbytes

    def let_go(self, first: int, last: int) -> None:
        """Rows before ``first`` are not read any more; those up to ``last`` have been written."""
        # Where the newest rows have come round to, there is nothing to give back.
        self._kept_from = max(self._kept_from, last - self.capacity)
        start, end = -(-self._kept_from // _STRETCH) * _STRETCH, first // _STRETCH * _STRETCH
        if end <= start or self.capacity % _STRETCH or not hasattr(mmap, "MADV_DONTNEED"):
            return
        for begin, rows in self._stretches(start, end):
            for pages, array in zip(self._pages, self.arrays, strict=True):
                if size := array.nbytes // self.capacity:
                    pages.madvise(mmap.MADV_DONTNEED, begin * size, rows * size)
        self._kept_from = end

    def _stretches(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Place and length of the numbers ``[start, end)``, parted where the ring comes round."""
        while start < end:
            at = start & (self.capacity - 1)
            rows = min(end - start, self.capacity - at)
            yield at, rows
            start += rows

    def relaid(self, capacity: int, first: int, last: int) -> Ring:
        """Another ring with the rows ``[first, last)``, which this one loses meanwhile: memory for both is never needed."""
        other = Ring(self._columns, capacity, first)
        for start in range(first, last, _COPIED):
            end = min(start + _COPIED, last)
            other.put(start, [array[self.at(start, end)] for array in self.arrays])
            self.let_go(end, last)
        return other

    def put(self, first: int, values: Sequence[np.ndarray]) -> None:
        """Write rows, numbered from ``first``, into each column."""
        for array, rows in zip(self.arrays, values, strict=True):
            array[self.at(first, first + len(rows))] = rows

    def rows(self, first: int, last: int) -> list[np.ndarray]:
        """The rows ``[first, last)`` of each column, copied."""
        return [array[self.at(first, last)] for array in self.arrays]
