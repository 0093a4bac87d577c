"""Kernels that look ids up: each reads its own row, or its slot's default row. They change nothing."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .arena import SEEN
from .cuckoo_kernels import BLOCK, IndexArrays, find_block
from .eviction import outlived
from .feature_ids import SLOT_SHIFT
from .pooling import examples_of, pool_block
from .slot_arrays import SlotArrays


@njit(inline="always")
def _resolve(ints, slots, slot_rows, now_s, ids, start, n, rows):  # type: ignore[no-untyped-def]
    """What `find_block` found, with the default rows of ids that have none or whose time has passed; see `find_ids`."""
    of_number, ttl_s, min_rows = slots.of_number, slots.ttl_s, slots.min_rows
    for i in range(start, start + n):
        key, row = ids[i], rows[i]
        if key < 0:  # of a default row, which the index knows: no id
            return i
        if row >= 0:
            slot = of_number[np.uint64(key >> SLOT_SHIFT)]
            if outlived(ints[np.uint64(row), np.uint64(SEEN)], slot, ttl_s, min_rows, slot_rows, now_s):
                rows[i] = 1 + slot
        elif key == 0:
            rows[i] = 0
        elif of_number[key >> SLOT_SHIFT] < 0:
            return i
        else:
            rows[i] = 1 + of_number[key >> SLOT_SHIFT]
    return -1


@njit(nogil=True, cache=True)
def find_ids(
    index: IndexArrays,
    ints: NDArray[np.int32],
    slots: SlotArrays,
    slot_rows: NDArray[np.int64],
    ids: NDArray[np.int64],
    now_s: int,
    rows: NDArray[np.int32],
) -> int:
    """Rows of ids int64[U] into `rows`: an id's own unless it has none or its time has passed, its slot's default row, or 0.

    Returns:
        Where a slot is not configured, or -1.
    """
    words, index_rows, stash, index_keys, meta = index.words, index.rows, index.stash, index.keys, index.meta
    hashes, cells = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    for start in range(0, ids.size, BLOCK):
        n = min(BLOCK, ids.size - start)
        find_block(index, words, index_rows, stash, index_keys, meta, ids, start, n, 3, hashes, cells, rows)
        unknown = _resolve(ints, slots, slot_rows, now_s, ids, start, n, rows)
        if unknown >= 0:
            return unknown
    return -1


@njit(nogil=True, cache=True, error_model="numpy")
def lookup_ids(
    index: IndexArrays,
    floats: NDArray[np.float32],
    ints: NDArray[np.int32],
    values: int,
    slots: SlotArrays,
    slot_rows: NDArray[np.int64],
    ids: NDArray[np.int64],
    now_s: int,
    first_out: NDArray[np.float32],
    v_out: NDArray[np.float32],
) -> int:
    """`find_ids` of ids int64[N, W], which may repeat, and `pool_rows` of what they read, in one pass.

    Returns:
        Where, among the N * W ids, a slot is not configured, or -1.
    """
    words, index_rows, stash, index_keys, meta = index.words, index.rows, index.stash, index.keys, index.meta
    width = ids.shape[1]
    flat = ids.reshape(-1)
    block = examples_of(width)
    hashes, cells = np.empty(block * width, np.int64), np.empty(block * width, np.int64)
    rows = np.empty(block * width, np.int32)
    for at in range(0, ids.shape[0], block):
        n = min(block, ids.shape[0] - at)
        part = flat[at * width : (at + n) * width]
        find_block(index, words, index_rows, stash, index_keys, meta, part, 0, n * width, 3, hashes, cells, rows)
        unknown = _resolve(ints, slots, slot_rows, now_s, part, 0, n * width, rows)
        if unknown >= 0:
            return at * width + unknown
        pool_block(floats, values, rows, n, at, slots.of_column, slots.mean, first_out, v_out)
    return -1
