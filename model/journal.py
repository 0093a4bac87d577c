"""Journal of a table: which rows were touched and which keys removed, by version.

A reader (a delta, a snapshot, a lagged copy) names the version it has; what it gets costs what was touched since, not
the table's size. Any number of readers keep their own positions, and none ever misses a change. Only a row's last touch
counts for any reader, so that earlier ones can be dropped at any time: the journal stays within about twice the rows used,
whether or not anybody trims it.
"""

from __future__ import annotations

import itertools

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .feature_ids import mix63_jit
from .growing_array import GrowingArray
from .prefetch import AHEAD, prefetch_item

_SLACK = 4096  # mentions below which compaction is not worth it
_CYCLE = 1 << 32


def wrapped(version: int) -> int:
    """The low 32 bits of a version as an int32: what a row keeps of its last touch."""
    return (version + _CYCLE // 2) % _CYCLE - _CYCLE // 2


def unwrapped(touched: NDArray[np.int32], version: int) -> NDArray[np.int64]:
    """Versions int64[R], none after `version`, of what rows kept of them."""
    return version - (version - touched.astype(np.int64)) % _CYCLE


class _Log:
    """Mentions of items, oldest first, in runs of one version each."""

    def __init__(self, dtype: type[np.integer]) -> None:
        self._items = GrowingArray((), dtype, _SLACK)
        self._runs = GrowingArray((2,), np.int64, 64)  # a run's version, and where it starts
        self._start = self.end = 0
        self._first_run = self._end_run = 0

    def __len__(self) -> int:
        return self.end - self._start

    @property
    def nbytes(self) -> int:
        runs = self._end_run - self._first_run
        return len(self) * self._items.row_nbytes + runs * self._runs.row_nbytes

    def reserve(self, more: int) -> None:
        """Has memory ready for `more` items of one version."""
        self._items.reserve(self.end + more)
        self._runs.reserve(self._end_run + 1)

    def append(self, items: NDArray, version: int) -> None:
        """Mentions items in a version, the last one's or a later one."""
        if not items.size:
            return
        self.reserve(items.size)
        self._items.array[self.end : self.end + items.size] = items
        if self._end_run == self._first_run or self._runs.array[self._end_run - 1, 0] != version:
            self._runs.array[self._end_run] = version, self.end
            self._end_run += 1
        self.end += items.size

    def runs_since(self, version: int) -> NDArray[np.int64]:
        """The runs int64[R, 2] of versions after one: each one's version, and where its items start; a view."""
        runs = self._runs.array[self._first_run : self._end_run]
        return runs[np.searchsorted(runs[:, 0], version, side="right") :]

    def items_since(self, version: int) -> NDArray:
        """The items mentioned after a version, a view until the next `append`."""
        runs = self.runs_since(version)
        return self._items.array[int(runs[0, 1]) if len(runs) else self.end : self.end]

    def since(self, version: int) -> tuple[NDArray, NDArray[np.int64]]:
        """The items mentioned after a version, a view until the next `append`, and their versions."""
        runs = self.runs_since(version)
        return self.items_since(version), np.repeat(runs[:, 0], np.diff(runs[:, 1], append=self.end))

    def last_since(self, version: int, touched: NDArray[np.int32]) -> NDArray:
        """The items mentioned after a version whose last mention, by `touched`, is that one."""
        runs, last = self.runs_since(version).copy(), np.empty(self.items_since(version).size, np.int32)
        return last[: _last_mentions(self._items.array, runs, self.end, touched, last)[0]]

    def keep_last(self, touched: NDArray[np.int32]) -> None:
        """Drops the mentions that are not an item's last, by `touched`."""
        runs = self.runs_since(-1)
        self.end, used = _last_mentions(self._items.array, runs, self.end, touched, self._items.array)
        self._runs.array[:used] = runs[:used]
        self._start = self._first_run = 0
        self._end_run = used

    def forget(self, version: int) -> None:
        """Drops the mentions up to a version."""
        runs = self._runs.array[self._first_run : self._end_run]
        self._first_run += int(np.searchsorted(runs[:, 0], version, side="right"))
        self._start = int(self._runs.array[self._first_run, 1]) if self._first_run < self._end_run else self.end
        # Moved to the front when half is gone: each mention moves once or twice.
        if self._start > self.end // 2 or self._first_run > self._end_run // 2:
            items, versions = self.since(version)
            self.replace(items.copy(), versions)

    def replace(self, items: NDArray, versions: NDArray[np.int64]) -> None:
        """Puts these mentions, no more than there were, in the place of all."""
        self._items.array[: items.size] = items
        starts = np.flatnonzero(np.diff(versions, prepend=-1))
        self._runs.array[: starts.size] = np.column_stack([versions[starts], starts])
        self._start, self.end = 0, items.size
        self._first_run, self._end_run = 0, starts.size


class Journal:
    """Touched rows and removed keys by version; versions never go down, and version 0 is the empty table's.

    The rows' own part, what each keeps of the version of its last touch (`wrapped`), lies with them.
    """

    def __init__(self) -> None:
        self._touched = _Log(np.int32)
        self._removed = _Log(np.int64)
        self._removed_bound = _SLACK
        self.trimmed = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the mentions kept."""
        return self._touched.nbytes + self._removed.nbytes

    def reserve(self, rows: int, keys: int) -> None:
        """Has memory ready for a version that touches so many rows, and removes so many keys.

        Raises:
            MemoryError: the system refuses.
        """
        self._touched.reserve(rows)
        self._removed.reserve(keys)

    def mention(self, rows: NDArray[np.int32], version: int, touched: NDArray[np.int32], rows_used: int) -> None:
        """Notes rows int32[N] below `rows_used` as touched first in `version`; `touched` int32[>= rows_used] is theirs."""
        self._touched.append(rows, version)
        if len(self._touched) > 2 * rows_used + _SLACK:
            self._touched.keep_last(touched)

    def remove(self, keys: NDArray[np.int64], version: int) -> None:
        """Notes keys int64[N] as removed in `version`."""
        self._removed.append(keys, version)
        if len(self._removed) > self._removed_bound:
            items, versions = self._removed.since(-1)
            last = np.flatnonzero(_last_of_key(items))
            self._removed.replace(items[last], versions[last])
            self._removed_bound = 2 * len(self._removed) + _SLACK

    def touched_since(self, version: int, touched: NDArray[np.int32]) -> NDArray[np.int32]:
        """Rows int32[R] touched after `version`, distinct, by the order of their last touch.

        Raises:
            ValueError: that much has been trimmed.
        """
        self._check(version)
        return self._touched.last_since(version, touched)

    def removed_since(self, version: int) -> NDArray[np.int64]:
        """Keys int64[R] removed after `version`, distinct, by the order of their last removal, whether or not they came back.

        Raises:
            ValueError: that much has been trimmed.
        """
        self._check(version)
        keys = self._removed.items_since(version)
        return keys[_last_of_key(keys)]

    def trim(self, version: int) -> None:
        """Forgets what readers that have `version` do not ask for."""
        if version > self.trimmed:
            self._touched.forget(version)
            self._removed.forget(version)
            self.trimmed = version

    def state(self) -> dict[str, NDArray[np.int64]]:
        """What does not go with the rows, as copies: `removed_keys`, `removed_versions` and `trimmed` int64[1]."""
        keys, versions = self._removed.since(self.trimmed)
        return {
            "removed_keys": keys.copy(),
            "removed_versions": versions,
            "trimmed": np.array([self.trimmed], np.int64),
        }

    def restore(self, rows: NDArray[np.int32], versions: NDArray[np.int64], state: dict[str, NDArray[np.int64]]) -> None:
        """The inverse of `state`, in a new journal, with rows int32[R] and the versions int64[R] of their last touch:
        readers go on where they were."""
        self.trimmed = int(state["trimmed"][0])
        order = np.argsort(versions, kind="stable")
        order = order[np.searchsorted(versions[order], self.trimmed, side="right") :]
        for start, end in _runs(versions[order]):
            self._touched.append(rows[order[start:end]], int(versions[order[start]]))
        removed = state["removed_versions"]
        for start, end in _runs(removed):
            self.remove(state["removed_keys"][start:end], int(removed[start]))

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
def _last_mentions(
    items: NDArray[np.int32], runs: NDArray[np.int64], end: int, touched: NDArray[np.int32], last: NDArray[np.int32]
) -> tuple[int, int]:
    """Puts the rows of runs int64[R, 2] that were touched last in their run's version into `last`, and changes the runs to
    where they are then. `last` may be `items`.

    Returns:
        How many rows, and how many runs have any.
    """
    found = used = 0
    at = runs[0, 1] if len(runs) else end
    for run in range(len(runs)):
        version, start = runs[run, 0], found
        stop = runs[run + 1, 1] if run + 1 < len(runs) else end
        while at < stop:
            if at + AHEAD < end:
                prefetch_item(touched, items[at + AHEAD])
            if touched[items[at]] == np.int32(version):
                last[found] = items[at]
                found += 1
            at += 1
        if found > start:
            runs[used, 0], runs[used, 1] = version, start
            used += 1
    return found, used


@njit(nogil=True, cache=True)
def _last_of_key(keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[N], whether a key of int64[N] does not come again after it."""
    size = 16
    while size < 2 * keys.size:
        size *= 2
    places = np.full(size, -1, np.int32)
    last = np.zeros(keys.size, np.bool_)
    for at in range(keys.size - 1, -1, -1):
        if at >= AHEAD:
            prefetch_item(places, mix63_jit(keys[at - AHEAD]) & (size - 1))
        cell = mix63_jit(keys[at]) & (size - 1)
        while places[cell] >= 0 and keys[places[cell]] != keys[at]:
            cell = (cell + 1) & (size - 1)
        if places[cell] < 0:
            places[cell] = at
            last[at] = True
    return last
