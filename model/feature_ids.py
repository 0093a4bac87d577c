"""Feature ids: int64 = 0 sign bit | 15-bit slot | 48-bit value, and the hashes that go with them.

A value is an integer below 2^48 - 1 as it is, or the low 48 bits of FarmHash Fingerprint64 of a string's UTF-8
bytes, computed by the operation that the serving graph uses too. Feature ids are never negative, so negative
keys can be reserved. `schemas/golden_ids.json` holds test vectors for other languages.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numba import njit
from numpy.typing import NDArray

SLOT_SHIFT = 48
VALUE_MASK = (1 << SLOT_SHIFT) - 1
# A scalar slot's value for what is missing (None, NaN, the empty string).
MISSING_VALUE = VALUE_MASK

_MASK = (1 << 63) - 1
_SHIFT = 32
# Odd, so that a product is a bijection modulo 2^63, and below 2^62, so that they are int64 in every language.
_MULTIPLIER_1 = 0x3F51AFD7ED558CCD
_MULTIPLIER_2 = 0x34CEB9FE1A85EC53


def pack_ids(slot: int, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Feature ids of one slot: int64, shaped like `values` (int64 in [0, 2^48))."""
    return np.int64(slot << SLOT_SHIFT) | values


def hash_strings(strings: Sequence[str | bytes] | NDArray[np.object_], bits: int = SLOT_SHIFT) -> NDArray[np.int64]:
    """Low `bits` (62 at most) of FarmHash Fingerprint64 of UTF-8 bytes: int64[N]."""
    if not len(strings):
        return np.zeros(0, np.int64)
    array = tf.constant(np.asarray(strings, object), tf.string)
    return tf.strings.to_hash_bucket_fast(array, 1 << bits).numpy()


def default_key(slot: int) -> int:
    """The reserved negative key of a slot's default row: -16 - slot."""
    return -slot - 16


def mix63(x: NDArray[np.int64]) -> NDArray[np.int64]:
    """A bijection on [0, 2^63) that spreads packed ids over hash buckets; int64, shaped like `x`.

    Two rounds of xor-shift and multiply, and a last xor-shift, each a bijection on 63 bits (the scheme of
    MurmurHash3's finaliser). A negative key is mixed by its low 63 bits.
    """
    y = np.asarray(x, np.int64).astype(np.uint64) & np.uint64(_MASK)
    for multiplier in (_MULTIPLIER_1, _MULTIPLIER_2):
        y = ((y ^ (y >> np.uint64(_SHIFT))) * np.uint64(multiplier)) & np.uint64(_MASK)
    return (y ^ (y >> np.uint64(_SHIFT))).astype(np.int64)


@njit(inline="always", cache=True)
def mix63_jit(x):  # type: ignore[no-untyped-def]
    """`mix63` of one int64, for use within compiled kernels."""
    mask = np.uint64(_MASK)
    y = np.uint64(x) & mask
    y = ((y ^ (y >> np.uint64(_SHIFT))) * np.uint64(_MULTIPLIER_1)) & mask
    y = ((y ^ (y >> np.uint64(_SHIFT))) * np.uint64(_MULTIPLIER_2)) & mask
    return np.int64(y ^ (y >> np.uint64(_SHIFT)))


def mix63_tf(x: tf.Tensor) -> tf.Tensor:
    """`mix63` as stock TensorFlow operations: int64 products wrap modulo 2^64."""
    mask, shift = tf.constant(_MASK, tf.int64), tf.constant(_SHIFT, tf.int64)
    x = tf.bitwise.bitwise_and(x, mask)
    for multiplier in (_MULTIPLIER_1, _MULTIPLIER_2):
        folded = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, shift))
        x = tf.bitwise.bitwise_and(folded * tf.constant(multiplier, tf.int64), mask)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, shift))
