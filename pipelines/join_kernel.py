"""The join, event by event, compiled: rows wait in a ring until each of their heads is decided.

Rows enter in arrival order and leave in arrival order, so a row is named by its sequence number and lies at
``seq % capacity``. Deadlines follow arrival, hence the first undecided row of a head is always the oldest: expiry is a
pointer per group of heads with equal windows, never a search. An open-addressing index leads from key to sequence number.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .batches import Kind

FEATURES, ACTION = int(Kind.FEATURES), int(Kind.ACTION)

# What became of an event.
TAKEN, DUPLICATE, HELD, LATE, UNUSED, FAULT, STALE = range(7)

EMPTY = np.int64(-1)


@njit(inline="always", cache=True)
def _home(key, mask):  # type: ignore[no-untyped-def]
    # Keys are hashes already: their low bits are as good as any.
    return key & mask


@njit(nogil=True, cache=True)
def index_find(index_key, index_value, key):  # type: ignore[no-untyped-def]
    """Value of ``key`` in a linear-probing index, or -1."""
    mask = index_key.size - 1
    at = _home(key, mask)
    while index_key[at] != EMPTY:
        if index_key[at] == key:
            return index_value[at]
        at = (at + 1) & mask
    return EMPTY


@njit(nogil=True, cache=True)
def index_set(index_key, index_value, key, value):  # type: ignore[no-untyped-def]
    """Insert or overwrite."""
    mask = index_key.size - 1
    at = _home(key, mask)
    while index_key[at] != EMPTY and index_key[at] != key:
        at = (at + 1) & mask
    index_key[at] = key
    index_value[at] = value


@njit(nogil=True, cache=True)
def index_remove(index_key, index_value, key):  # type: ignore[no-untyped-def]
    """Remove by shifting back what probed past the hole, so that no tombstones gather."""
    mask = index_key.size - 1
    at = _home(key, mask)
    while index_key[at] != key:
        if index_key[at] == EMPTY:
            return
        at = (at + 1) & mask
    hole = at
    at = (at + 1) & mask
    while index_key[at] != EMPTY:
        if ((at - _home(index_key[at], mask)) & mask) >= ((at - hole) & mask):
            index_key[hole] = index_key[at]
            index_value[hole] = index_value[at]
            hole = at
        at = (at + 1) & mask
    index_key[hole] = EMPTY


@njit(nogil=True, cache=True)
def index_fill(index_key, index_value, keys, values):  # type: ignore[no-untyped-def]
    """Index many; of equal keys the last one stays."""
    for i in range(keys.size):
        index_set(index_key, index_value, keys[i], values[i])


@njit(nogil=True, cache=True)
def _decide(n, seq, mask, label, event, rows, now, out):  # type: ignore[no-untyped-def]
    out_seq, out_mask, out_label, out_event, out_rows, out_ms = out
    out_seq[n], out_mask[n], out_label[n] = seq, mask, label
    out_event[n], out_rows[n], out_ms[n] = event, rows, now
    return n + 1


@njit(nogil=True, cache=True)
def expire(n, clock, event, next_seq, cursor, group_window, group_mask, ring, out):  # type: ignore[no-untyped-def]
    """Decide as negatives the heads whose window has passed at ``clock``; returns the new number of decisions."""
    _, _, ring_arrival, ring_decided, ring_label = ring
    wrap = ring_arrival.size - 1
    for g in range(cursor.size):
        while cursor[g] < next_seq:
            at = cursor[g] & wrap
            deadline = ring_arrival[at] + group_window[g]
            if deadline >= clock:
                break
            open_heads = group_mask[g] & ~ring_decided[at]
            if open_heads:
                ring_decided[at] |= open_heads
                n = _decide(n, cursor[g], open_heads, ring_label[at] & open_heads, event, next_seq, deadline, out)
            cursor[g] += 1
    return n


@njit(nogil=True, cache=True)
def _credit(n, seq, action, time_ms, event, next_seq, now, early, head_action, head_window, ring, out):  # type: ignore[no-untyped-def]
    """Credit an action to a row; returns (decisions so far, what became of it)."""
    _, ring_time, _, ring_decided, ring_label = ring
    at = seq & (ring_time.size - 1)
    fate = UNUSED
    newly = 0
    for h in range(head_action.size):
        if head_action[h] != action:
            continue
        bit = 1 << h
        if ring_label[at] & bit:
            fate = DUPLICATE
        elif (ring_decided[at] & bit) or time_ms - ring_time[at] > head_window[h]:
            fate = LATE
        else:
            newly |= bit
    if newly:
        fate = TAKEN
        ring_label[at] |= newly
        if early:
            ring_decided[at] |= newly
            n = _decide(n, seq, newly, newly, event, next_seq, now, out)
    return n, fate


@njit(nogil=True, cache=True)
def advance(  # type: ignore[no-untyped-def]
    kind, key, action, time_ms, order_ms, clock, horizon, held_wait, early,
    head_action, head_window, group_window, group_mask,
    next_seq, cursor, ring, index_key, index_value,
    held_next, held_first, held, held_key, held_value,
    fate, held_fates, rows_before, out,
):  # fmt: skip
    """Apply events in order.

    ``ring`` is (key, time, arrival, decided, label) of the waiting rows; ``held`` is (key, action, time, arrival, previous,
    alive) of actions that came before their features, a ring as well, chained by key through ``previous``.
    ``fate`` (int8[N]) tells what became of each event, ``held_fates`` (int64[7]) counts what became of held actions when
    their features came, ``rows_before`` (int64[N]) is the next sequence number before each event.

    Returns:
        (decisions, next_seq, held_next, clock)
    """
    ring_key, ring_time, ring_arrival, ring_decided, ring_label = ring
    hold_key, hold_action, hold_time, hold_arrival, hold_previous, hold_alive = held
    wrap = ring_key.size - 1
    hold_wrap = hold_key.size - 1
    n = 0
    for e in range(kind.size):
        clock = max(clock, order_ms[e])
        n = expire(n, clock, e, next_seq, cursor, group_window, group_mask, ring, out)
        rows_before[e] = next_seq
        if kind[e] != FEATURES and kind[e] != ACTION:
            fate[e] = FAULT
            continue
        if kind[e] == ACTION and action[e] < 0:
            fate[e] = UNUSED
            continue
        if time_ms[e] < clock - horizon:
            # Whether it is a repetition can no longer be known.
            fate[e] = STALE
            continue
        seq = index_find(index_key, index_value, key[e])
        if seq >= 0 and ring_arrival[seq & wrap] < clock - horizon:
            # Forgotten now, though it stays in the index to the end of the batch: where batches end must not matter.
            seq = EMPTY
        if kind[e] == ACTION:
            if seq >= 0:
                n, fate[e] = _credit(
                    n, seq, action[e], time_ms[e], e, next_seq, clock, early, head_action, head_window, ring, out
                )
            else:
                at = held_next & hold_wrap
                hold_key[at], hold_action[at], hold_time[at] = key[e], action[e], time_ms[e]
                hold_arrival[at], hold_alive[at] = clock, 1
                hold_previous[at] = index_find(held_key, held_value, key[e])
                index_set(held_key, held_value, key[e], held_next)
                held_next += 1
                fate[e] = HELD
            continue
        if seq >= 0:
            fate[e] = DUPLICATE
            continue
        at = next_seq & wrap
        ring_key[at], ring_time[at], ring_arrival[at] = key[e], time_ms[e], clock
        ring_decided[at], ring_label[at] = 0, 0
        index_set(index_key, index_value, key[e], next_seq)
        seq, next_seq = next_seq, next_seq + 1
        fate[e] = TAKEN
        waiting = index_find(held_key, held_value, key[e])
        while waiting >= held_first:
            at = waiting & hold_wrap
            if hold_alive[at] and hold_arrival[at] >= clock - held_wait:
                hold_alive[at] = 0
                n, became = _credit(
                    n, seq, hold_action[at], hold_time[at], e, next_seq, clock, early, head_action, head_window, ring, out
                )
                held_fates[became] += 1
            waiting = hold_previous[at]
        index_remove(held_key, held_value, key[e])
    return n, next_seq, held_next, clock


@njit(nogil=True, cache=True)
def release_rows(first, last, clock, horizon, ring_key, ring_arrival, index_key, index_value):  # type: ignore[no-untyped-def]
    """Forget the rows of ``[first, last)`` that arrived more than ``horizon`` ago; returns the new first."""
    wrap = ring_key.size - 1
    while first < last and ring_arrival[first & wrap] < clock - horizon:
        if index_find(index_key, index_value, ring_key[first & wrap]) == first:
            index_remove(index_key, index_value, ring_key[first & wrap])
        first += 1
    return first


@njit(nogil=True, cache=True)
def release_held(first, last, before, held, held_key, held_value, orphans):  # type: ignore[no-untyped-def]
    """Let go of held actions that arrived before ``before``; returns (new first, orphans written to ``orphans``)."""
    hold_key, _, _, hold_arrival, _, hold_alive = held
    wrap = hold_key.size - 1
    n = 0
    while first < last and hold_arrival[first & wrap] < before:
        at = first & wrap
        if hold_alive[at]:
            hold_alive[at] = 0
            orphans[n] = first
            n += 1
        if index_find(held_key, held_value, hold_key[at]) == first:
            index_remove(held_key, held_value, hold_key[at])
        first += 1
    return first, n
