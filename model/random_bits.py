"""Random numbers that are functions of 64 bits: every machine and every replay draws the same."""

from __future__ import annotations

import numpy as np
from numba import njit

# A sum of four numbers of 16 bits: its mean, and one over its standard deviation, sqrt((2^32 - 1) / 3).
_CENTRE = np.int64(2 * 65535)
_PER_DEVIATION = 1.0 / np.sqrt((2.0**32 - 1.0) / 3.0)
_PER_UNIT = 2.0**-52


@njit(inline="always")
def mixed(x: np.uint64) -> np.uint64:
    """64 bits that look random, a function of these (Steele et al. 2014, SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(inline="always")
def unit(x: np.uint64) -> np.float64:
    """A uniform number in [0, 1) from mixed bits."""
    return np.float64(np.int64(x >> np.uint64(12))) * _PER_UNIT


@njit(inline="always")
def normal(x: np.uint64) -> np.float64:
    """A number of about the standard normal distribution from mixed bits.

    The sum of four uniform numbers (Irwin and Hall 1927) needs integers only, so that every machine draws the same.
    """
    total = np.int64(x & np.uint64(0xFFFF)) + np.int64((x >> np.uint64(16)) & np.uint64(0xFFFF))
    total += np.int64((x >> np.uint64(32)) & np.uint64(0xFFFF)) + np.int64(x >> np.uint64(48))
    return (total - _CENTRE) * _PER_DEVIATION
