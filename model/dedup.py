"""The distinct ids of a batch, by a hash table of its own: sorting them would take as long as the rest of the step."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .feature_ids import SLOT_SHIFT, mix63_jit
from .growing_array import kernel_array
from .slot_arrays import unknown_slot


class Dedup:
    """Distinct ids of batches; keeps its hash table between them.

    Args:
        of_number: int32[32768], which slot numbers are configured, see `SlotArrays`.
    """

    def __init__(self, of_number: NDArray[np.int32]) -> None:
        self._of_number = of_number
        self._table = np.zeros(0, np.int32)

    def __call__(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Distinct ids int64[U] of ids int64[N, W], by first appearance behind 0; int32[N, W] leads back to them.

        Raises:
            ValueError: an id is of a slot that is not configured.
        """
        ids = kernel_array(ids, np.int64)
        size = 1 << max(4, int(2 * ids.size).bit_length())
        if self._table.size < size:
            self._table = np.empty(size, np.int32)
        unique = np.empty(ids.size + 1, np.int64)
        inverse = np.empty(ids.shape, np.int32)
        found = dedup_ids(ids, self._of_number, self._table[:size], unique, inverse)
        if found < 0:
            raise unknown_slot(int(unique[-found]))
        # A copy: a view would keep all N * W cells alive.
        return unique[:found].copy(), inverse


@njit(nogil=True, cache=True)
def dedup_ids(
    ids: NDArray[np.int64],
    of_number: NDArray[np.int32],
    table: NDArray[np.int32],
    unique: NDArray[np.int64],
    inverse: NDArray[np.int32],
) -> int:
    """Returns how many distinct ids there are, or minus the place in `unique` of one whose slot is not configured.

    `table` holds places in `unique`, 0 where free; a power of two more than the ids.
    """
    mask = table.size - 1
    table[:] = 0
    unique[0] = 0
    n = 1
    for i in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            key = ids[i, c]
            # The items of one request share the user's ids: the row above is right more often than not.
            if i > 0 and key == ids[i - 1, c]:
                inverse[i, c] = inverse[i - 1, c]
                continue
            if key == 0:
                inverse[i, c] = 0
                continue
            at = mix63_jit(key) & mask
            while table[at] != 0 and unique[table[at]] != key:
                at = (at + 1) & mask
            if table[at] == 0:
                unique[n] = key
                if key < 0 or of_number[key >> SLOT_SHIFT] < 0:
                    return -n
                table[at] = n
                n += 1
            inverse[i, c] = table[at]
    return n


@njit(nogil=True, cache=True)
def count_ids_of(inverse: NDArray[np.int32], first: NDArray[np.bool_], occurrences: NDArray[np.int32]) -> None:
    """Adds to `occurrences` int32[U] how often each distinct id is in the rows that `first` marks; padding stays 0."""
    for i in range(inverse.shape[0]):
        if first[i]:
            for c in range(inverse.shape[1]):
                occurrences[inverse[i, c]] += 1
    occurrences[0] = 0
