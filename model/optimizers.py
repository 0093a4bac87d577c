"""Sparse optimizers: one row at a time, its optimizer state beside it, each slot with its own settings.

Adagrad (Duchi et al. 2011) and lazy Adam (Kingma and Ba 2015, algorithm 1: moments and a row's own step count advance
only when the row is touched), both with Keras's placing of epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from schemas.slots import OptimizerConfig

ADAGRAD, ADAM = 0, 1
_KINDS = {"adagrad": ADAGRAD, "adam": ADAM}
#: float32 a weight: Adagrad keeps one sum of squares, Adam two moments.
STATES = {ADAGRAD: 1, ADAM: 2}


def settings_of(optimizers: Sequence[OptimizerConfig]) -> np.ndarray:
    """float64[S, 6]: kind, learning rate, initial accumulator, beta1, beta2, epsilon."""
    return np.array(
        [[_KINDS[o.kind], o.learning_rate, o.initial_accumulator, o.beta1, o.beta2, o.epsilon] for o in optimizers], np.float64
    )


@njit(nogil=True, cache=True)
def update_rows(values, state, steps, rows, slots, grads, settings):  # type: ignore[no-untyped-def]
    """Update ``values[rows]`` by ``grads``; rows are distinct, row 0 is left alone.

    Returns the number of rows whose gradient was not finite: they keep their values.
    """
    width = values.shape[1]
    bad = 0
    for i in range(rows.size):
        row = rows[i]
        if row == 0:
            continue
        total = np.float32(0.0)
        for d in range(width):
            total += grads[i, d] * np.float32(0.0)
        if total != 0.0 or np.isnan(total):  # infinity times zero is not a number
            bad += 1
            continue
        s = settings[slots[i]]
        rate, epsilon = np.float32(s[1]), np.float32(s[5])
        steps[row] += 1
        if s[0] == ADAGRAD:
            for d in range(width):
                g = grads[i, d]
                a = state[row, d] + g * g
                state[row, d] = a
                values[row, d] -= rate * g / np.sqrt(a + epsilon)
        else:
            t = steps[row]
            rate = np.float32(s[1] * np.sqrt(1.0 - s[4] ** t) / (1.0 - s[3] ** t))
            for d in range(width):
                g = grads[i, d]
                m = state[row, d] + (g - state[row, d]) * np.float32(1.0 - s[3])
                v = state[row, width + d] + (g * g - state[row, width + d]) * np.float32(1.0 - s[4])
                state[row, d], state[row, width + d] = m, v
                values[row, d] -= rate * m / (np.sqrt(v) + epsilon)
    return bad
