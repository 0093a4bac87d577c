"""Copies of rows of a table, each record read once and its columns written out."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .arena import COUNT, KEY, SEEN, STEPS, TOUCHED, Layout, RowArrays, word
from .journal import unwrapped
from .prefetch import AHEAD, LINE, prefetch
from .table_rows import TableRows
from .threads import ranges, run

_LEAST = 4096  # rows a thread
_UINT32 = np.int64(0xFFFFFFFF)


def copy_rows(arena: RowArrays, layout: Layout, rows: NDArray[np.int32], version: int, state: bool) -> TableRows:
    """Copies of rows int32[R] of a table at `version`, all in its arena; without optimizer state unless `state`."""
    end = layout.end if state else layout.state
    copies = TableRows(
        keys=np.empty(rows.size, np.int64),
        values=np.empty((rows.size, layout.state - layout.values), np.float32),
        optimizer=np.empty((rows.size, end - layout.state), np.float32),
        steps=np.zeros(rows.size, np.int32),
        counts=np.empty(rows.size, np.int32),
        last_seen_ms=np.empty(rows.size, np.int64),
        versions=np.empty(rows.size, np.int64),
        numbers=rows.copy(),
    )
    touched = np.empty(rows.size, np.int32)

    def copied(part: slice) -> None:
        _copy(
            arena.floats, arena.ints, arena.longs, layout, rows[part], copies.keys[part], copies.values[part],
            copies.optimizer[part], copies.steps[part], copies.counts[part], copies.last_seen_ms[part], touched[part],
        )  # fmt: skip

    run(copied, ranges(rows.size, _LEAST))
    copies.versions[:] = unwrapped(touched, version)
    return copies


@njit(nogil=True, cache=True)
def _copy(  # type: ignore[no-untyped-def]
    floats, ints, longs, layout, rows, keys, values, optimizer, steps, counts, last_seen_ms, touched
):
    end = layout.state + optimizer.shape[1]
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            for column in range(0, end, LINE):
                prefetch(floats, rows[i + AHEAD], column)
            prefetch(floats, rows[i + AHEAD], end - 1)
        at, row = np.uint64(i), np.uint64(rows[i])
        keys[i] = longs[row, KEY]
        counts[i] = ints[row, COUNT]
        last_seen_ms[i] = (np.int64(ints[row, SEEN]) & _UINT32) * 1000
        touched[i] = ints[row, TOUCHED]
        if layout.values > STEPS:
            steps[i] = ints[row, STEPS]
        for d in range(values.shape[1]):
            values[at, word(d, 0)] = floats[row, word(layout.values, d)]
        for d in range(optimizer.shape[1]):
            optimizer[at, word(d, 0)] = floats[row, word(layout.state, d)]
