"""Kernels of a row's life: admitted, seen again, let go."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .admission import count_id
from .arena import NEXT, RowArrays, free_row, take_row
from .cuckoo_kernels import SIZE, IndexArrays, has_room, place, place_by_force, remove_key
from .feature_ids import SLOT_SHIFT, mix63_jit
from .optimizers import initial_state
from .slot_arrays import SlotArrays

AT, REMOVED, COUNTED = 0, 1, 2  # cells of the progress of `admit_ids`

_MOST = np.int64(2**31 - 1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# A sum of four numbers of 16 bits: its mean, and one over its standard deviation, sqrt((2^32 - 1) / 3).
_CENTRE = np.int64(2 * 65535)
_PER_DEVIATION = 1.0 / np.sqrt((2.0**32 - 1.0) / 3.0)


@njit(inline="always")
def _normal(x: np.uint64) -> np.float64:
    """A number of about the standard normal distribution from 64 mixed bits (Steele et al. 2014, SplitMix64).

    The sum of four uniform numbers (Irwin and Hall 1927) needs integers only, so that every machine draws the same.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    total = np.int64(x & np.uint64(0xFFFF)) + np.int64((x >> np.uint64(16)) & np.uint64(0xFFFF))
    total += np.int64((x >> np.uint64(32)) & np.uint64(0xFFFF)) + np.int64(x >> np.uint64(48))
    return (total - _CENTRE) * _PER_DEVIATION


@njit(inline="always")
def _start_row(values, optimizer, row, key, scale, state, seed):  # type: ignore[no-untyped-def]
    """First-order weight 0, embedding normal(0, scale) drawn from (seed, key): the same whenever the id comes."""
    x = np.uint64(mix63_jit(key ^ np.int64(seed)))
    values[row, 0] = 0.0
    for d in range(1, values.shape[1]):
        values[row, d] = np.float32(_normal(x + np.uint64(d) * _GOLDEN) * scale)
    for d in range(values.shape[1]):
        optimizer[row, d] = state
    for d in range(values.shape[1], optimizer.shape[1]):
        optimizer[row, d] = 0.0


@njit(nogil=True, cache=True)
def admit_ids(
    index: IndexArrays,
    arena: RowArrays,
    slots: SlotArrays,
    cells: NDArray[np.uint16],
    unique: NDArray[np.int64],
    occurrences: NDArray[np.int32],
    time_ms: int,
    seed: int,
    rows: NDArray[np.int32],
    removed: NDArray[np.int64],
    progress: NDArray[np.int64],
) -> None:
    """Gives rows to ids that pass admission, and counts those that have one; starts and stops at `progress[AT]`.

    Args:
        unique: int64[U], distinct ids of configured slots; `rows` int32[U] holds what the index has for them.
        removed: int64[U], takes the keys of rows whose time to live had passed, `progress[REMOVED]` of them.
        progress: `progress[COUNTED]` sums the occurrences that the sketch took in. Before the end of `unique` the kernel
            stops only where the index must grow.
    """
    tags, words, index_rows, stash, keys, meta = index
    values, optimizer, steps, counts, last_seen, free, arena_meta = arena
    of_number, _, _, admission, ttl_ms, init_scale, optimizers = slots
    for i in range(progress[AT], unique.size):
        key = unique[i]
        if key == 0:
            rows[i] = 0
            continue
        slot = of_number[key >> SLOT_SHIFT]
        row = np.int64(rows[i])
        if row >= 0 and time_ms - last_seen[row] > ttl_ms[slot]:
            # Its time had passed; whether the hand had come by must not change what is learned.
            free_row(free, arena_meta, remove_key(index, key))
            removed[progress[REMOVED]] = key
            progress[REMOVED] += 1
            row = np.int64(-1)
            rows[i] = -1
        if row >= 0:
            counts[row] = min(_MOST, np.int64(counts[row]) + occurrences[i])
            last_seen[row] = max(last_seen[row], time_ms)
        elif occurrences[i] > 0:
            if not has_room(tags, stash, meta):
                progress[AT] = i
                return
            count = np.int64(occurrences[i])
            if admission[slot] > 1:
                progress[COUNTED] += count
                count = count_id(cells, key, count)
            if count >= admission[slot]:
                row = take_row(free, arena_meta)
                _start_row(values, optimizer, row, key, init_scale[slot], initial_state(optimizers, slot), seed)
                steps[row] = 0
                counts[row] = count
                last_seen[row] = time_ms
                keys[row] = key
                meta[SIZE] += 1
                if not place(tags, words, index_rows, key, row):
                    place_by_force(index, key, row)
        rows[i] = row if row >= 0 else 1 + slot
    progress[AT] = unique.size


@njit(nogil=True, cache=True)
def fill_defaults(
    slots: SlotArrays,
    last_seen: NDArray[np.int64],
    unique: NDArray[np.int64],
    time_ms: int,
    rows: NDArray[np.int32],
) -> int:
    """Puts the default row where the index had none or the row's time has passed, 0 for padding.

    Returns:
        Where a slot is not configured, or -1.
    """
    of_number, ttl_ms = slots.of_number, slots.ttl_ms
    for i in range(unique.size):
        key = unique[i]
        if rows[i] >= 0:
            # As in admission: whether the hand had come by must not change what is read.
            slot = of_number[key >> SLOT_SHIFT] if key > 0 else -1
            if slot >= 0 and time_ms - last_seen[rows[i]] > ttl_ms[slot]:
                rows[i] = 1 + slot
        elif key == 0:
            rows[i] = 0
        elif key < 0 or of_number[key >> SLOT_SHIFT] < 0:
            return i
        else:
            rows[i] = 1 + of_number[key >> SLOT_SHIFT]
    return -1


@njit(nogil=True, cache=True)
def expire_rows(
    index: IndexArrays,
    arena: RowArrays,
    slots: SlotArrays,
    time_ms: int,
    budget: int,
    hand: int,
    removed: NDArray[np.int64],
) -> tuple[int, int]:
    """Moves the hand over `budget` rows behind the default rows and lets those go whose time to live has passed.

    Returns:
        Where the hand stands, and how many keys were put into `removed`.
    """
    first = np.int64(1 + slots.ttl_ms.size)  # behind row 0 and the default rows
    end = arena.meta[NEXT]
    keys, last_seen, free, meta = index.keys, arena.last_seen_ms, arena.free, arena.meta
    of_number, ttl_ms = slots.of_number, slots.ttl_ms
    gone = 0
    for _ in range(min(budget, end - first)):
        row = hand if first <= hand < end else int(first)
        hand = row + 1
        key = keys[row]
        if key != 0 and time_ms - last_seen[row] > ttl_ms[of_number[key >> SLOT_SHIFT]]:
            free_row(free, meta, remove_key(index, key))
            removed[gone] = key
            gone += 1
    return hand, gone
