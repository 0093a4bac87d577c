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

import math
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
_KIND, _RATE, INITIAL, _BETA1, _BETA2, _EPSILON, _L1, _L2, _ALIKE = range(9)  # columns of the settings

# A gradient this large is an explosion like infinity is: its square would soon be infinite and end the row's learning.
MAX_GRADIENT = np.float32(2.0**60)
_MAX_BITS = np.int32(MAX_GRADIENT.view(np.int32))
_VANISHED = -26  # a power below 2 to this makes no difference to a float32
_MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits of a float but its sign


def settings_of(optimizers: Sequence[OptimizerConfig]) -> NDArray[np.float64]:
    """float64[S, 9]: kind, learning rate, initial accumulator, beta1, beta2, epsilon, l1, l2, and a number that slots have in
    common if all these are alike."""
    settings = np.array(
        [
            [
                *(_KINDS[o.kind], o.learning_rate, o.initial_accumulator if o.kind in ("adagrad", "ftrl") else 0.0),
                *(o.beta1, o.beta2, o.epsilon, o.l1, o.l2),
            ]
            for o in optimizers
        ],
        np.float64,
    )
    alike = np.unique(settings, axis=0, return_inverse=True)[1]
    return np.column_stack([settings, alike.reshape(-1)])


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
def _usable(bits: NDArray[np.int32], i: int) -> bool:
    """Whether a gradient, seen as its bits, is finite and no explosion.

    Without their signs, floats are in the order of their bits, with infinity and NaN above all others; a maximum of integers
    is vectorised, and one that must heed NaN is not.
    """
    largest = np.int32(0)
    for d in range(bits.shape[1]):
        largest = max(largest, bits[i, word(d, 0)] & _MAGNITUDE)
    return bool(largest < _MAX_BITS)


def adam_rates(settings: NDArray[np.float64]) -> NDArray[np.float32]:
    """float32[A, T] of Adam's rate at a row's step t, bias correction included, up to where it is the learning rate.

    Two powers a row would take as long as the rest of its step. A row of them serves all slots whose settings are alike.
    """
    settings = settings[np.unique(settings[:, _ALIKE], return_index=True)[1]]
    adam = settings[:, _KIND] == ADAM
    # The betas' powers are those of the float32 numbers, as in Keras; 0.999 as a float64 would be off by 1e-5 at t = 1.
    beta1, beta2 = (settings[:, [beta]].astype(np.float32).astype(np.float64) for beta in (_BETA1, _BETA2))
    slowest = float(max(beta1[adam].max(initial=0.0), beta2[adam].max(initial=0.0)))
    steps = np.arange(1, 2 + math.ceil(_VANISHED / math.log2(slowest)) if slowest > 0.0 else 2)
    with np.errstate(under="ignore"):
        rates = settings[:, [_RATE]] * np.sqrt(1.0 - beta2**steps) / (1.0 - beta1**steps)
    return np.concatenate([np.zeros((len(settings), 1)), rates * adam[:, None]], axis=1).astype(np.float32)


@njit(inline="always")
def _sgd(floats, w, row, gradients, i, rate):  # type: ignore[no-untyped-def]
    for d in range(gradients.shape[1]):
        floats[row, word(w, d)] -= rate * gradients[i, word(d, 0)]


@njit(inline="always")
def _adagrad(floats, w, a, row, gradients, i, rate, epsilon):  # type: ignore[no-untyped-def]
    for d in range(gradients.shape[1]):
        g = gradients[i, word(d, 0)]
        accumulated = floats[row, word(a, d)] + g * g
        floats[row, word(a, d)] = accumulated
        floats[row, word(w, d)] -= rate * g / np.sqrt(accumulated + epsilon)


@njit(inline="always")
def _adam(floats, w, m, row, gradients, i, settings, rates, slot, t):  # type: ignore[no-untyped-def]
    rate = rates[int(settings[slot, _ALIKE]), min(t, rates.shape[1] - 1)]
    toward1, toward2 = np.float32(1.0 - settings[slot, _BETA1]), np.float32(1.0 - settings[slot, _BETA2])
    epsilon = np.float32(settings[slot, _EPSILON])
    u = m + gradients.shape[1]
    for d in range(gradients.shape[1]):
        g = gradients[i, word(d, 0)]
        first = floats[row, word(m, d)] + (g - floats[row, word(m, d)]) * toward1
        second = floats[row, word(u, d)] + (g * g - floats[row, word(u, d)]) * toward2
        floats[row, word(m, d)] = first
        floats[row, word(u, d)] = second
        floats[row, word(w, d)] -= rate * first / (np.sqrt(second) + epsilon)


@njit(inline="always")
def _ftrl(floats, w, a, row, gradients, i, settings, slot):  # type: ignore[no-untyped-def]
    rate = np.float32(settings[slot, _RATE])
    l1, l2 = np.float32(settings[slot, _L1]), np.float32(settings[slot, _L2])
    z = a + gradients.shape[1]
    for d in range(gradients.shape[1]):
        g = gradients[i, word(d, 0)]
        before = floats[row, word(a, d)]
        after = before + g * g
        linear = floats[row, word(z, d)] + g - (np.sqrt(after) - np.sqrt(before)) / rate * floats[row, word(w, d)]
        floats[row, word(a, d)] = after
        floats[row, word(z, d)] = linear
        clipped = min(max(linear, -l1), l1)
        floats[row, word(w, d)] = (clipped - linear) / (np.sqrt(after) / rate + np.float32(2.0) * l2)


@njit(nogil=True, cache=True, error_model="numpy")
def update_rows(
    arena: RowArrays,
    layout: Layout,
    of_number: NDArray[np.int32],
    settings: NDArray[np.float64],
    rates: NDArray[np.float32],
    first: int,
    rows: NDArray[np.int32],
    gradients: NDArray[np.float32],
    version: int,
    fresh: NDArray[np.bool_],
) -> tuple[int, int]:
    """One optimizer step of `rows` int32[U], distinct, by `gradients` float32[U, 1 + dim], each by its slot's optimizer.

    Args:
        settings: float64[S, 9], see `settings_of`; rates: see `adam_rates`.
        first: rows before this one are passed over.
        version: int32, of this touch; `fresh` bool[U] says which rows it had not touched yet.

    Returns:
        Gradients left out because they were not finite, whose rows keep values and state; and how many rows are fresh.
    """
    floats, ints, longs = arena.floats, arena.ints, arena.longs
    values, state, defaults = layout.values, layout.state, settings.shape[0]
    bits = gradients.view(np.int32)
    left_out = touched = 0
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            for column in range(0, layout.end, LINE):
                prefetch(floats, rows[i + AHEAD], column)
            prefetch(floats, rows[i + AHEAD], layout.end - 1)
        row, g = np.uint64(rows[i]), np.uint64(i)
        fresh[i] = False
        if row < first or longs[row, KEY] == 0:  # one to pass over, or let go since the rows were looked up
            continue
        if _usable(bits, g):
            slot = np.uint64(of_number[np.uint64(longs[row, KEY] >> SLOT_SHIFT)] if row > defaults else row - np.uint64(1))
            # Told apart here, not in a function of its own: inlined, that keeps LLVM from holding the arrays in registers,
            # and SGD takes twice as long.
            kind = settings[slot, _KIND]
            if kind == ADAGRAD:
                rate, epsilon = np.float32(settings[slot, _RATE]), np.float32(settings[slot, _EPSILON])
                _adagrad(floats, values, state, row, gradients, g, rate, epsilon)
            elif kind == SGD:
                _sgd(floats, values, row, gradients, g, np.float32(settings[slot, _RATE]))
            elif kind == ADAM:
                steps = ints[row, word(STEPS, 0)] + 1
                ints[row, word(STEPS, 0)] = steps
                _adam(floats, values, state, row, gradients, g, settings, rates, slot, steps)
            else:
                _ftrl(floats, values, state, row, gradients, g, settings, slot)
        else:
            left_out += 1
        if ints[row, word(TOUCHED, 0)] != version:
            ints[row, word(TOUCHED, 0)] = version
            fresh[i] = True
            touched += 1
    return left_out, touched


@njit(nogil=True, cache=True, error_model="numpy")
def sum_defaults(
    rows: NDArray[np.int32], gradients: NDArray[np.float32], given: NDArray[np.bool_], sums: NDArray[np.float32]
) -> int:
    """Sums the gradients float32[U, 1 + dim] of ids that share a default row.

    Args:
        rows: int32[U], of the ids; rows 1 to S are default rows.
        given: bool[1 + S], False; is set for default rows with a gradient that counts: one without is not touched.
        sums: float32[1 + S, 1 + dim], zeros; takes the sums.

    Returns:
        Gradients left out because they were not finite.
    """
    bits = gradients.view(np.int32)
    left_out = 0
    for i in range(rows.size):
        row = rows[i]
        if 0 < row < given.size:
            if _usable(bits, np.uint64(i)):
                given[row] = True
                for d in range(gradients.shape[1]):
                    sums[row, d] += gradients[i, d]
            else:
                left_out += 1
    return left_out
