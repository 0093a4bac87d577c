"""Collisionless index from feature id to row number: bucketised cuckoo hashing.

A key has two buckets of four cells; a cell holds an 8-bit tag of the hash and a row number, and the key itself lies in
`keys[row]`, where it is compared whole: no two keys are ever merged. A key that finds both buckets full displaces others
along the shortest path to a free cell (breadth first, bounded); where there is none it goes to a small stash, and when
that is full the index doubles. Doubling splits every bucket in two and touches no row.

References: Pagh and Rodler, "Cuckoo hashing", 2004; Fan, Andersen and Kaminsky, "MemC3", NSDI 2013 (tags, path search);
Kirsch, Mitzenmacher and Wieder, "More robust hashing: cuckoo hashing with a stash", 2009; Monolith, arXiv 2209.07663 §2.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from model.arena import GrowingArray
from model.feature_ids import mix63_jit

NO_ROW = -1
_CELLS = 4
_MIN_BUCKETS = 16
_STASH = 8
_MAX_LOAD = 0.9  # four cells and two hashes reach 0.98; short of it, paths stay one or two steps long
_MIN_LOAD = 0.125  # keys that crowd an index emptier than this share both buckets: doubling would not part them
_SEARCH = 256  # buckets looked at for a free cell
_SIZE, _STASHED = 0, 1  # cells of IndexArrays.meta

_BYTES_LOW = np.uint32(0x01010101)
_BYTES_HIGH = np.uint32(0x80808080)


class IndexArrays(NamedTuple):
    """The index as the kernels take it.

    tags uint8[4 B] (0 = free cell) and words uint32[B], the same bytes; rows int32[4 B]; stash int32[]; keys int64[rows];
    meta int64[2] is (keys in the index, of which in the stash).
    """

    tags: npt.NDArray[np.uint8]
    words: npt.NDArray[np.uint32]
    rows: npt.NDArray[np.int32]
    stash: npt.NDArray[np.int32]
    keys: npt.NDArray[np.int64]
    meta: npt.NDArray[np.int64]


@njit(inline="always")
def _hash(key):  # noqa: ANN001, ANN202
    return np.uint64(mix63_jit(key & np.int64(0x7FFFFFFFFFFFFFFF)))
