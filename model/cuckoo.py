"""Collisionless index from key to row number: bucketised cuckoo hashing.

A key has two buckets of twelve cells, each bucket a cache line; a cell holds an 8-bit tag of the hash and a row number, and
the key itself lies in its row, where it is compared whole: no two keys are ever merged. A key goes to its first bucket or, if
that is full, its second; one that finds both full displaces others along the shortest path to a free cell (breadth first,
bounded); where there is none it goes to a small stash. The index grows by
splitting one bucket at a time, in turn: an insert never waits for more than a few splits, growth touches no row, and at any
size the cells are as full as they should be.

References: Pagh and Rodler, "Cuckoo hashing", 2004; Litwin, "Linear hashing", VLDB 1980 (growth by a bucket); Fan, Andersen
and Kaminsky, "MemC3", NSDI 2013 (tags, path search); Kirsch, Mitzenmacher and Wieder, "More robust hashing: cuckoo hashing
with a stash", 2009; Monolith, arXiv 2209.07663 §2.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .cuckoo_buckets import CELLS, LINE_WORDS
from .cuckoo_kernels import (
    BUCKETS,
    DONE,
    LEVEL,
    MAX_LOAD,
    NO_ROOM,
    SIZE,
    STASHED,
    IndexArrays,
    find_rows,
    put_rows,
    remove_keys,
    split_next,
    unstash,
)
from .growing_array import GrowingArray, kernel_array
from .threads import ranges, run

_MIN_BUCKETS = 16
_STASH = 8
_MIN_LOAD = 0.125  # keys that crowd an index emptier than this share both buckets: splitting would not part them
_SPLITS = 16  # buckets split at once where the stash is full
_LEAST = 1024  # keys a thread: fewer are found sooner than another thread wakes up

#: Bytes of the index for a key, on average, where it is as full as it gets.
KEY_BYTES = 8 * LINE_WORDS / (CELLS * MAX_LOAD)


class CuckooIndex:
    """Map from int64 keys to distinct row numbers, in batches.

    A key is any int64 but 0, which pads; a row number belongs to one key at a time. Reading and writing are not
    synchronised: one thread at a time.

    Args:
        capacity: keys to make room for at first; the index grows as needed and never shrinks.
        keys: where the key of each row lies: int64[R, K], in column 0. By default the index keeps them itself.
    """

    def __init__(self, capacity: int = 1024, keys: GrowingArray | None = None) -> None:
        buckets = max(_MIN_BUCKETS, int(capacity / (CELLS * MAX_LOAD)) + 1)
        self._buckets = GrowingArray((LINE_WORDS,), np.uint64, buckets)
        self._stash = np.zeros(_STASH, np.int32)
        self._keys = GrowingArray((1,), np.int64, capacity) if keys is None else keys
        self._meta = np.zeros(4, np.int64)
        self._meta[BUCKETS], self._meta[LEVEL] = buckets, 1 << (buckets - 1).bit_length()

    def __len__(self) -> int:
        """Keys held."""
        return int(self._meta[SIZE])

    @property
    def keys(self) -> NDArray[np.int64]:
        """The key of each row, int64[rows reserved], 0 where there is none; a view until rows are next reserved."""
        return self._keys.array[:, 0]

    @property
    def nbytes(self) -> int:
        """Bytes of buckets and stash; keys are counted with their rows."""
        return int(self._meta[BUCKETS]) * self._buckets.row_nbytes + self._stash.nbytes

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows int32[N] of keys int64[N]; -1 where there is none."""
        keys = kernel_array(keys, np.int64)
        found = np.empty(keys.size, np.int32)
        index = self.arrays()
        run(lambda part: find_rows(index, keys[part], found[part]), ranges(keys.size, _LEAST))
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
        self._keys.reserve(int(rows.max()) + 1)
        self.reserve(keys.size)
        at, status = 0, NO_ROOM
        while status != DONE:
            at, status = put_rows(self.arrays(), keys, rows, at)
            if status == NO_ROOM:
                self.relieve()
            elif status != DONE:
                owner = int(self.keys[rows[at]])
                raise ValueError(f"row {rows[at]} belongs to key {owner}, not {keys[at]}: remove that key first")

    def remove(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Removes keys int64[N]. Returns the rows int32[N] they had, -1 where there was none."""
        keys = kernel_array(keys, np.int64)
        rows = np.empty(keys.size, np.int32)
        remove_keys(self.arrays(), keys, rows)
        return rows

    def reserve(self, more: int) -> None:
        """Has memory ready for the buckets of `more` keys; they come into use one by one."""
        self._buckets.reserve(int((len(self) + more) / (CELLS * MAX_LOAD)) + 2)

    @staticmethod
    def warm_up() -> None:
        """Compiles what `relieve` runs, or reads it from the cache."""
        index = CuckooIndex(1)
        index._buckets.reserve(_MIN_BUCKETS + 1)
        split_next(index.arrays())
        unstash(index.arrays(), np.empty(0, np.int32))

    def arrays(self) -> IndexArrays:
        """The index for one kernel call; valid until `reserve`, `relieve`, or more rows."""
        words = self._buckets.array.reshape(-1)
        return IndexArrays(words.view(np.uint8), words, words.view(np.int32), self._stash, self._keys.array, self._meta)

    def relieve(self) -> None:
        """Makes room where the stash is full: by splitting buckets, or by a larger stash where that would not help."""
        if len(self) < _MIN_LOAD * CELLS * self._meta[BUCKETS]:
            self._stash = np.concatenate([self._stash, np.zeros_like(self._stash)])
            return
        self._buckets.reserve(int(self._meta[BUCKETS]) + _SPLITS)
        for _ in range(_SPLITS):
            split_next(self.arrays())
        stashed = self._stash[: self._meta[STASHED]].copy()
        self._meta[STASHED] = 0
        unstash(self.arrays(), stashed)
