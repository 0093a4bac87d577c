"""Arrays that grow in place.

Memory is reserved as zero pages, which the system commits on first use, and growth remaps those pages instead of
copying them: a row costs nothing before it is used, and growing never copies the rows.
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import DTypeLike, NDArray

MAX_ROWS = 2**31 - 1  # row numbers are int32
_HUGE_PAGE = 2 << 20


def kernel_array(array: NDArray, dtype: DTypeLike) -> NDArray:
    """The array as kernels are compiled for: contiguous, aligned, writeable; copied only where it is not."""
    if array.dtype == dtype and array.flags.carray:  # at once, where all is well: a step asks this a dozen times
        return array
    return np.require(array, dtype, ["C", "A", "W"])


class GrowingArray:
    """Array whose first axis grows without copying; rows never written are zero.

    `array` is valid until the next `reserve` that grows: take it anew for each use and keep no view of it.
    A view that is kept stays readable but shows a copy of the past.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, capacity: int = 1024) -> None:
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self.row_nbytes = int(np.prod(shape, dtype=np.int64)) * self._dtype.itemsize
        self._map = _zero_pages(max(1, capacity) * self.row_nbytes)
        self.array = self._view(max(1, capacity))

    def __len__(self) -> int:
        """Rows reserved."""
        return int(self.array.shape[0])

    def reserve(self, rows: int) -> None:
        """Makes room for at least `rows` rows; capacity at least doubles, since zero pages are free.

        Raises:
            MemoryError: the system refuses.
            OverflowError: past 2^31 - 1 rows.
        """
        capacity = len(self)
        if rows <= capacity:
            return
        if rows > MAX_ROWS:
            raise OverflowError(f"a table holds at most {MAX_ROWS} rows; {rows} were asked for: use more shards")
        grown = min(MAX_ROWS, max(rows, 2 * capacity))
        del self.array  # the pages can move only while nobody looks at them
        try:
            self._map.resize(_whole_pages(grown * self.row_nbytes))
            capacity = grown
        except (BufferError, SystemError):
            # A view is still held somewhere, or the platform has no mremap: the rows are copied this once.
            pages = _zero_pages(grown * self.row_nbytes)
            used = capacity * self.row_nbytes
            pages[:used] = memoryview(self._map)[:used]
            self._map, capacity = pages, grown
        except OSError as error:
            raise MemoryError(f"no memory to grow a table to {grown} rows: {error}") from error
        finally:
            self.array = self._view(capacity)

    def _view(self, rows: int) -> NDArray:
        items = rows * self.row_nbytes // self._dtype.itemsize
        return np.frombuffer(self._map, self._dtype, items).reshape(rows, *self._shape)


def _zero_pages(nbytes: int) -> mmap.mmap:
    # Private: a forked worker gets its own copy on write, as of any other memory.
    pages = mmap.mmap(-1, _whole_pages(nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Rows lie anywhere: with pages of 4 KB the processor has to look up where almost every one of them is, which takes a
    # quarter to a third of a step at millions of rows.
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _whole_pages(nbytes: int) -> int:
    """Bytes to map. Linux puts maps of whole huge pages where those fit, also when it moves them to grow."""
    return nbytes if nbytes < _HUGE_PAGE else -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE
