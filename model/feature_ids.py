"""Feature ids: int64 = 0 sign bit | 15-bit slot | 48-bit value, and the hashes that go with them.

A value is an integer below 2^48 as it is, or the low 48 bits of FarmHash Fingerprint64 of a string's UTF-8 bytes, by the
TensorFlow operation that serving uses too. ``schemas/golden_ids.json`` holds test vectors for other languages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numba import njit

SLOT_SHIFT = 48
VALUE_MASK = (1 << SLOT_SHIFT) - 1
MAX_SLOT = (1 << 15) - 1

_MASK = (1 << 63) - 1
_MULTIPLIER_1 = 0x3F51AFD7ED558CCD  # odd, below 2^62: a product stays a bijection modulo 2^63
_MULTIPLIER_2 = 0x34CEB9FE1A85EC53
_SHIFT = 32


def pack_ids(slot: int, values: np.ndarray) -> np.ndarray:
    """Ids of one slot: int64, shaped like ``values`` (int64 in [0, 2^48))."""
    return (np.int64(slot) << SLOT_SHIFT) | values.astype(np.int64)


def hash_strings(strings: Sequence[str | bytes] | np.ndarray, bits: int = SLOT_SHIFT) -> np.ndarray:
    """Low ``bits`` (at most 62) of FarmHash Fingerprint64 of UTF-8 bytes: int64[N]."""
    if not len(strings):
        return np.zeros(0, np.int64)
    array = np.asarray(strings, object)
    return tf.strings.to_hash_bucket_fast(tf.constant(array, tf.string), 1 << bits).numpy()


def default_key(slot: int) -> int:
    """The reserved negative key of a slot's default row; feature ids are never negative."""
    return -slot - 16


def mix63(x: np.ndarray) -> np.ndarray:
    """A bijection on [0, 2^63), int64 to int64: spreads packed ids over hash buckets."""
    x = np.asarray(x, np.int64).astype(np.uint64)
    mask = np.uint64(_MASK)
    for multiplier in (_MULTIPLIER_1, _MULTIPLIER_2):
        x = ((x ^ (x >> np.uint64(_SHIFT))) * np.uint64(multiplier)) & mask
    return (x ^ (x >> np.uint64(_SHIFT))).astype(np.int64)


@njit(inline="always", cache=True)
def mix63_jit(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The same for one int64, compiled."""
    y = np.uint64(x)
    mask = np.uint64(_MASK)
    y = ((y ^ (y >> np.uint64(_SHIFT))) * np.uint64(_MULTIPLIER_1)) & mask
    y = ((y ^ (y >> np.uint64(_SHIFT))) * np.uint64(_MULTIPLIER_2)) & mask
    return np.int64(y ^ (y >> np.uint64(_SHIFT)))


def mix63_tf(x: tf.Tensor) -> tf.Tensor:
    """The same in a graph, of stock operations: int64 products wrap modulo 2^64."""
    mask = tf.constant(_MASK, tf.int64)
    for multiplier in (_MULTIPLIER_1, _MULTIPLIER_2):
        folded = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(_SHIFT, tf.int64)))
        x = tf.bitwise.bitwise_and(folded * tf.constant(multiplier, tf.int64), mask)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(_SHIFT, tf.int64)))
