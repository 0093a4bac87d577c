"""Kernels that let rows go: those whose time to live has passed, and the oldest where memory is short.

A hand passes over the rows, a bounded number at a time, as a clock's does (Corbató 1968): no batch pays for the whole table.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .arena import KEY, NEXT, SEEN, STRETCH, TOUCHED, RowArrays, free_row
from .cuckoo_kernels import IndexArrays, prefetch_key, remove_key
from .feature_ids import SLOT_SHIFT
from .growing_array import kernel_array
from .prefetch import AHEAD
from .slot_arrays import NEVER_S, SlotArrays, slot_rows_of

OLDEST_PART = 0.1  # of all rows: they leave first where memory is short
_SAMPLE = 256  # rows by which the age of the oldest part is told, to two percent or so
_UINT32 = np.int64(0xFFFFFFFF)


@njit(inline="always")
def outlived(seen, slot, ttl_s, min_rows, slot_rows, now_s):  # type: ignore[no-untyped-def]
    """Whether a row's time to live has passed. It does not depend on whether the hand has come by."""
    return now_s - (np.int64(seen) & _UINT32) > ttl_s[slot] and slot_rows[slot] > min_rows[slot]


@njit(inline="always")
def let_go(tags, words, index_rows, stash, keys, index_meta, free, meta, slot_rows, key, slot):  # type: ignore[no-untyped-def]
    """Takes a key out of the index and frees its row."""
    free_row(free, meta, remove_key(tags, words, index_rows, stash, keys, index_meta, key))
    slot_rows[slot] -= 1


@njit(nogil=True, cache=True)
def pass_over(due: NDArray[np.int64], first: int, end: int, hand: int, budget: int, now_s: int) -> tuple[int, int]:
    """Moves the hand over at most `budget` of the rows `first` to `end`, to the first stretch of which one may be due.

    Returns:
        Where the hand stands, and what is left of the budget.
    """
    while budget > 0:
        start = hand if first <= hand < end else np.int64(first)
        if now_s > due[start >> STRETCH]:
            break
        hand = int(min(end, ((start >> STRETCH) + 1) << STRETCH, start + budget))
        budget -= int(hand - start)
    return hand, budget


@njit(nogil=True, cache=True)
def expire_rows(
    index: IndexArrays,
    arena: RowArrays,
    slots: SlotArrays,
    slot_rows: NDArray[np.int64],
    now_s: int,
    budget: int,
    hand: int,
    removed: NDArray[np.int64],
) -> tuple[int, int]:
    """Moves the hand over `budget` rows behind the default rows and lets those go whose time to live has passed.

    Returns:
        Where the hand stands, and how many keys were put into `removed`.
    """
    first = np.int64(1 + slot_rows.size)  # behind row 0 and the default rows
    tags, words, index_rows, stash, keys, index_meta = index
    ints, longs, free, due, meta = arena.ints, arena.longs, arena.free, arena.due, arena.meta
    end = meta[NEXT]
    of_number, ttl_s, min_rows = slots.of_number, slots.ttl_s, slots.min_rows
    gone = 0
    while budget > 0:
        start = hand if first <= hand < end else first
        stretch = start >> STRETCH
        stretch_end = min(end, (stretch + 1) << STRETCH)
        hand = min(stretch_end, start + budget)
        soonest = np.int64(NEVER_S)
        for row in range(start, hand):
            key = longs[row, KEY]
            if key != 0:
                slot = of_number[key >> SLOT_SHIFT]
                if outlived(ints[row, SEEN], slot, ttl_s, min_rows, slot_rows, now_s):
                    let_go(tags, words, index_rows, stash, keys, index_meta, free, meta, slot_rows, key, slot)
                    removed[gone] = key
                    gone += 1
                else:
                    soonest = min(soonest, (np.int64(ints[row, SEEN]) & _UINT32) + ttl_s[slot])
        if start == max(first, stretch << STRETCH) and hand == stretch_end:
            due[stretch] = soonest
        hand, budget = pass_over(due, first, end, hand, budget - (hand - start), now_s)
    return hand, gone


@njit(nogil=True, cache=True)
def evict_rows(
    index: IndexArrays,
    arena: RowArrays,
    slots: SlotArrays,
    slot_rows: NDArray[np.int64],
    seen_s: int,
    version: int,
    hand: int,
    spare: bool,
    removed: NDArray[np.int64],
) -> tuple[int, int]:
    """Moves the hand once over the rows until `removed` is full of keys last seen at `seen_s` or before, which go.

    Rows that `version` int32 has touched stay: the batch at work uses them. With `spare` the last rows of a slot stay, too.
    Stretches whose rows are all younger are passed over; `oldest` is noted of those looked at, without the rows spared.

    Returns:
        Where the hand stands, and how many keys were put into `removed`.
    """
    first = np.int64(1 + slot_rows.size)
    tags, words, index_rows, stash, keys, index_meta = index
    ints, longs, free, oldest, meta = arena.ints, arena.longs, arena.free, arena.oldest, arena.meta
    end = meta[NEXT]
    gone, left = 0, end - first
    while left > 0 and gone < removed.size:
        start = hand if first <= hand < end else first
        stretch = start >> STRETCH
        stop = min(end, (stretch + 1) << STRETCH)
        hand = min(stop, start + left)
        left -= hand - start
        if spare and oldest[stretch] > seen_s:
            continue
        first_seen_s = np.int64(NEVER_S)
        for row in range(start, hand):
            if row + AHEAD < end and longs[row + AHEAD, KEY] != 0:
                prefetch_key(words, index_meta, longs[row + AHEAD, KEY])
            key, row_seen_s = longs[row, KEY], np.int64(ints[row, SEEN]) & _UINT32
            if key == 0:
                continue
            slot = slots.of_number[key >> SLOT_SHIFT]
            if spare and slot_rows[slot] <= slots.min_rows[slot]:
                continue
            if ints[row, TOUCHED] == version or row_seen_s > seen_s:
                first_seen_s = min(first_seen_s, row_seen_s)
                continue
            let_go(tags, words, index_rows, stash, keys, index_meta, free, meta, slot_rows, key, slot)
            removed[gone] = key
            gone += 1
            if gone == removed.size:
                hand = row + 1
                break
        if spare and start == max(first, stretch << STRETCH) and hand == stop:
            oldest[stretch] = first_seen_s
    return hand, gone


def outlived_of(slots: SlotArrays, keys: NDArray[np.int64], last_seen_ms: NDArray[np.int64], time_ms: int) -> NDArray[np.bool_]:
    """bool[R], which of all rows of a table, with keys int64[R], last seen at int64[R], are past their time to live.

    Default rows, with negative keys, never are.
    """
    past = np.empty(keys.size, np.bool_)
    _tell_outlived(
        kernel_array(keys, np.int64), kernel_array(last_seen_ms, np.int64), slots, slot_rows_of(slots, keys),
        max(0, time_ms // 1000), past,
    )  # fmt: skip
    return past


@njit(nogil=True, cache=True)
def _tell_outlived(keys, last_seen_ms, slots, slot_rows, now_s, past):  # type: ignore[no-untyped-def]
    for i in range(keys.size):
        slot = slots.of_number[max(0, keys[i]) >> SLOT_SHIFT]
        seen_s = max(0, last_seen_ms[i] // 1000)
        past[i] = keys[i] > 0 and outlived(seen_s, slot, slots.ttl_s, slots.min_rows, slot_rows, now_s)


def oldest_seen(arena: RowArrays, first: int) -> int:
    """Seconds: the oldest tenth of the rows from `first` on was last seen then or before, by a sample spread over them.

    -1 if there are none.
    """
    end = int(arena.meta[NEXT])
    rows = np.unique(np.linspace(first, end - 1, min(_SAMPLE, max(0, end - first))).astype(np.int64))
    seen = arena.ints.view(np.uint32)[rows, SEEN][arena.longs[rows, KEY] != 0]
    at = int(OLDEST_PART * (seen.size - 1))
    return int(np.partition(seen, at)[at]) if seen.size else -1
