"""Collisionless index from key to row number: bucketised cuckoo hashing.

A key has two buckets of four cells; a cell holds an 8-bit tag of the hash and a row number, and the key itself lies in
`keys[row]`, where it is compared whole: no two keys are ever merged. A key that finds both buckets full displaces others
along the shortest path to a free cell (breadth first, bounded); where there is none it goes to a small stash, and when
that is full the index doubles. Doubling splits every bucket in two and touches no row.

References: Pagh and Rodler, "Cuckoo hashing", 2004; Fan, Andersen and Kaminsky, "MemC3", NSDI 2013 (tags, path search);
Kirsch, Mitzenmacher and Wieder, "More robust hashing: cuckoo hashing with a stash", 2009; Monolith, arXiv 2209.07663 §2.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .arena import GrowingArray, kernel_array
from .cuckoo_kernels import (
    CELLS,
    DONE,
    MAX_LOAD,
    NO_ROOM,
    SIZE,
    STASHED,
    IndexArrays,
    find_rows,
    put_rows,
    remove_keys,
    split_buckets,
    unstash,
)

_MIN_BUCKETS = 16
_STASH = 8
_MIN_LOAD = 0.125  # keys that crowd an index emptier than this share both buckets: doubling would not part them


class CuckooIndex:
    """Map from int64 keys to distinct row numbers, in batches.

    A key is any int64 but 0, which pads; a row number belongs to one key at a time. Reading and writing are not
    synchronised: one thread at a time.

    Args:
        capacity: keys to make room for at first; the index doubles as needed and never shrinks.
    """

    def __init__(self, capacity: int = 1024) -> None:
        buckets = _MIN_BUCKETS
        while buckets * CELLS * MAX_LOAD < capacity:
            buckets *= 2
        self._tags = np.zeros(buckets * CELLS, np.uint8)
        self._rows = np.zeros(buckets * CELLS, np.int32)
        self._stash = np.zeros(_STASH, np.int32)
        self._keys = GrowingArray((), np.int64, capacity)
        self._meta = np.zeros(2, np.int64)

    def __len__(self) -> int:
        """Keys held."""
        return int(self._meta[SIZE])

    @property
    def keys(self) -> NDArray[np.int64]:
        """The key of each row, int64[rows reserved], 0 where there is none; valid until rows are next reserved."""
        return self._keys.array

    @property
    def nbytes(self) -> int:
        """Bytes of tags, row numbers and stash; keys are counted with their rows."""
        return self._tags.nbytes + self._rows.nbytes + self._stash.nbytes

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows int32[N] of keys int64[N]; -1 where there is none."""
        keys = kernel_array(keys, np.int64)
        found = np.empty(keys.size, np.int32)
        find_rows(self.arrays(), keys, found)
        return found

    def insert(self, keys: NDArray[np.int64], rows: NDArray[np.int32]) -> None:
        """Gives keys int64[N] their rows int32[N], in turn; a key that is there already changes its row.

        Raises:
            ValueError: key 0, a negative row, or a row that another key has; pairs before it are in by then in the
                last case, none otherwise.
        """
        keys, rows = kernel_array(keys, np.int64), kernel_array(rows, np.int32)
        if keys.shape != rows.shape:
            raise ValueError(f"{keys.size} keys cannot have {rows.size} rows: give each key one row")
        if not keys.size:
            return
        if not keys.all():
            raise ValueError("key 0 pads and has no row: leave it out")
        if rows.min() < 0:
            raise ValueError(f"row {rows.min()} is negative: rows count from 0")
        self.reserve_rows(int(rows.max()) + 1)
        at, status = 0, NO_ROOM
        while status != DONE:
            at, status = put_rows(self.arrays(), keys, rows, at)
            if status == NO_ROOM:
                self.grow()
            elif status != DONE:
                owner = int(self.keys[rows[at]])
                raise ValueError(f"row {rows[at]} belongs to key {owner}, not {keys[at]}: remove that key first")

    def remove(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Removes keys int64[N]. Returns the rows int32[N] they had, -1 where there was none."""
        keys = kernel_array(keys, np.int64)
        rows = np.empty(keys.size, np.int32)
        remove_keys(self.arrays(), keys, rows)
        return rows

    def reserve_rows(self, rows: int) -> None:
        """Makes room for the keys of row numbers below `rows`."""
        self._keys.reserve(rows)

    def arrays(self) -> IndexArrays:
        """The index for one kernel call; valid until `grow` or `reserve_rows`."""
        words = self._tags.view(np.uint32)
        return IndexArrays(self._tags, words, self._rows, self._stash, self._keys.array, self._meta)

    def grow(self) -> None:
        """Doubles the index, or the stash where doubling would not part the keys that fill it."""
        if len(self) < _MIN_LOAD * self._tags.size:
            self._stash = np.concatenate([self._stash, np.zeros_like(self._stash)])
            return
        tags = np.zeros(2 * self._tags.size, np.uint8)
        rows = np.zeros(2 * self._rows.size, np.int32)
        split_buckets(self.arrays(), tags, rows)
        self._tags, self._rows = tags, rows
        stashed = self._stash[: self._meta[STASHED]].copy()
        self._meta[STASHED] = 0
        unstash(self.arrays(), stashed)
