"""Which rows were touched and which keys left, by version: what a delta costs follows from it, not from the table."""

from __future__ import annotations

import numpy as np


class Journal:
    """Append-only lists of int64 by version; readers name the version they have, ``trim`` forgets what all have read."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, np.ndarray]] = []
        self._size = 0
        self.trimmed = 0  # versions up to this one can no longer be told apart

    def add(self, version: int, items: np.ndarray) -> None:
        """Items of a version, which is not older than any before."""
        if items.size:
            self._entries.append((version, items))
            self._size += items.size

    def since(self, version: int) -> np.ndarray:
        """Distinct items of versions after ``version``, sorted.

        Raises:
            ValueError: if that much is no longer known.
        """
        if version < self.trimmed:
            raise ValueError(f"what changed after version {version} is no longer known, only after {self.trimmed}")
        parts = [items for v, items in self._entries if v > version]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)

    def trim(self, version: int) -> None:
        """Forget versions up to ``version``."""
        if version <= self.trimmed:
            return
        self._entries = [(v, items) for v, items in self._entries if v > version]
        self._size = sum(items.size for _, items in self._entries)
        self.trimmed = version

    def compact(self, bound: int) -> None:
        """Keep only each item's last mention once there are more than ``2 * bound`` mentions: exact for every reader."""
        if self._size <= max(1 << 20, 2 * bound):
            return
        everything = np.concatenate([items for _, items in self._entries])
        versions = np.concatenate([np.full(items.size, v) for v, items in self._entries])
        items, last = np.unique(everything[::-1], return_index=True)
        versions = versions[::-1][last]
        order = np.argsort(versions, kind="stable")
        cuts = np.flatnonzero(np.diff(versions[order])) + 1
        groups = np.split(items[order], cuts)
        self._entries = [(int(v), group) for v, group in zip(np.unique(versions), groups, strict=True)]
        self._size = items.size
