"""What a waiting row carries: its feature ids and the logits it was scored with, beside the join's ring."""

from __future__ import annotations

import numpy as np

from .ring import MIN_ROWS, Ring

_NAMES = ("ids", "logits", "seen")


class RowStore:
    """Ring of payloads by sequence number: row ``seq`` lies at ``seq % capacity``.

    Args:
        width: feature ids a row.
        arms: models that score each row at its request; arm 0 is the one that learns.
        heads: logits a model.
    """

    def __init__(self, width: int, arms: int, heads: int) -> None:
        self._columns = (((width,), np.int64), ((arms, heads), np.float32), ((), bool))
        self._ring = Ring(self._columns, MIN_ROWS)

    @property
    def ids(self) -> np.ndarray:
        """int64[capacity, width]."""
        return self._ring.arrays[0]

    @property
    def logits(self) -> np.ndarray:
        """float32[capacity, arms, heads]."""
        return self._ring.arrays[1]

    @property
    def seen(self) -> np.ndarray:
        """bool[capacity]: whether a row has been learned from."""
        return self._ring.arrays[2]

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row."""
        return self._ring.row_nbytes

    def nbytes(self, last: int) -> int:
        """Bytes of the rows before ``last``."""
        return self._ring.nbytes(last)

    def resize(self, capacity: int, first: int, last: int) -> None:
        """Lay out the rows ``[first, last)`` anew for another capacity (a power of two)."""
        if capacity != self._ring.capacity:
            self._ring = self._ring.relaid(capacity, first, last)

    def let_go(self, first: int, last: int) -> None:
        """Rows before ``first`` are not read any more; those up to ``last`` have been written."""
        self._ring.let_go(first, last)

    def put(self, first: int, ids: np.ndarray) -> None:
        """New rows, numbered from ``first``."""
        at = self.at(np.arange(first, first + len(ids)))
        self.ids[at] = ids
        self.seen[at] = False

    def at(self, seq: np.ndarray) -> np.ndarray:
        """Where rows lie."""
        return seq & (self._ring.capacity - 1)

    def first_time(self, seq: np.ndarray) -> np.ndarray:
        """bool[N]: whether a row is learned from for the first time; marks it. Several heads may bring one row back."""
        at = self.at(seq)
        fresh = ~self.seen[at]
        # Within one call, too, only the first mention counts.
        _, first = np.unique(seq, return_index=True)
        only = np.zeros(seq.size, bool)
        only[first] = True
        self.seen[at] = True
        return fresh & only

    def state(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Rows ``[first, last)`` as arrays."""
        return dict(zip(_NAMES, self._ring.rows(first, last), strict=True))

    def load(self, state: dict[str, np.ndarray], capacity: int, first: int, last: int) -> None:
        """The inverse of :meth:`state`, for rows ``[first, last)``."""
        self._ring = Ring(self._columns, capacity, first)
        self._ring.put(first, [state[name] for name in _NAMES])
