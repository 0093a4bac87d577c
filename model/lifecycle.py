"""Kernels of a row's life: seen, admitted."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .admission import passes_count, passes_draw
from .arena import COUNT, KEY, SEEN, TOUCHED, RowArrays, can_take, note_taken, take_row, word
from .cuckoo_kernels import BLOCK, NO_ROW, SIZE, IndexArrays, find_block, find_row, has_room, locate, make_room, place
from .eviction import let_go, outlived
from .feature_ids import SLOT_SHIFT
from .slot_arrays import SlotArrays

# Cells of the progress of `admit_ids`.
AT, REMOVED, COUNTED, CREATED, MISSED, MENTIONED, REFUSED, PASSED, ASKS, WANTS = range(10)
NOTHING, CELL, ROW = range(3)  # what it wants before it can go on

_OUTLIVED = -2  # in place of a row number: the id has one, but its time has passed
_MOST = np.int64(2**31 - 1)
_UINT32 = np.int64(0xFFFFFFFF)


@njit(inline="always")
def _see(ints, row, occurrences, now_s):  # type: ignore[no-untyped-def]
    count, seen = word(COUNT, 0), word(SEEN, 0)
    ints[row, count] = min(_MOST, np.int64(ints[row, count]) + occurrences)
    ints[row, seen] = np.int32(max(np.int64(ints[row, seen]) & _UINT32, now_s))


@njit(nogil=True, cache=True)
def see_ids(
    index: IndexArrays,
    floats: NDArray[np.float32],
    ints: NDArray[np.int32],
    first_value: int,
    slots: SlotArrays,
    slot_rows: NDArray[np.int64],
    unique: NDArray[np.int64],
    occurrences: NDArray[np.int32],
    now_s: int,
    version: int,
    rows: NDArray[np.int32],
    fresh: NDArray[np.bool_],
    values: NDArray[np.float32],
) -> int:
    """Finds the rows of distinct ids int64[U], notes that they were seen, and copies their values to `values`
    float32[U, 1 + dim]: what is done with a row at once meets its memory once.

    `fresh` bool[U] says which of them this version touches first. It writes to the rows found alone, so that several threads
    may share a batch.

    Returns:
        Ids, but 0, that have no row, or one that they have outlived.
    """
    words, index_rows, stash, index_keys, meta = index.words, index.rows, index.stash, index.keys, index.meta
    of_number, ttl_s, min_rows = slots.of_number, slots.ttl_s, slots.min_rows
    hashes, cells = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    read = (first_value + values.shape[1] + 1) // 2
    missing = 0
    for start in range(0, unique.size, BLOCK):
        n = min(BLOCK, unique.size - start)
        find_block(index, words, index_rows, stash, index_keys, meta, unique, start, n, read, hashes, cells, rows)
        for i in range(start, start + n):
            fresh[i] = False
            if rows[i] < 0:
                if unique[i] == 0:
                    rows[i] = 0
                    values[i] = 0.0
                else:
                    missing += 1
                continue
            row, touched, at = np.uint64(rows[i]), word(TOUCHED, 0), np.uint64(i)
            slot = of_number[np.uint64(unique[i] >> SLOT_SHIFT)]
            if outlived(ints[row, word(SEEN, 0)], slot, ttl_s, min_rows, slot_rows, now_s):
                rows[i] = _OUTLIVED
                missing += 1
                continue
            _see(ints, row, occurrences[i], now_s)
            if ints[row, touched] != version:
                ints[row, touched] = version
                fresh[i] = True
            for d in range(values.shape[1]):
                values[at, word(d, 0)] = floats[row, word(first_value, d)]
    return missing


@njit(nogil=True, cache=True)
def read_rows(
    floats: NDArray[np.float32],
    first_value: int,
    rows: NDArray[np.int32],
    which: NDArray[np.int32],
    values: NDArray[np.float32],
) -> None:
    """Copies the values of those of `rows` int32[U] at positions `which` to `values` float32[U, 1 + dim]."""
    for i in which:
        for d in range(values.shape[1]):
            values[i, d] = floats[rows[i], first_value + d]


@njit(inline="always")
def _passes(cells, key, threshold, missed, occurrences, seed, progress):  # type: ignore[no-untyped-def]
    """The count that an id without a row comes in with, or 0 if it does not pass yet."""
    if missed >= 0.0:
        return occurrences if passes_draw(key, seed, occurrences, missed) else np.int64(0)
    if threshold == 1:
        return occurrences
    progress[COUNTED] += occurrences
    return passes_count(cells, key, occurrences, threshold)


@njit(nogil=True, cache=True)
def admit_ids(
    index: IndexArrays,
    arena: RowArrays,
    slots: SlotArrays,
    slot_rows: NDArray[np.int64],
    cells: NDArray[np.uint16],
    unique: NDArray[np.int64],
    occurrences: NDArray[np.int32],
    now_s: int,
    version: int,
    seed: int,
    rows: NDArray[np.int32],
    fresh: NDArray[np.bool_],
    removed: NDArray[np.int64],
    created: NDArray[np.int32],
    missed: NDArray[np.int32],
    mentions: NDArray[np.int32],
    progress: NDArray[np.int64],
) -> None:
    """Gives rows to ids that have none and pass admission; starts and stops at `progress[AT]`.

    Args:
        unique: int64[U], distinct ids of configured slots; `rows` int32[U] and `fresh` bool[U] are what `see_ids` made of them.
        seed: of this version's draws.
        removed: int64[U], takes the keys of rows whose time to live had passed, `progress[REMOVED]` of them.
        created: int32[U], takes the positions of ids with a new row, `progress[CREATED]` of them.
        missed: int32[U], takes the positions of ids that `see_ids` found no row for, `progress[MISSED]` of them.
        mentions: int32[U + S], takes the rows that this version touches first, `progress[MENTIONED]` of them.
        progress: `progress[COUNTED]` sums the occurrences that the sketch took in, `progress[REFUSED]` counts ids that passed
            where there was no row for them; with `progress[ASKS]` it stops there and wants one instead. `progress[PASSED]` is
            the count that the id where it stopped comes in with. Before the end of `unique` it stops only for what it wants.
    """
    tags, words, index_rows, stash, keys, meta = index
    ints, longs, free, arena_meta = arena.ints, arena.longs, arena.free, arena.meta
    due, oldest = arena.due, arena.oldest
    of_number, min_rows = slots.of_number, slots.min_rows
    admission, miss, ttl_s = slots.admission, slots.missed, slots.ttl_s
    progress[WANTS] = NOTHING
    for i in range(progress[AT], unique.size):
        row = np.int64(rows[i])
        if row >= 0:
            if fresh[i]:
                mentions[progress[MENTIONED]] = row
                progress[MENTIONED] += 1
            continue
        key = unique[i]
        slot = of_number[key >> SLOT_SHIFT]
        if row == _OUTLIVED:
            row = find_row(index, key)
            if row == NO_ROW:  # it was evicted while memory for ids before it was sought
                rows[i] = NO_ROW
            elif outlived(ints[row, SEEN], slot, ttl_s, min_rows, slot_rows, now_s):
                let_go(tags, words, index_rows, stash, keys, meta, free, arena_meta, slot_rows, key, slot)
                removed[progress[REMOVED]] = key
                progress[REMOVED] += 1
                row = np.int64(NO_ROW)
                rows[i] = NO_ROW
            else:  # so many of its slot went before it that the others stay
                _see(ints, row, occurrences[i], now_s)
        if row == NO_ROW:
            row = np.int64(1 + slot)
            if occurrences[i] > 0:
                count = progress[PASSED]
                progress[PASSED] = 0
                if count == 0:
                    count = _passes(cells, key, admission[slot], miss[slot], np.int64(occurrences[i]), seed, progress)
                full = count > 0 and not can_take(arena_meta)
                if full and progress[ASKS]:
                    progress[WANTS], progress[AT], progress[PASSED] = ROW, i, count
                    return
                if full:
                    progress[REFUSED] += 1
                elif count > 0:
                    if not has_room(words, stash, meta) and not make_room(index):
                        progress[WANTS], progress[AT], progress[PASSED] = CELL, i, count
                        return
                    cell = locate(tags, words, index_rows, stash, keys, meta, key)
                    if cell >= 0:  # an id given twice, against the contract: a second row of one key would never be found
                        row = np.int64(index_rows[cell] if cell < index_rows.size else stash[cell - index_rows.size])
                        _see(ints, row, occurrences[i], now_s)
                    else:
                        row = take_row(free, arena_meta)
                        longs[row, KEY] = key
                        ints[row, COUNT] = count
                        ints[row, SEEN] = np.int32(now_s)
                        ints[row, TOUCHED] = np.int32(version - 1)  # so that this is its first touch in any version
                        note_taken(due, oldest, arena_meta, row, now_s + ttl_s[slot], np.int64(now_s))
                        meta[SIZE] += 1
                        slot_rows[slot] += 1
                        place(index, tags, words, index_rows, meta, key, row)
                        created[progress[CREATED]] = i
                        progress[CREATED] += 1
        rows[i] = row
        missed[progress[MISSED]] = i
        progress[MISSED] += 1
        if ints[row, TOUCHED] != version:
            ints[row, TOUCHED] = version
            mentions[progress[MENTIONED]] = row
            progress[MENTIONED] += 1
    progress[AT] = unique.size
