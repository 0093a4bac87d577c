"""Admission: an id gets a row only after it has occurred often enough.

Occurrences are counted in a count-min sketch with conservative update (Estan and Varghese 2002), which never counts too
little; it is halved whenever it has taken in ``AGING`` occurrences a cell, so that old one-off ids fade.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .feature_ids import mix63_jit

_DEPTH = 4
AGING = 2


@njit(nogil=True, cache=True)
def count_ids(cells, ids, occurrences, counts):  # type: ignore[no-untyped-def]
    """Add ``occurrences`` of each id and write the new estimates to ``counts``."""
    mask = cells.shape[1] - 1
    for i in range(ids.size):
        h = mix63_jit(ids[i])
        step = (h >> 32) | 1
        least = np.uint32(0xFFFFFFFF)
        for d in range(_DEPTH):
            least = min(least, cells[d, (h + d * step) & mask])
        counts[i] = np.uint32(least + np.uint32(occurrences[i]))
        for d in range(_DEPTH):
            at = (h + d * step) & mask
            cells[d, at] = max(cells[d, at], counts[i])


class AdmissionFilter:
    """Counts occurrences of ids that have no row yet.

    Args:
        cells: counters a hash function, a power of two; 32 bits each.
    """

    def __init__(self, cells: int = 1 << 16) -> None:
        self._cells = np.zeros((_DEPTH, cells), np.uint32)
        self._taken = 0

    def count(self, ids: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
        """Count ids int64[N] (distinct), occurrences int32[N] each; estimates so far, uint32[N], never too small
        since the last aging."""
        counts = np.zeros(ids.size, np.uint32)
        count_ids(self._cells, ids, occurrences, counts)
        self._taken += int(occurrences.sum())
        if self._taken > AGING * self._cells.shape[1]:
            self._cells >>= 1
            self._taken //= 2
        return counts

    def state(self) -> dict[str, np.ndarray]:
        """As arrays."""
        return {"cells": self._cells, "taken": np.array([self._taken], np.int64)}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        self._cells = state["cells"].copy()
        self._taken = int(state["taken"][0])
