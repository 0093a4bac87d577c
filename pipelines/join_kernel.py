"""The join, event by event, compiled: rows wait in a ring until each of their heads is decided.

Rows enter in arrival order and leave in arrival order, so a row is named by its sequence number and lies at
``seq % capacity``. Deadlines follow arrival, hence the first undecided row of a head is always the oldest: expiry is a
pointer per group of heads with equal windows, never a search. An open-addressing index leads from key to place in the ring.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .batches import Kind

FEATURES, ACTION = int(Kind.FEATURES), int(Kind.ACTION)

# What became of an event.
TAKEN, DUPLICATE, HELD, LATE, UNUSED, FAULT, STALE = range(7)

EMPTY = np.int32(-1)


@njit(inline="always", cache=True)
def _home(key, mask):  # type: ignore[no-untyped-def]
    # Keys are hashes already: their low bits are as good as any.
    return key & mask


@njit(inline="always", cache=True)
def _number(at, after, wrap):  # type: ignore[no-untyped-def]
    """The newest number before ``after`` that lies at ``at`` in its ring."""
    return after - 1 - ((after - 1 - at) & wrap)


@njit(nogil=True, cache=True)
def index_find(index, ring_key, key):  # type: ignore[no-untyped-def]
    """Where ``key`` lies in its ring, by a linear-probing index of places in it, or -1."""
    mask = index.size - 1
    slot = _home(key, mask)
    while index[slot] != EMPTY:
        if ring_key[index[slot]] == key:
            return np.int64(index[slot])
        slot = (slot + 1) & mask
    return np.int64(EMPTY)


@njit(nogil=True, cache=True)
def index_set(index, ring_key, key, at):  # type: ignore[no-untyped-def]
    """Insert or overwrite: ``key`` lies at ``at`` from now on."""
    mask = index.size - 1
    slot = _home(key, mask)
    while index[slot] != EMPTY and ring_key[index[slot]] != key:
        slot = (slot + 1) & mask
    index[slot] = at


@njit(nogil=True, cache=True)
def index_remove(index, ring_key, key):  # type: ignore[no-untyped-def]
    """Remove by shifting back what probed past the hole, so that no tombstones gather."""
    mask = index.size - 1
    slot = _home(key, mask)
    while index[slot] == EMPTY or ring_key[index[slot]] != key:
        if index[slot] == EMPTY:
            return
        slot = (slot + 1) & mask
    hole = slot
    slot = (slot + 1) & mask
    while index[slot] != EMPTY:
        if ((slot - _home(ring_key[index[slot]], mask)) & mask) >= ((slot - hole) & mask):
            index[hole] = index[slot]
            hole = slot
        slot = (slot + 1) & mask
    index[hole] = EMPTY


@njit(nogil=True, cache=True)
def index_fill(index, ring_key, places):  # type: ignore[no-untyped-def]
    """Index many; of equal keys the last one stays."""
    for i in range(places.size):
        index_set(index, ring_key, ring_key[places[i]], places[i])


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
    next_seq, cursor, ring, index,
    held_next, held_first, held, held_index,
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
        at = index_find(index, ring_key, key[e])
        if at >= 0 and ring_arrival[at] < clock - horizon:
            # Forgotten now, though it stays in the index to the end of the batch: where batches end must not matter.
            at = EMPTY
        if kind[e] == ACTION:
            if at >= 0:
                seq = _number(at, next_seq, wrap)
                n, fate[e] = _credit(
                    n, seq, action[e], time_ms[e], e, next_seq, clock, early, head_action, head_window, ring, out
                )
            else:
                at = held_next & hold_wrap
                hold_action[at], hold_time[at] = action[e], time_ms[e]
                hold_arrival[at], hold_alive[at] = clock, 1
                before = index_find(held_index, hold_key, key[e])
                hold_previous[at] = EMPTY if before < 0 else _number(before, held_next, hold_wrap)
                hold_key[at] = key[e]
                index_set(held_index, hold_key, key[e], at)
                held_next += 1
                fate[e] = HELD
            continue
        if at >= 0:
            fate[e] = DUPLICATE
            continue
        at = next_seq & wrap
        ring_key[at], ring_time[at], ring_arrival[at] = key[e], time_ms[e], clock
        ring_decided[at], ring_label[at] = 0, 0
        index_set(index, ring_key, key[e], at)
        seq, next_seq = next_seq, next_seq + 1
        fate[e] = TAKEN
        newest = index_find(held_index, hold_key, key[e])
        waiting = _number(newest, held_next, hold_wrap) if newest >= 0 else np.int64(EMPTY)
        while waiting >= held_first:
            at = waiting & hold_wrap
            if hold_alive[at] and hold_arrival[at] >= clock - held_wait:
                hold_alive[at] = 0
                n, became = _credit(
                    n, seq, hold_action[at], hold_time[at], e, next_seq, clock, early, head_action, head_window, ring, out
                )
                held_fates[became] += 1
            waiting = hold_previous[at]
        index_remove(held_index, hold_key, key[e])
    return n, next_seq, held_next, clock


@njit(nogil=True, cache=True)
def release_rows(first, last, clock, horizon, ring_key, ring_arrival, index):  # type: ignore[no-untyped-def]
    """Forget the rows of ``[first, last)`` that arrived more than ``horizon`` ago; returns the new first."""
    wrap = ring_key.size - 1
    while first < last and ring_arrival[first & wrap] < clock - horizon:
        if index_find(index, ring_key, ring_key[first & wrap]) == first & wrap:
            index_remove(index, ring_key, ring_key[first & wrap])
        first += 1
    return first


@njit(nogil=True, cache=True)
def release_held(first, last, before, held, held_index, orphans):  # type: ignore[no-untyped-def]
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
        if index_find(held_index, hold_key, hold_key[at]) == at:
            index_remove(held_index, hold_key, hold_key[at])
        first += 1
    return first, n
