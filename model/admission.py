"""Admission: an id gets a row only after it has occurred often enough, or by a draw at each occurrence.

Occurrences of ids without a row are counted in a count-min sketch with conservative update: it never counts too little,
and rarely too much. It is halved whenever it has taken in one occurrence a column, so that ids that came once fade, and
an id passes that reaches its slot's threshold within about that many occurrences of ids not admitted yet.

References: Cormode and Muthukrishnan, "An improved data stream summary: the count-min sketch", 2005; Estan and Varghese,
"New directions in traffic measurement and accounting", SIGCOMM 2002 (conservative update); Einziger, Friedman and Manes,
"TinyLFU", 2017 (aging by halving). The draw is that of Monolith's probabilistic filter: p = 1 - 0.05^(1/n).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .feature_ids import mix63_jit
from .growing_array import kernel_array
from .random_bits import mixed, unit

MAX_THRESHOLD = 2**16 - 1
_DEPTH = 4
_SECOND = 31


class AdmissionSketch:
    """Counts occurrences of feature ids that have no row yet.

    Args:
        width: counters a hash function, a power of two. With `width` distinct ids counted since the sketch was empty,
            an id is overcounted with a probability of about (1 - 1/e)^4 = 16 %, with half of them 2 %.
    """

    def __init__(self, width: int = 1 << 20) -> None:
        if width < 1 or width & (width - 1):
            raise ValueError(f"an admission sketch of {width} counters: use a power of two")
        self.cells = np.zeros((_DEPTH, width), np.uint16)
        self._since_aging = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the counters."""
        return self.cells.nbytes

    def count(self, ids: NDArray[np.int64], occurrences: NDArray[np.int32]) -> NDArray[np.int64]:
        """Counts ids int64[N], each `occurrences` int32[N] times. Returns their counts so far, int64[N], at most 65,535."""
        ids, occurrences = kernel_array(ids, np.int64), kernel_array(occurrences, np.int32)
        counts = np.empty(ids.size, np.int64)
        count_ids(self.cells, ids, occurrences, counts)
        self.age(int(occurrences.sum()))
        return counts

    def age(self, counted: int) -> None:
        """Notes that `counted` occurrences were counted, and halves all counters when it is time."""
        self._since_aging += counted
        while self._since_aging >= self.cells.shape[1]:
            self.cells >>= 1
            self._since_aging //= 2  # what is left in the counters has been counted since the last time, too

    def state(self) -> dict[str, NDArray]:
        """All state, as copies: `cells` uint16[4, width], `since_aging` int64[1]."""
        return {"cells": self.cells.copy(), "since_aging": np.array([self._since_aging], np.int64)}

    def load_state(self, state: dict[str, NDArray]) -> None:
        """The inverse of `state`; one of width 1, of a configuration without filters then, leaves the sketch empty.

        Raises:
            ValueError: it is of a sketch of another width.
        """
        if state["cells"].shape[1] == 1:
            return
        if state["cells"].shape != self.cells.shape:
            raise ValueError(
                f"the admission sketch to load is {state['cells'].shape}, this one {self.cells.shape}: "
                "load it into a table of the same feature configuration"
            )
        self.cells[:] = state["cells"]
        self._since_aging = int(state["since_aging"][0])


@njit(inline="always")
def count_id(cells: NDArray[np.uint16], key: int, occurrences: int) -> np.int64:
    """Counts one id and returns its count so far, at most 65,535."""
    h = mix63_jit(np.int64(key))
    step = (h >> _SECOND) | 1
    mask = cells.shape[1] - 1
    count = np.int64(MAX_THRESHOLD)
    for d in range(_DEPTH):
        count = min(count, np.int64(cells[d, (h + d * step) & mask]))
    count = min(count + np.int64(occurrences), np.int64(MAX_THRESHOLD))
    for d in range(_DEPTH):
        at = (h + d * step) & mask
        if cells[d, at] < count:
            cells[d, at] = count
    return count


@njit(inline="always")
def passes_count(cells, key, occurrences, threshold):  # type: ignore[no-untyped-def]
    """Counts one id; its count if that reaches the threshold, or 0."""
    count = count_id(cells, key, occurrences)
    return count if count >= threshold else np.int64(0)


@njit(inline="always")
def passes_draw(key, seed, occurrences, missed):  # type: ignore[no-untyped-def]
    """Whether at least one of an id's occurrences is drawn, each of which is missed with a probability of `missed`.

    A function of key and seed: a replay draws the same. The power is made of products, which are the same on any machine.
    """
    all_missed, power, left = 1.0, missed, occurrences
    while left > 0:
        if left & 1:
            all_missed *= power
        power *= power
        left >>= 1
    return unit(mixed(np.uint64(mix63_jit(np.int64(key))) ^ np.uint64(seed))) >= all_missed


@njit(nogil=True, cache=True)
def count_ids(cells, ids, occurrences, counts):  # type: ignore[no-untyped-def]
    """`count_id` for arrays."""
    for i in range(ids.size):
        counts[i] = count_id(cells, ids[i], occurrences[i])
