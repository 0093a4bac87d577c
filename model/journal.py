"""Journal of a table: which rows were touched and which keys removed, by version.

A reader (a delta, a snapshot, a lagged copy) names the version it has; what it gets costs what was touched since, not
the table's size. Only a row's last touch counts for any reader, so that earlier ones can be dropped at any time: the
journal stays within about twice the rows used, whether or not anybody trims it.
"""

from __future__ import annotations

import itertools

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .arena import GrowingArray

_SLACK = 4096  # mentions below which compaction is not worth it


class _Log:
    """Mentions of items, each with the version it was made at, oldest first."""

    def __init__(self, dtype: type[np.integer]) -> None:
        self._items = GrowingArray((), dtype, _SLACK)
        self._versions = GrowingArray((), np.int64, _SLACK)
        self._start = self.end = 0

    def __len__(self) -> int:
        return self.end - self._start

    @property
    def nbytes(self) -> int:
        return len(self) * (self._items.row_nbytes + self._versions.row_nbytes)

    def reserve(self, more: int) -> tuple[NDArray, NDArray]:
        """Items and versions with room for `more` mentions behind `end`."""
        self._items.reserve(self.end + more)
        self._versions.reserve(self.end + more)
        return self._items.array, self._versions.array

    def since(self, version: int) -> tuple[NDArray, NDArray]:
        """Views of the mentions after a version; valid until the next `reserve`."""
        versions = self._versions.array[self._start : self.end]
        start = self._start + int(np.searchsorted(versions, version, side="right"))
        return self._items.array[start : self.end], self._versions.array[start : self.end]

    def forget(self, version: int) -> None:
        """Drops the mentions up to a version."""
        self._start = self.end - len(self.since(version)[0])
        if self._start > self.end // 2:  # moved to the front when half is gone: each mention moves once or twice
            self.replace(*(part.copy() for part in self.since(version)))

    def replace(self, items: NDArray, versions: NDArray) -> None:
        """Puts these mentions, fewer than there were, in the place of all."""
        self._items.array[: items.size] = items
        self._versions.array[: items.size] = versions
        self._start, self.end = 0, items.size


class Journal:
    """Touched rows and removed keys by version; versions never go down, and version 0 is the empty table's.

    Args:
        capacity: rows to make room for at first.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._last_touch = GrowingArray((), np.int64, capacity)  # version of a row's last mention, 0 before any
        self._touched = _Log(np.int32)
        self._removed = _Log(np.int64)
        self._removed_bound = _SLACK
        self.trimmed = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the mentions kept; each row used costs `row_nbytes` besides."""
        return self._touched.nbytes + self._removed.nbytes

    @property
    def row_nbytes(self) -> int:
        """Bytes kept for each row."""
        return self._last_touch.row_nbytes

    def touch(self, rows: NDArray[np.int32], version: int, rows_used: int) -> None:
        """Notes rows int32[N], all below `rows_used`, as touched in `version`; row 0 is passed over."""
        self._last_touch.reserve(rows_used)
        items, versions = self._touched.reserve(rows.size)
        self._touched.end = touch_rows(self._last_touch.array, items, versions, self._touched.end, rows, version)
        if len(self._touched) > 2 * rows_used + _SLACK:
            items, versions = self._touched.since(-1)
            last = self._last_touch.array[items] == versions
            self._touched.replace(items[last], versions[last])

    def remove(self, keys: NDArray[np.int64], version: int) -> None:
        """Notes keys int64[N] as removed in `version`."""
        if not keys.size:
            return
        items, versions = self._removed.reserve(keys.size)
        items[self._removed.end : self._removed.end + keys.size] = keys
        versions[self._removed.end : self._removed.end + keys.size] = version
        self._removed.end += keys.size
        if len(self._removed) > self._removed_bound:
            items, versions = self._removed.since(-1)
            last = items.size - 1 - np.unique(items[::-1], return_index=True)[1]
            last.sort()
            self._removed.replace(items[last], versions[last])
            self._removed_bound = 2 * len(self._removed) + _SLACK

    def touched_since(self, version: int) -> NDArray[np.int32]:
        """Rows int32[R] touched after `version`, distinct, by the order of their last touch.

        Raises:
            ValueError: that much has been trimmed.
        """
        self._check(version)
        items, versions = self._touched.since(version)
        return items[self._last_touch.array[items] == versions]

    def removed_since(self, version: int) -> NDArray[np.int64]:
        """Keys int64[R] removed after `version`, distinct, ascending, whether or not they came back.

        Raises:
            ValueError: that much has been trimmed.
        """
        self._check(version)
        return np.unique(self._removed.since(version)[0])

    def trim(self, version: int) -> None:
        """Forgets what readers that have `version` do not ask for."""
        if version > self.trimmed:
            self._touched.forget(version)
            self._removed.forget(version)
            self.trimmed = version

    def versions_of(self, rows: NDArray[np.int32]) -> NDArray[np.int64]:
        """Version of the last touch of rows int32[R]; together with `state` it is all of the journal."""
        return self._last_touch.array[rows]

    def state(self) -> dict[str, NDArray[np.int64]]:
        """What does not go with the rows, as copies: `removed_keys`, `removed_versions` and `trimmed` int64[1]."""
        keys, versions = self._removed.since(self.trimmed)
        return {
            "removed_keys": keys.copy(),
            "removed_versions": versions.copy(),
            "trimmed": np.array([self.trimmed], np.int64),
        }

    def restore(self, rows: NDArray[np.int32], versions: NDArray[np.int64], state: dict[str, NDArray[np.int64]]) -> None:
        """The inverse of `versions_of` and `state`, in a new journal: readers go on where they were."""
        self.trimmed = int(state["trimmed"][0])
        rows_used = int(rows.max(initial=0)) + 1
        order = np.argsort(versions, kind="stable")
        for start, end in _runs(versions[order]):
            self.touch(rows[order[start:end]], int(versions[order[start]]), rows_used)
        removed = state["removed_versions"]
        for start, end in _runs(removed):
            self.remove(state["removed_keys"][start:end], int(removed[start]))
        self._touched.forget(self.trimmed)

    def _check(self, version: int) -> None:
        if version < self.trimmed:
            raise ValueError(
                f"changes since version {version} are no longer known, only since {self.trimmed}: start from a snapshot"
            )


def _runs(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Start and end of each run of equal values."""
    cuts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), values.size]
    return list(itertools.pairwise(cuts)) if values.size else []


@njit(nogil=True, cache=True)
def touch_rows(last_touch, items, versions, end, rows, version):  # type: ignore[no-untyped-def]
    """Appends the rows that this version has not mentioned; returns the new end."""
    for row in rows:
        if row > 0 and last_touch[row] != version:
            last_touch[row] = version
            items[end] = row
            versions[end] = version
            end += 1
    return end
