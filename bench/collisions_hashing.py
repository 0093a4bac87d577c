"""Ids hashed into a space, for `bench.collisions`: how many meet, which space loses how many, and ids merged as they meet.

Reference:
    Liu et al.: Monolith: Real Time Recommendation System With Collisionless Embedding Table. 2022, Table 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import md5
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.quiet import quiet_imports

with quiet_imports():
    from model.feature_ids import SLOT_SHIFT, hash_strings

#: The space that gives Table 1 its numbers: the paper does not name it, but this one gives both of them exactly.
PAPER_SPACE = 1_000_000
_MOST = 1 << 31  # ids of a space: products of two remainders must fit 64 bits
_TRIED = 1000  # spaces to either side
_CHUNK = 1 << 16  # strings


def digests(count: int) -> NDArray[np.uint64]:
    """md5 of the decimal texts of 0 to `count` - 1, as numbers of 128 bits: uint64[count, 2], the high halves first."""
    found = b"".join(md5(b"%d" % index, usedforsecurity=False).digest() for index in range(count))
    return np.frombuffer(found, ">u8").reshape(count, 2).astype(np.uint64)


def hashed(numbers: NDArray[np.uint64], space: int) -> NDArray[np.int64]:
    """Numbers of 128 bits, as `digests` gives them, modulo `space`: int64[N].

    Raises:
        ValueError: `space` is not in [1, 2^31].
    """
    if not 1 <= space <= _MOST:
        raise ValueError(f"a space of {space} ids: use 1 to 2^31")
    m = np.uint64(space)
    high = numbers[:, 0] % m * np.uint64((1 << 64) % space)
    return ((high + numbers[:, 1] % m) % m).astype(np.int64)


def left(numbers: NDArray[np.uint64], space: int) -> int:
    """How many different ids are left after hashing."""
    return int(np.unique(hashed(numbers, space)).size)


def space_for(numbers: NDArray[np.uint64], rate: float) -> int:
    """The space into which hashing loses `rate` of the ids, or as nearly as can be.

    Of n ids, M (1 - e^(-n / M)) are expected to be left in a space of M. Around the M that this asks for, spaces are tried,
    nearest first, until one loses the very number.

    Raises:
        ValueError: `rate` is not in (0, 0.5], or no space up to 2^31 is as large as it asks for.
    """
    if not 0 < rate <= 0.5:
        raise ValueError(f"a collision rate of {rate}: use more than 0, up to 0.5")
    n = len(numbers)
    wanted = n - round(n * rate)
    low, high = 0.0, 2.0  # of x = n / M; the rate, 1 - (1 - e^-x) / x, rises with it from 0 to 0.57
    for _ in range(50):
        x = (low + high) / 2
        low, high = (x, high) if 1 + np.expm1(-x) / x < rate else (low, x)
    middle = max(1, round(n / high))
    best, least = middle, n + 1
    for step in range(_TRIED):
        for space in (middle + step, max(1, middle - step)):
            off = abs(left(numbers, space) - wanted)
            if off < least:
                best, least = space, off
        if least == 0:
            break
    return best


@dataclass(frozen=True)
class Hashing:
    """How ids were hashed: `ids` of them into a `space`, where `left` are different."""

    ids: int
    space: int
    left: int

    @property
    def rate(self) -> float:
        """Table 1's collision rate: the share of ids that is lost."""
        return 1 - self.left / self.ids


def merged(
    ids: NDArray[np.int64], space: Callable[[NDArray[np.uint64]], int], rng: np.random.Generator
) -> tuple[NDArray[np.int64], Hashing]:
    """Ids as a table knows them after hashing into a smaller space.

    The distinct ids are numbered 0 to n - 1, in an order drawn by `rng`, as the paper's is not known, and hashed; those that
    meet are all spelt as the first of them. One that meets no other keeps its spelling, and with it its row's initial values:
    nothing but the meetings parts these ids from those given.

    Args:
        ids: int64[N].
        space: the space's size, of the distinct ids' `digests`.
        rng: of their order.

    Returns:
        int64[N], and how many met.
    """
    distinct, which = np.unique(ids, return_inverse=True)
    numbers = digests(distinct.size)
    size = space(numbers)
    number_of = rng.permutation(distinct.size)
    _, first, met = np.unique(hashed(numbers, size)[number_of], return_index=True, return_inverse=True)
    return distinct[first[met[which]]], Hashing(distinct.size, size, first.size)


class Meetings(NamedTuple):
    """Pairs of distinct strings with equal hashes of `bits` bits, of all pairs of `strings`: as expected, and as counted."""

    bits: int
    strings: int
    expected: float
    pairs: int


def string_meetings(strings: int) -> list[Meetings]:
    """Pairs of the decimal texts of 0 to `strings` - 1 that meet in the hash that makes ids of strings.

    n (n - 1) / 2^49 pairs are expected to meet in its 48 bits: few, so that its low 32 bits, where 65,536 times as many are
    expected, tell more surely whether it is as even as it should be.
    """
    values = np.empty(strings, np.int64)
    for start in range(0, strings, _CHUNK):
        stop = min(strings, start + _CHUNK)
        values[start:stop] = hash_strings([*map(str, range(start, stop))])
    found = []
    for bits in (SLOT_SHIFT, 32):
        values &= (1 << bits) - 1
        values.sort()
        runs = np.diff(np.flatnonzero(np.r_[True, values[1:] != values[:-1], True]))
        pairs = int((runs * (runs - 1) // 2).sum())
        found.append(Meetings(bits, strings, strings * (strings - 1) / 2 ** (bits + 1), pairs))
    return found
