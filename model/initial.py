"""What a new row holds: drawn from the seed and the id alone, so that a replay gives the same row."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .arena import KEY, Layout, RowArrays, word
from .feature_ids import SLOT_SHIFT, mix63_jit
from .optimizers import start_state
from .random_bits import mixed, normal, unit
from .slot_arrays import NORMAL, UNIFORM, SlotArrays

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(nogil=True, cache=True)
def start_rows(
    arena: RowArrays, layout: Layout, slots: SlotArrays, rows: NDArray[np.int32], created: NDArray[np.int32], seed: int
) -> None:
    """Values and optimizer state of the new ones among `rows`, those at positions `created`.

    The first-order weight is 0, the embedding as the slot has it.
    """
    floats, ints, longs = arena.floats, arena.ints, arena.longs
    of_number, init, init_scale, settings = slots.of_number, slots.init, slots.init_scale, slots.optimizers
    for at in created:
        row = rows[at]
        key = longs[row, KEY]
        slot = of_number[key >> SLOT_SHIFT]
        kind, scale = init[slot], np.float64(init_scale[slot])
        x = np.uint64(mix63_jit(key ^ np.int64(seed)))
        floats[row, layout.values] = 0.0
        for d in range(1, layout.state - layout.values):
            bits = mixed(x + np.uint64(d) * _GOLDEN)
            value = 0.0
            if kind == NORMAL:
                value = normal(bits) * scale
            elif kind == UNIFORM:
                value = (2.0 * unit(bits) - 1.0) * scale
            floats[row, word(layout.values, d)] = np.float32(value)
        start_state(floats, ints, layout, row, settings, slot)
