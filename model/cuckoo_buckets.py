"""A bucket of the cuckoo index: a cache line of 12 tags of 8 bits, 4 bytes unused, and 12 row numbers of 32 bits.

Tags are compared and free cells found eight at a time, by arithmetic on 64-bit words (Lamport, "Multiple byte processing
with full-word instructions", CACM 1975). A cell is named by the place of its row number among all row numbers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CELLS = 12
LINE_WORDS = 8  # of 8 bytes in a bucket

_LOW = np.uint64(0x0101010101010101)
_SEVEN = np.uint64(0x7F7F7F7F7F7F7F7F)
_HIGH = np.uint64(0x8080808080808080)
_HALF = np.uint64(0x0000000080808080)  # a bucket's second word of tags has four
_PLACES = np.uint64(0x0001020304050607)
_NONE = np.uint64(0)


@njit(inline="always")
def first_cell(bucket: int) -> int:
    """The first of a bucket's 12 cells, which lie side by side."""
    return bucket * 16 + 4


@njit(inline="always")
def tag_of(cell: int) -> int:
    """Where in `tags` a cell's tag is."""
    return (cell >> 4) * 64 + (cell & 15) - 4


@njit(inline="always")
def _matches(word: np.uint64, tag: int) -> np.uint64:
    """The high bit of each byte of a word of tags that equals the tag; bytes above the first may be false."""
    x = word ^ (np.uint64(tag) * _LOW)
    return (x - _LOW) & ~x & _HIGH


@njit(inline="always")
def _zeros(word: np.uint64) -> np.uint64:
    """The high bit of each byte that is 0."""
    return ~(((word & _SEVEN) + _SEVEN) | word | _SEVEN)


@njit(inline="always")
def _place_of(bits: np.uint64) -> np.int64:
    """Which byte's high bit is the lowest set."""
    lowest = bits & (~bits + np.uint64(1))
    return np.int64(((lowest >> np.uint64(7)) * _PLACES) >> np.uint64(56))


@njit(inline="always")
def _cell_of(bucket: int, low: np.uint64, high: np.uint64) -> np.int64:
    """The first cell of a bucket whose bit is set, in eight bytes and four more, or -1."""
    cell = np.int64(-1)
    if low != _NONE:
        cell = first_cell(bucket) + _place_of(low)
    elif high != _NONE:
        cell = first_cell(bucket) + 8 + _place_of(high)
    return cell


@njit(inline="always")
def tagged(words, bucket, tag):  # type: ignore[no-untyped-def]
    """The first cell of a bucket with this tag, or -1."""
    at = np.uint64(bucket * LINE_WORDS)
    return _cell_of(bucket, _matches(words[at], tag), _matches(words[at + np.uint64(1)], tag) & _HALF)


@njit(inline="always")
def free_cell(words, bucket):  # type: ignore[no-untyped-def]
    """The first free cell of a bucket, or -1."""
    at = np.uint64(bucket * LINE_WORDS)
    return _cell_of(bucket, _zeros(words[at]), _zeros(words[at + np.uint64(1)]) & _HALF)
