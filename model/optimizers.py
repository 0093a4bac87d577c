"""Sparse optimizers: one row at a time, its optimizer state beside it, each slot with its own settings.

SGD, Adagrad (Duchi, Hazan and Singer 2011), lazy Adam (Kingma and Ba 2015, algorithm 1; moments and a row's own step count
advance only when the row is touched) and FTRL-proximal (McMahan et al. 2013, algorithm 1), all with the arithmetic of
Keras 3, row by row:

    SGD:      w -= rate * g
    Adagrad:  a += g^2;  w -= rate * g / sqrt(a + epsilon)
    Adam:     m += (1 - beta1) (g - m);  u += (1 - beta2) (g^2 - u);
              w -= rate * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(u) + epsilon)
    FTRL:     z += g - (sqrt(a + g^2) - sqrt(a)) / rate * w;  a += g^2;
              w = (clip(z, -l1, l1) - z) / (sqrt(a) / rate + 2 l2)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from schemas.slots import OptimizerConfig

from .arena import KEY, STEPS, TOUCHED, Layout, RowArrays, word
from .feature_ids import SLOT_SHIFT
from .prefetch import AHEAD, LINE, prefetch

SGD, ADAGRAD, ADAM, FTRL = range(4)
_KINDS = {"sgd": SGD, "adagrad": ADAGRAD, "adam": ADAM, "ftrl": FTRL}
_STATES = {"sgd": 0, "adagrad": 1, "adam": 2, "ftrl": 2}  # numbers of state a weight
_KIND, _RATE, INITIAL, _BETA1, _BETA2, _EPSILON, _L1, _L2 = range(8)  # columns of the settings

# A gradient this large is an explosion like infinity is: its square would soon be infinite and end the row's learning.
MAX_GRADIENT = np.float32(2.0**60)


def settings_of(optimizers: Sequence[OptimizerConfig]) -> NDArray[np.float64]:
    """float64[S, 8]: kind, learning rate, initial accumulator, beta1, beta2, epsilon, l1, l2."""
    return np.array(
        [
            [
                *(_KINDS[o.kind], o.learning_rate, o.initial_accumulator if o.kind in ("adagrad", "ftrl") else 0.0),
                *(o.beta1, o.beta2, o.epsilon, o.l1, o.l2),
            ]
            for o in optimizers
        ],
        np.float64,
    )


def state_width(optimizers: Sequence[OptimizerConfig], row_width: int) -> int:
    """Columns of optimizer state that hold any of these optimizers: up to two a weight."""
    return row_width * max(_STATES[optimizer.kind] for optimizer in optimizers)


def counts_steps(optimizers: Sequence[OptimizerConfig]) -> bool:
    """Whether any of these optimizers counts a row's steps."""
    return any(optimizer.kind == "adam" for optimizer in optimizers)


@njit(inline="always")
def start_state(floats, ints, layout, row, settings, slot):  # type: ignore[no-untyped-def]
    """What a new row's optimizer state is: the initial accumulator for Adagrad and FTRL, and zeros."""
    width = layout.state - layout.values
    accumulator = np.float32(settings[slot, INITIAL])
    for d in range(layout.state, layout.end):
        floats[row, word(d, 0)] = accumulator if d < layout.state + width else np.float32(0.0)
    if layout.values > STEPS:
        ints[row, STEPS] = 0


@njit(inline="always")
def _usable(gradients: NDArray[np.float32], i: int) -> bool:
    """Whether a gradient is finite and no explosion; a NaN compares false."""
    good = 0
    for d in range(gradients.shape[1]):
        good += abs(gradients[i, d]) < MAX_GRADIENT
    return good == gradients.shape[1]


@njit(inline="always")
def _sgd(floats, w, row, gradients, i, rate):  # type: ignore[no-untyped-def]
    for d in range(gradients.shape[1]):
        floats[row, word(w, d)] -= rate * gradients[i, d]


@njit(inline="always")
def _adagrad(floats, w, a, row, gradients, i, rate, epsilon):  # type: ignore[no-untyped-def]
    for d in range(gradients.shape[1]):
        g = gradients[i, d]
        accumulated = floats[row, word(a, d)] + g * g
        floats[row, word(a, d)] = accumulated
        floats[row, word(w, d)] -= rate * g / np.sqrt(accumulated + epsilon)


@njit(nogil=True, cache=True, error_model="numpy")
def _adam(
    floats: NDArray[np.float32],
    w: int,
    m: int,
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
    u = m + width
    for d in range(width):
        g = gradients[i, d]
        first = floats[row, word(m, d)] + (g - floats[row, word(m, d)]) * toward1
        second = floats[row, word(u, d)] + (g * g - floats[row, word(u, d)]) * toward2
        floats[row, word(m, d)] = first
        floats[row, word(u, d)] = second
        floats[row, word(w, d)] -= rate * first / (np.sqrt(second) + epsilon)


@njit(nogil=True, cache=True, error_model="numpy")
def _ftrl(
    floats: NDArray[np.float32],
    w: int,
    a: int,
    row: int,
    gradients: NDArray[np.float32],
    i: int,
    settings: NDArray[np.float64],
) -> None:
    rate, l1, l2 = np.float32(settings[_RATE]), np.float32(settings[_L1]), np.float32(settings[_L2])
    width = gradients.shape[1]
    z = a + width
    for d in range(width):
        g = gradients[i, d]
        before = floats[row, word(a, d)]
        after = before + g * g
        linear = floats[row, word(z, d)] + g - (np.sqrt(after) - np.sqrt(before)) / rate * floats[row, word(w, d)]
        floats[row, word(a, d)] = after
        floats[row, word(z, d)] = linear
        clipped = min(max(linear, -l1), l1)
        floats[row, word(w, d)] = (clipped - linear) / (np.sqrt(after) / rate + np.float32(2.0) * l2)


@njit(inline="always")
def _step(floats, ints, layout, row, gradients, i, settings, slot):  # type: ignore[no-untyped-def]
    """One step of a row by its slot's optimizer."""
    kind = settings[slot, _KIND]
    if kind == ADAGRAD:
        rate, epsilon = np.float32(settings[slot, _RATE]), np.float32(settings[slot, _EPSILON])
        _adagrad(floats, layout.values, layout.state, row, gradients, i, rate, epsilon)
    elif kind == SGD:
        _sgd(floats, layout.values, row, gradients, i, np.float32(settings[slot, _RATE]))
    elif kind == ADAM:
        ints[row, STEPS] += 1
        _adam(floats, layout.values, layout.state, row, gradients, i, settings[slot], ints[row, STEPS])
    else:
        _ftrl(floats, layout.values, layout.state, row, gradients, i, settings[slot])


@njit(nogil=True, cache=True, error_model="numpy")
def update_rows(
    arena: RowArrays,
    layout: Layout,
    of_number: NDArray[np.int32],
    settings: NDArray[np.float64],
    rows: NDArray[np.int32],
    gradients: NDArray[np.float32],
    version: int,
    fresh: NDArray[np.bool_],
) -> tuple[int, int]:
    """One optimizer step of `rows` int32[U], distinct, by `gradients` float32[U, 1 + dim]; default rows are passed over.

    Args:
        version: int32, of this touch; `fresh` bool[U] says which rows it had not touched yet.

    Returns:
        Gradients left out because they were not finite, whose rows keep values and state; and how many rows are fresh.
    """
    floats, ints, longs, _, _ = arena
    slots = settings.shape[0]
    left_out = touched = 0
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            for column in range(0, layout.end, LINE):
                prefetch(floats, rows[i + AHEAD], column)
            prefetch(floats, rows[i + AHEAD], layout.end - 1)
        row = rows[i]
        fresh[i] = False
        if row <= slots or longs[row, KEY] == 0:  # padding, default, or let go since the rows were looked up
            continue
        if _usable(gradients, i):
            slot = of_number[longs[row, KEY] >> SLOT_SHIFT]
            _step(floats, ints, layout, row, gradients, i, settings, slot)
        else:
            left_out += 1
        if ints[row, TOUCHED] != version:
            ints[row, TOUCHED] = version
            fresh[i] = True
            touched += 1
    return left_out, touched


@njit(nogil=True, cache=True, error_model="numpy")
def update_defaults(
    arena: RowArrays,
    layout: Layout,
    settings: NDArray[np.float64],
    rows: NDArray[np.int32],
    gradients: NDArray[np.float32],
    given: NDArray[np.bool_],
) -> int:
    """One step of each default row among `rows` int32[U] by the sum of its ids' gradients.

    Args:
        given: bool[1 + S], False; is set for the default rows that were there.

    Returns:
        Gradients left out because they, or their sum, were not finite.
    """
    slots = settings.shape[0]
    sums = np.zeros((1 + slots, gradients.shape[1]), np.float32)
    left_out = 0
    for i in range(rows.size):
        row = rows[i]
        if 0 < row <= slots:
            if _usable(gradients, i):
                given[row] = True
                for d in range(gradients.shape[1]):
                    sums[row, d] += gradients[i, d]
            else:
                left_out += 1
    for row in range(1, slots + 1):
        if given[row] and _usable(sums, row):
            _step(arena.floats, arena.ints, layout, row, sums, row, settings, row - 1)
        elif given[row]:
            left_out += 1
    return left_out
