"""Row storage of an embedding table: rows of one dense array, and the numbers handed out of it.

A row is one record, so that what a batch does to an id meets its memory once:

    key (8 bytes) | count (4) | last seen (4) | last touch (4) | [steps (4)] | w, v_1 .. v_D | optimizer state
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .growing_array import GrowingArray
from .prefetch import AHEAD, prefetch

# Columns of a record: KEY of RowArrays.longs, the others of RowArrays.ints.
KEY = 0
COUNT, SEEN, TOUCHED, STEPS = 2, 3, 4, 5
NEXT, FREE, LIMIT = 0, 1, 2  # cells of RowArrays.meta: first row never used, rows on the free list, rows there is room for
STRETCH = 8  # bits of a row number within a stretch of rows that share a cell of RowArrays.due


class Layout(NamedTuple):
    """Where the parts of a record lie, in words of 4 bytes.

    Attributes:
        values: first word of the 1 + dim values.
        state: first word of the optimizer state.
        end: first word behind it.
    """

    values: int
    state: int
    end: int

    @classmethod
    def of(cls, row_width: int, state_width: int, steps: bool) -> Layout:
        """The layout for rows of `row_width` values; `steps` are counted for Adam only."""
        values = STEPS + steps
        return cls(values, values + row_width, values + row_width + state_width)


class RowArrays(NamedTuple):
    """The arena as kernels take it: one memory seen as float32[R, 2 K], int32[R, 2 K] and int64[R, K] (`KEY` and so on).

    `free` is a heap, its lowest number first; `due` int64[R / 256] says of each stretch of 256 rows that none of them has
    outlived its time at that second, or before, and `oldest` int64[R / 256] that none of them was last seen before that second,
    but for rows that were spared when it was noted (see `evict_rows`); `meta` int64[3] is (NEXT, FREE, LIMIT).
    """

    floats: NDArray[np.float32]
    ints: NDArray[np.int32]
    longs: NDArray[np.int64]
    free: NDArray[np.int32]
    due: NDArray[np.int64]
    oldest: NDArray[np.int64]
    meta: NDArray[np.int64]


class RowArena:
    """Records of a table.

    Freed rows are handed out again, lowest first, before rows never used: which row is next follows from those in use, so
    that a table is laid out again from its rows alone.

    Args:
        layout: of a record.
        capacity: rows to make room for at first.
        most: rows it may hold; more are not handed out.
    """

    def __init__(self, layout: Layout, capacity: int, most: int) -> None:
        self.layout = layout
        self.most = most
        self.records = GrowingArray(((layout.end + 1) // 2,), np.int64, min(capacity, most))
        self._free = GrowingArray((), np.int32, min(capacity, most))
        self._due = GrowingArray((), np.int64, _stretches(min(capacity, most)))
        self._oldest = GrowingArray((), np.int64, _stretches(min(capacity, most)))
        self._meta = np.zeros(3, np.int64)
        self._meta[LIMIT] = len(self.records)

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
        return self.end * (self.records.row_nbytes + self._free.row_nbytes)

    @property
    def keys(self) -> NDArray[np.int64]:
        """The key of each row, int64[rows reserved], 0 where there is none; a view until rows are next reserved."""
        return self.records.array[:, KEY]

    @property
    def touched(self) -> NDArray[np.int32]:
        """The low 32 bits of the version of each row's last touch; a view likewise."""
        return self.records.array.view(np.int32)[:, TOUCHED]

    def reserve(self, more: int) -> None:
        """Makes room for `more` rows at once, or as many as it may hold."""
        rows = min(self.most, int(self._meta[NEXT]) + max(0, more - int(self._meta[FREE])))
        self.records.reserve(rows)
        self._free.reserve(rows)
        self._due.reserve(_stretches(rows))
        self._oldest.reserve(_stretches(rows))
        stretches = min(len(self._due), len(self._oldest))
        self._meta[LIMIT] = min(self.most, len(self.records), len(self._free), stretches << STRETCH)

    def check_room(self, rows: int) -> None:
        """Raises MemoryError if it may not hold so many more rows."""
        if rows > self.most - len(self):
            raise MemoryError(f"{rows} more rows beside {len(self)} do not fit in {self.most}: give --table_bytes more")

    def take(self, rows: int) -> NDArray[np.int32]:
        """`rows` rows to use, int32[rows], their contents undefined.

        Raises:
            MemoryError: it may not hold that many.
        """
        self.check_room(rows)
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
            MemoryError: it may not hold that many.
        """
        if used.size and not first <= used.min() <= used.max() < end:
            raise ValueError(f"rows {used.min()} to {used.max()}, not {first} to {end - 1}: give rows and state of one table")
        if end > self.most:
            raise MemoryError(f"a table of {end} rows does not fit in {self.most}: give --table_bytes more")
        free = np.ones(end, np.bool_)
        free[:first] = free[used] = False
        self._meta[: FREE + 1] = first, 0
        self.reserve(end - first)
        rows = np.flatnonzero(free)
        self._free.array[: rows.size] = rows  # ascending numbers are a heap
        self._meta[: FREE + 1] = end, rows.size

    def arrays(self) -> RowArrays:
        """The arrays for one kernel call; valid until the next `reserve`."""
        records = self.records.array
        floats, ints = records.view(np.float32), records.view(np.int32)
        return RowArrays(floats, ints, records, self._free.array, self._due.array, self._oldest.array, self._meta)

    def written(self, rows: NDArray[np.int32]) -> None:
        """Notes that rows int32[N] were last seen at any time: when the first of them is due is not known."""
        self._due.array[rows >> STRETCH] = 0
        self._oldest.array[rows >> STRETCH] = 0

    def forget_oldest(self) -> None:
        """Any row may be old: those that were spared are spared no more."""
        self._oldest.array[:] = 0


def _stretches(rows: int) -> int:
    return (rows >> STRETCH) + 1


@njit(inline="always")
def word(start: int, d: int) -> np.uint64:
    """Word `d` of a part of a record that starts at `start`. Unsigned: Numba looks out for negative indices otherwise, and a
    loop that does is not vectorised."""
    return np.uint64(start + d)


@njit(inline="always")
def can_take(meta: NDArray[np.int64]) -> bool:
    """Whether there is room for one more row."""
    return meta[FREE] > 0 or meta[NEXT] < meta[LIMIT]


@njit(inline="always")
def take_row(free: NDArray[np.int32], meta: NDArray[np.int64]) -> np.int64:
    """The lowest free row or, with none, one never used; its contents are undefined. The caller has seen `can_take`."""
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
def note_taken(due, oldest, meta, row, due_s, seen_s):  # type: ignore[no-untyped-def]
    """Notes when a row that was just taken is due, and was seen. One that begins a stretch is all there is of it."""
    stretch = row >> STRETCH
    alone = row == stretch << STRETCH and row + 1 == meta[NEXT]
    due[stretch] = due_s if alone else min(due[stretch], due_s)
    oldest[stretch] = seen_s if alone else min(oldest[stretch], seen_s)


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


@njit(nogil=True, cache=True)
def keep_used(longs: NDArray[np.int64], rows: NDArray[np.int32]) -> int:
    """Moves those of rows int32[N] that are in use to the front, in their order; returns how many."""
    used = 0
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(longs, rows[i + AHEAD], KEY)
        if longs[rows[i], KEY] != 0:
            rows[used] = rows[i]
            used += 1
    return used
