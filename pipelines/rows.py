"""What a waiting row carries: its feature ids and the logits it was scored with, beside the join's ring."""

from __future__ import annotations

import numpy as np


class RowStore:
    """Ring of payloads by sequence number: row ``seq`` lies at ``seq % capacity``.

    Args:
        width: feature ids a row.
        arms: models that score each row at its request; arm 0 is the one that learns.
        heads: logits a model.
    """

    def __init__(self, width: int, arms: int, heads: int) -> None:
        self.ids = np.zeros((0, width), np.int64)
        self.logits = np.zeros((0, arms, heads), np.float32)
        self.seen = np.zeros(0, bool)

    @property
    def nbytes(self) -> int:
        """Bytes of the ring, full or not."""
        return self.ids.nbytes + self.logits.nbytes + self.seen.nbytes

    def resize(self, capacity: int, first: int, last: int) -> None:
        """Lay out the rows ``[first, last)`` anew for another capacity (a power of two)."""
        if capacity == self.ids.shape[0]:
            return
        for name in ("ids", "logits", "seen"):
            old: np.ndarray = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            if old.shape[0]:
                rows = np.arange(first, last)
                new[rows & (capacity - 1)] = old[rows & (old.shape[0] - 1)]
            setattr(self, name, new)

    def put(self, first: int, ids: np.ndarray) -> None:
        """New rows, numbered from ``first``."""
        at = self.at(np.arange(first, first + len(ids)))
        self.ids[at] = ids
        self.seen[at] = False

    def at(self, seq: np.ndarray) -> np.ndarray:
        """Where rows lie."""
        return seq & (self.ids.shape[0] - 1)

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
        at = self.at(np.arange(first, last)) if last > first else np.zeros(0, np.int64)
        return {"ids": self.ids[at], "logits": self.logits[at], "seen": self.seen[at]}

    def load(self, state: dict[str, np.ndarray], capacity: int, first: int, last: int) -> None:
        """The inverse of :meth:`state`."""
        at = np.arange(first, last) & (capacity - 1)
        for name in ("ids", "logits", "seen"):
            values = state[name]
            array = np.zeros((capacity, *values.shape[1:]), values.dtype)
            array[at] = values
            setattr(self, name, array)
