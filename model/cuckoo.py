"""Collisionless index from int64 key to int32 value: bucketised cuckoo hashing.

A key has two buckets of four cells and lies in one of them, or in a small stash. A key that finds both full displaces
another to that one's other bucket, and so on, a bounded number of times; when that fails it goes to the stash, and when
the stash is full the index doubles. Keys are compared whole: no two are ever merged and none is dropped.

References:
    Pagh and Rodler: Cuckoo hashing, 2004. Kirsch, Mitzenmacher and Wieder: More robust hashing: cuckoo hashing with a
    stash, 2009. Monolith, arXiv 2209.07663, section 2.1.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .feature_ids import mix63_jit

MISS = -1
_CELLS = 4
_STASH = 8
_DISPLACEMENTS = 200
_MAX_LOAD = 0.85
_FREE = np.int64(np.iinfo(np.int64).min)  # no key: feature ids are >= 0, reserved keys small negatives


@njit(inline="always", cache=True)
def _buckets(key, mask):  # type: ignore[no-untyped-def]
    """The two hash functions: low and high half of one mixed key."""
    h = mix63_jit(key & np.int64(0x7FFFFFFFFFFFFFFF))
    return (h & mask) * _CELLS, ((h >> 31) & mask) * _CELLS


@njit(inline="always", cache=True)
def _cell_of(keys, mask, key):  # type: ignore[no-untyped-def]
    b1, b2 = _buckets(key, mask)
    for c in range(b1, b1 + _CELLS):
        if keys[c] == key:
            return c
    for c in range(b2, b2 + _CELLS):
        if keys[c] == key:
            return c
    for c in range(keys.size - _STASH, keys.size):
        if keys[c] == key:
            return c
    return -1


@njit(nogil=True, cache=True)
def find_all(keys, values, mask, wanted, found):  # type: ignore[no-untyped-def]
    """Values of ``wanted`` into ``found``; MISS where there is none."""
    for i in range(wanted.size):
        c = _cell_of(keys, mask, wanted[i])
        found[i] = values[c] if c >= 0 else MISS


@njit(nogil=True, cache=True)
def put_all(keys, values, mask, new_keys, new_values, first):  # type: ignore[no-untyped-def]
    """Insert or overwrite from ``first`` on; returns (how far it came, fresh keys). It stops when the index must grow."""
    fresh = 0
    for i in range(first, new_keys.size):
        c = _cell_of(keys, mask, new_keys[i])
        if c >= 0:
            values[c] = new_values[i]
            continue
        if not _place(keys, values, mask, new_keys[i], new_values[i]):
            return i, fresh
        fresh += 1
    return new_keys.size, fresh


@njit(nogil=True, cache=True)
def _free_cell(keys, mask, key):  # type: ignore[no-untyped-def]
    b1, b2 = _buckets(key, mask)
    for b in (b1, b2):
        for c in range(b, b + _CELLS):
            if keys[c] == _FREE:
                return c
    return -1


@njit(nogil=True, cache=True)
def _place(keys, values, mask, key, value):  # type: ignore[no-untyped-def]
    c = _free_cell(keys, mask, key)
    # The stash is looked at before anything is displaced: a failed chain of displacements must have somewhere to end.
    spare = -1
    for s in range(keys.size - _STASH, keys.size):
        if keys[s] == _FREE:
            spare = s
            break
    if c < 0 and spare < 0:
        return False
    turn = np.uint64(mix63_jit(key & np.int64(0x7FFFFFFFFFFFFFFF)))
    steps = 0
    while c < 0 and steps < _DISPLACEMENTS:
        b1, b2 = _buckets(key, mask)
        turn = turn * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        victim = (b1 if (turn >> np.uint64(60)) & np.uint64(1) else b2) + np.int64((turn >> np.uint64(61)) & np.uint64(3))
        key, keys[victim] = keys[victim], key
        value, values[victim] = values[victim], value
        c = _free_cell(keys, mask, key)
        steps += 1
    if c < 0:
        c = spare
    keys[c], values[c] = key, value
    return True


@njit(nogil=True, cache=True)
def remove_all(keys, mask, gone):  # type: ignore[no-untyped-def]
    """Remove keys; returns how many there were."""
    n = 0
    for i in range(gone.size):
        c = _cell_of(keys, mask, gone[i])
        if c >= 0:
            keys[c] = _FREE
            n += 1
    return n


class CuckooIndex:
    """Map from int64 key to int32 value, in batches.

    Args:
        capacity: keys it has room for at first; it doubles as needed.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._size = 0
        self._allocate(max(16, 1 << int(capacity / (_CELLS * _MAX_LOAD)).bit_length()))

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return int(self._keys.nbytes + self._values.nbytes)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Values of int64[N] keys: int32[N], -1 where there is none."""
        found = np.empty(keys.size, np.int32)
        find_all(self._keys, self._values, self._mask, keys, found)
        return found

    def insert(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Insert or overwrite: keys int64[N], values int32[N]; of equal keys the last one counts."""
        at = 0
        while self._size + keys.size - at > _MAX_LOAD * _CELLS * (self._mask + 1):
            self._grow()
        while at < keys.size:
            at, fresh = put_all(self._keys, self._values, self._mask, keys, values, at)
            self._size += fresh
            if at < keys.size:
                self._grow()

    def remove(self, keys: np.ndarray) -> None:
        """Remove keys, those that are there."""
        self._size -= remove_all(self._keys, self._mask, keys)

    def items(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys int64[N] and values int32[N], in no particular order."""
        there = self._keys != _FREE
        return self._keys[there], self._values[there]

    def _allocate(self, buckets: int) -> None:
        self._mask = np.int64(buckets - 1)
        self._keys = np.full(buckets * _CELLS + _STASH, _FREE, np.int64)
        self._values = np.zeros(self._keys.size, np.int32)

    def _grow(self) -> None:
        keys, values = self.items()
        placed = False
        while not placed:
            self._allocate(2 * int(self._mask + 1))
            placed = put_all(self._keys, self._values, self._mask, keys, values, 0)[0] == keys.size
