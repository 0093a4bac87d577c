"""Sparse optimizers: one row at a time, its optimizer state beside it, each slot with its own settings.

Adagrad (Duchi, Hazan and Singer 2011) and lazy Adam (Kingma and Ba 2015, algorithm 1; moments and a row's own step count
advance only when the row is touched), both with the arithmetic of Keras 3, row by row:

    Adagrad:  a += g^2;  w -= rate * g / sqrt(a + epsilon)
    Adam:     m += (1 - beta1) (g - m);  u += (1 - beta2) (g^2 - u);
              w -= rate * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(u) + epsilon)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from schemas.slots import OptimizerConfig

from .arena import RowArrays
from .feature_ids import SLOT_SHIFT

ADAGRAD, ADAM = 0, 1
_KINDS = {"adagrad": ADAGRAD, "adam": ADAM}
_STATES = {"adagrad": 1, "adam": 2}
_KIND, _RATE, _INITIAL, _BETA1, _BETA2, _EPSILON = range(6)  # columns of the settings

# A gradient this large is an explosion like infinity is: its square would soon be infinite and end the row's learning.
MAX_GRADIENT = np.float32(2.0**60)


def settings_of(optimizers: Sequence[OptimizerConfig]) -> NDArray[np.float64]:
    """float64[S, 6]: kind, learning rate, initial accumulator, beta1, beta2, epsilon."""
    return np.array(
        [[_KINDS[o.kind], o.learning_rate, o.initial_accumulator, o.beta1, o.beta2, o.epsilon] for o in optimizers],
        np.float64,
    )


def state_width(optimizers: Sequence[OptimizerConfig], row_width: int) -> int:
    """Columns of optimizer state that hold any of these optimizers: one or two a weight."""
    return row_width * max(_STATES[optimizer.kind] for optimizer in optimizers)


@njit(inline="always")
def initial_state(settings: NDArray[np.float64], slot: int) -> np.float32:
    """What a new row's optimizer state is filled with."""
    return np.float32(settings[slot, _INITIAL]) if settings[slot, _KIND] == ADAGRAD else np.float32(0.0)


@njit(inline="always")
def _usable(gradients: NDArray[np.float32], i: int) -> bool:
    """Whether a gradient is finite and no explosion; a NaN compares false."""
    good = 0
    for d in range(gradients.shape[1]):
        good += abs(gradients[i, d]) < MAX_GRADIENT
    return good == gradients.shape[1]


@njit(inline="always")
def _adagrad(values, state, row, gradients, i, rate, epsilon):  # type: ignore[no-untyped-def]
    for d in range(gradients.shape[1]):
        g = gradients[i, d]
        a = state[row, d] + g * g
        state[row, d] = a
        values[row, d] -= rate * g / np.sqrt(a + epsilon)


@njit(nogil=True, cache=True, error_model="numpy")
def _adam(
    values: NDArray[np.float32],
    state: NDArray[np.float32],
    row: int,
    gradients: NDArray[np.float32],
    i: int,
    settings: NDArray[np.float64],
    t: int,
) -> None:
    # The betas' powers are those of the float32 numbers, as in Keras; 0.999 as a float64 would be off by 1e-5 at t = 1.
    power1 = np.float64(np.float32(settings[_BETA1])) ** t
    power2 = np.float64(np.float32(settings[_BETA2])) ** t
    rate = np.float32(settings[_RATE] * np.sqrt(1.0 - power2) / (1.0 - power1))
    toward1, toward2 = np.float32(1.0 - settings[_BETA1]), np.float32(1.0 - settings[_BETA2])
    epsilon = np.float32(settings[_EPSILON])
    width = gradients.shape[1]
    for d in range(width):
        g = gradients[i, d]
        m = state[row, d] + (g - state[row, d]) * toward1
        u = state[row, width + d] + (g * g - state[row, width + d]) * toward2
        state[row, d] = m
        state[row, width + d] = u
        values[row, d] -= rate * m / (np.sqrt(u) + epsilon)


@njit(nogil=True, cache=True, error_model="numpy")
def update_rows(
    arena: RowArrays,
    keys: NDArray[np.int64],
    of_number: NDArray[np.int32],
    settings: NDArray[np.float64],
    rows: NDArray[np.int32],
    gradients: NDArray[np.float32],
    sums: NDArray[np.float32],
) -> int:
    """One optimizer step of `rows` int32[U] by `gradients` float32[U, 1 + dim].

    Args:
        sums: float32[1 + S, 1 + dim] of zeros, in which the gradients of default rows (1 to S) are summed first.

    Returns:
        Gradients left out because they were not finite; a row without any other keeps its value and state.
    """
    values, state, steps = arena.values, arena.optimizer, arena.steps
    slots = sums.shape[0] - 1
    given = np.zeros(slots + 1, np.bool_)
    left_out = 0
    for i in range(rows.size):
        row = rows[i]
        if row == 0:
            continue
        if not _usable(gradients, i):
            left_out += 1
        elif row <= slots:
            given[row] = True
            for d in range(gradients.shape[1]):
                sums[row, d] += gradients[i, d]
        elif keys[row] != 0:  # not let go since the rows were looked up
            slot = of_number[keys[row] >> SLOT_SHIFT]
            if settings[slot, _KIND] == ADAGRAD:
                rate, epsilon = np.float32(settings[slot, _RATE]), np.float32(settings[slot, _EPSILON])
                _adagrad(values, state, row, gradients, i, rate, epsilon)
            else:
                steps[row] += 1
                _adam(values, state, row, gradients, i, settings[slot], steps[row])
    for row in range(1, slots + 1):
        if not given[row]:
            continue
        if not _usable(sums, row):
            left_out += 1
        elif settings[row - 1, _KIND] == ADAGRAD:
            rate, epsilon = np.float32(settings[row - 1, _RATE]), np.float32(settings[row - 1, _EPSILON])
            _adagrad(values, state, row, sums, row, rate, epsilon)
        else:
            steps[row] += 1
            _adam(values, state, row, sums, row, settings[row - 1], steps[row])
    return left_out
