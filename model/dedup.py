"""The distinct ids of a batch, by a hash table of its own: sorting them would take as long as the rest of the step."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .feature_ids import SLOT_SHIFT, mix63_jit
from .growing_array import kernel_array
from .prefetch import prefetch_item
from .slot_arrays import unknown_slot

_BLOCK = 64  # ids hashed at a time, so that their cells are there when they are looked for


class Dedup:
    """Distinct ids of batches; keeps its hash table between them.

    Args:
        of_number: int32[32768], which slot numbers are configured, see `SlotArrays`.
    """

    def __init__(self, of_number: NDArray[np.int32]) -> None:
        self._of_number = of_number
        self._table = np.zeros(0, np.int32)

    def __call__(
        self, ids: NDArray[np.int64], counted: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
        """See `EmbeddingTable.dedup`."""
        ids = kernel_array(ids, np.int64)
        size = 1 << max(4, int(2 * ids.size).bit_length())
        if self._table.size < size:
            self._table = np.empty(size, np.int32)
        unique, occurrences = np.empty(ids.size + 1, np.int64), np.empty(ids.size + 1, np.int32)
        inverse = np.empty(ids.shape, np.int32)
        found = dedup_ids(
            ids, kernel_array(counted, np.bool_), self._of_number, self._table[:size], unique, inverse, occurrences
        )
        if found < 0:
            raise unknown_slot(int(unique[-found]))
        if 2 * found < ids.size:  # copies: views would keep all N * W cells alive
            return unique[:found].copy(), inverse, occurrences[:found].copy()
        return unique[:found], inverse, occurrences[:found]


@njit(nogil=True, cache=True)
def dedup_ids(
    ids: NDArray[np.int64],
    counted: NDArray[np.bool_],
    of_number: NDArray[np.int32],
    table: NDArray[np.int32],
    unique: NDArray[np.int64],
    inverse: NDArray[np.int32],
    occurrences: NDArray[np.int32],
) -> int:
    """Returns how many distinct ids there are, or minus the place in `unique` of one whose slot is not configured.

    `table` holds places in `unique`, 0 where free; a power of two more than the ids.
    """
    mask = table.size - 1
    table[:] = 0
    unique[0] = occurrences[0] = 0
    n, width = 1, ids.shape[1]
    flat, flat_inverse = ids.reshape(-1), inverse.reshape(-1)
    cells = np.empty(_BLOCK, np.int64)
    i, row_end = 0, width
    for start in range(0, flat.size, _BLOCK):
        stop = min(flat.size, start + _BLOCK)
        for j in range(start, stop):
            # The items of one request share the user's ids: the row above is right more often than not.
            if flat[j] != 0 and (j < width or flat[j] != flat[j - width]):
                cells[j - start] = mix63_jit(flat[j]) & mask
                prefetch_item(table, cells[j - start])
        for j in range(start, stop):
            key = flat[j]
            if j == row_end:  # a division for each id would take as long as the rest
                i += 1
                row_end += width
            if key == 0:
                flat_inverse[j] = 0
                continue
            if j >= width and key == flat[j - width]:
                place = flat_inverse[j - width]
            else:
                at = cells[j - start]
                while table[at] != 0 and unique[table[at]] != key:
                    at = (at + 1) & mask
                place = table[at]
                if place == 0:
                    unique[n] = key
                    if key < 0 or of_number[key >> SLOT_SHIFT] < 0:
                        return -n
                    table[at] = place = n
                    occurrences[n] = 0
                    n += 1
            flat_inverse[j] = place
            occurrences[place] += counted[i]
    return n
