"""Row storage of an embedding table: columns that grow in place, and the rows handed out of them.

Memory is reserved as zero pages, which the system commits on first use, and growth remaps those pages instead of
copying them: a row costs nothing before it is used, and growing never copies the rows.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

MAX_ROWS = 2**31 - 1  # row numbers are int32
_HUGE = 1 << 22  # bytes from which a column asks for huge pages: random rows then miss the TLB far less
NEXT, FREE = 0, 1  # cells of RowArrays.meta: first row never used, rows on the free list


def kernel_array(array: NDArray, dtype: DTypeLike) -> NDArray:
    """The array as kernels are compiled for: contiguous, aligned, writeable; copied only where it is not."""
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
            self._map.resize(grown * self.row_nbytes)
            _advise(self._map)
            capacity = grown
        except (BufferError, SystemError):
            # A view is still held somewhere, or the platform has no mremap: the rows are copied this once.
            pages = _zero_pages(grown * self.row_nbytes)
            pages[: capacity * self.row_nbytes] = self._map[:]
            self._map, capacity = pages, grown
        except OSError as error:
            raise MemoryError(f"no memory to grow a table column to {grown} rows: {error}") from error
        finally:
            self.array = self._view(capacity)

    def _view(self, rows: int) -> NDArray:
        return np.frombuffer(self._map, self._dtype).reshape(rows, *self._shape)


def _zero_pages(nbytes: int) -> mmap.mmap:
    # Private: a forked worker gets its own copy on write, as of any other memory.
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(pages)
    return pages


def _advise(pages: mmap.mmap) -> None:
    if len(pages) >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)


@dataclass(frozen=True)
class TableRows:
    """Whole rows by key: what snapshots and exports carry; a slot's default row has a negative key.

    keys int64[R], values float32[R, 1 + dim] (first order weight, then the embedding), optimizer float32[R, K]
    (unused columns zero), steps int32[R] (Adam's, per row), counts int32[R], last_seen_ms int64[R], versions int64[R]
    (of the row's last touch), numbers int32[R] (which row of its table it is).
    """

    keys: NDArray[np.int64]
    values: NDArray[np.float32]
    optimizer: NDArray[np.float32]
    steps: NDArray[np.int32]
    counts: NDArray[np.int32]
    last_seen_ms: NDArray[np.int64]
    versions: NDArray[np.int64]
    numbers: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)

    def check(self, row_width: int, optimizer_width: int) -> None:
        """Check that these rows fit a table of rows so wide.

        Raises:
            ValueError: they do not.
        """
        # Rows from before the first slot with Adam was appended lack its second moments.
        narrow = self.optimizer.shape == (len(self), row_width)
        shapes = (
            ("values", self.values, (row_width,)),
            ("optimizer", self.optimizer, (row_width if narrow else optimizer_width,)),
            ("steps", self.steps, ()),
            ("counts", self.counts, ()),
            ("last_seen_ms", self.last_seen_ms, ()),
            ("versions", self.versions, ()),
            ("numbers", self.numbers, ()),
        )
        for name, array, shape in shapes:
            if array.shape != (len(self), *shape):
                raise ValueError(
                    f"rows to load: {name} is {list(array.shape)}, expected {[len(self), *shape]}: is it another configuration?"
                )
        if not self.keys.all():
            raise ValueError("rows to load: key 0 pads and has no row: leave it out")


class RowArrays(NamedTuple):
    """The arena's arrays as the kernels take them; free is a heap, its lowest number first; meta int64[2] is (NEXT, FREE)."""

    values: NDArray[np.float32]
    optimizer: NDArray[np.float32]
    steps: NDArray[np.int32]
    counts: NDArray[np.int32]
    last_seen_ms: NDArray[np.int64]
    free: NDArray[np.int32]
    meta: NDArray[np.int64]


class RowArena:
    """Rows of a table, structure of arrays; the key of a row lies in the table's index.

    Freed rows are handed out again, lowest first, before rows never used: which row is next follows from those in use, so
    that a table is laid out again from its rows alone.
    """

    def __init__(self, row_width: int, optimizer_width: int, capacity: int) -> None:
        self._values = GrowingArray((row_width,), np.float32, capacity)
        self._optimizer = GrowingArray((optimizer_width,), np.float32, capacity)
        self._steps = GrowingArray((), np.int32, capacity)
        self._counts = GrowingArray((), np.int32, capacity)
        self._last_seen = GrowingArray((), np.int64, capacity)
        self._free = GrowingArray((), np.int32, capacity)
        self._meta = np.zeros(2, np.int64)
        self._columns = (self._values, self._optimizer, self._steps, self._counts, self._last_seen, self._free)

    def __len__(self) -> int:
        """Rows handed out and not freed."""
        return int(self._meta[NEXT] - self._meta[FREE])

    @property
    def end(self) -> int:
        """First row number never used."""
        return int(self._meta[NEXT])

    @property
    def nbytes(self) -> int:
        """Bytes of the rows used so far, freed ones included."""
        return self.end * sum(column.row_nbytes for column in self._columns)

    def reserve(self, more: int) -> int:
        """Makes room for `more` rows at once. Returns the number of rows reserved in all."""
        rows = int(self._meta[NEXT]) + max(0, more - int(self._meta[FREE]))
        for column in self._columns:
            column.reserve(rows)
        return len(self._values)

    def take(self, rows: int) -> NDArray[np.int32]:
        """`rows` rows to use, int32[rows], their contents undefined."""
        self.reserve(rows)
        taken = np.empty(rows, np.int32)
        take_rows(self._free.array, self._meta, taken)
        return taken

    def put_back(self, rows: NDArray[np.int32]) -> None:
        """Frees rows int32[N], all in use."""
        free_rows(self._free.array, self._meta, rows)

    def lay_out(self, used: NDArray[np.int32], first: int, end: int) -> None:
        """Has rows `used` int32[N] in use, of rows `first` to `end`, and the others free; those below `first` stay in use.

        Raises:
            ValueError: a row lies elsewhere.
        """
        if used.size and not first <= used.min() <= used.max() < end:
            raise ValueError(f"rows {used.min()} to {used.max()}, not {first} to {end - 1}: give rows and state of one table")
        free = np.ones(end, np.bool_)
        free[:first] = free[used] = False
        self._meta[:] = first, 0
        self.reserve(end - first)
        rows = np.flatnonzero(free)
        self._free.array[: rows.size] = rows  # ascending numbers are a heap
        self._meta[:] = end, rows.size

    def arrays(self) -> RowArrays:
        """The arrays for one kernel call; valid until the next `reserve`."""
        values, optimizer, steps, counts, last_seen, free = (column.array for column in self._columns)
        return RowArrays(values, optimizer, steps, counts, last_seen, free, self._meta)


@njit(inline="always")
def take_row(free: NDArray[np.int32], meta: NDArray[np.int64]) -> np.int64:
    """The lowest free row or, with none, one never used; its contents are undefined. The caller has reserved it."""
    if meta[FREE] == 0:
        row = meta[NEXT]
        meta[NEXT] += 1
    else:
        row = np.int64(free[0])
        meta[FREE] -= 1
        size = meta[FREE]
        last = free[size]
        at, child = 0, 1
        while child < size:
            if child + 1 < size and free[child + 1] < free[child]:
                child += 1
            if last <= free[child]:
                break
            free[at] = free[child]
            at, child = child, 2 * child + 1
        free[at] = last
    return row


@njit(inline="always")
def free_row(free: NDArray[np.int32], meta: NDArray[np.int64], row: int) -> None:
    """Puts a row among the free ones."""
    at = meta[FREE]
    meta[FREE] += 1
    while at > 0 and free[(at - 1) >> 1] > row:
        free[at] = free[(at - 1) >> 1]
        at = (at - 1) >> 1
    free[at] = row


@njit(nogil=True, cache=True)
def take_rows(free: NDArray[np.int32], meta: NDArray[np.int64], taken: NDArray[np.int32]) -> None:
    """`take_row` for as many rows as `taken` holds."""
    for i in range(taken.size):
        taken[i] = take_row(free, meta)


@njit(nogil=True, cache=True)
def free_rows(free: NDArray[np.int32], meta: NDArray[np.int64], rows: NDArray[np.int32]) -> None:
    """`free_row` for arrays."""
    for row in rows:
        free_row(free, meta, row)
