"""Typed batches of what a data set yields: requests with their raw features, and the actions that followed.

Every data set is an iterator of `Events` in the order of request time. An action belongs to the batch of its
request although it happens later, often after the next batch's requests: `PendingActions` restores the order.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

Columns = Mapping[str, np.ndarray]


def object_array(values: Iterable[object], count: int) -> np.ndarray:
    """One-dimensional object[count] array whose elements may be lists (bags), which np.array would nest."""
    return np.fromiter(values, dtype=object, count=count)


def strings(ids: np.ndarray) -> np.ndarray:
    """Ids as the logs spell them: object[n] of str."""
    return object_array(map(str, ids.tolist()), len(ids))


@dataclass(frozen=True)
class RequestBatch:
    """R requests in time order, I impressions: those of request r are item_offsets[r]:item_offsets[r + 1].

    request_id, user_id: object[R] of str; item_id: object[I] of str; time_ms: int64[R], UTC; item_offsets:
    int64[R + 1]. user_columns, item_columns: raw features by source name, [R] and [I] each. Numbers are
    int64 or float64 (object with None if an integer may be missing), strings object arrays of str or None,
    bags object arrays of lists.
    """

    request_id: np.ndarray
    user_id: np.ndarray
    time_ms: np.ndarray
    user_columns: Columns
    item_offsets: np.ndarray
    item_id: np.ndarray
    item_columns: Columns

    def __len__(self) -> int:
        return len(self.time_ms)

    @property
    def impressions(self) -> int:
        return len(self.item_id)


@dataclass(frozen=True)
class ActionBatch:
    """A actions: request_id, user_id, item_id, action are object arrays of str, time_ms is int64[A], UTC."""

    request_id: np.ndarray
    user_id: np.ndarray
    item_id: np.ndarray
    action: np.ndarray
    time_ms: np.ndarray

    @classmethod
    def empty(cls) -> Self:
        nothing = np.empty(0, dtype=object)
        return cls(nothing, nothing, nothing, nothing, np.empty(0, dtype=np.int64))

    @classmethod
    def concat(cls, batches: Iterable["ActionBatch"]) -> Self:
        rows = list(batches)
        if not rows:
            return cls.empty()
        return cls(*(np.concatenate(column) for column in zip(*(b._columns() for b in rows), strict=True)))

    def take(self, rows: np.ndarray | slice) -> "ActionBatch":
        return ActionBatch(*(column[rows] for column in self._columns()))

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.request_id, self.user_id, self.item_id, self.action, self.time_ms

    def __len__(self) -> int:
        return len(self.time_ms)


@dataclass(frozen=True)
class Truth:
    """What only a simulated world knows of I impressions.

    request_id, item_id: object[I] of str; time_ms: int64[I]; probability: float32[I, heads]; happened:
    bool[I, heads].
    """

    heads: tuple[str, ...]
    request_id: np.ndarray
    item_id: np.ndarray
    time_ms: np.ndarray
    probability: np.ndarray
    happened: np.ndarray


class Events(NamedTuple):
    """Requests, all actions they ever led to, and in a simulated world the truth behind them."""

    requests: RequestBatch
    actions: ActionBatch
    truth: Truth | None = None


class Stream(NamedTuple):
    """A data set being read: how many impressions it has, and its events in time order."""

    impressions: int
    events: Iterator[Events]


class PendingActions:
    """Actions later than the requests so far, in time order; holds as many as the longest delay needs."""

    def __init__(self) -> None:
        self._pending = ActionBatch.empty()

    def push(self, actions: ActionBatch) -> None:
        merged = ActionBatch.concat((self._pending, actions))
        # Stable, so that simultaneous actions keep the order in which their requests came.
        self._pending = merged.take(np.argsort(merged.time_ms, kind="stable"))

    def pop_before(self, time_ms: int) -> ActionBatch:
        """All actions earlier than `time_ms`, in time order."""
        cut = int(np.searchsorted(self._pending.time_ms, time_ms))
        due = self._pending.take(slice(cut))
        self._pending = self._pending.take(slice(cut, None))
        return due

    def pop_all(self) -> ActionBatch:
        due, self._pending = self._pending, ActionBatch.empty()
        return due


def request_starts(*keys: np.ndarray) -> np.ndarray:
    """First row of each run of equal keys, int64[R]; rows of one request must be adjacent."""
    rows = len(keys[0])
    if rows == 0:
        return np.empty(0, dtype=np.int64)
    changed = np.ones(rows, dtype=bool)
    changed[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.flatnonzero(changed)


class RequestSpan(NamedTuple):
    """Consecutive requests of a table: the first row of each int64[R], all rows, and offsets int64[R + 1]."""

    first: np.ndarray
    rows: slice
    offsets: np.ndarray


def request_spans(starts: np.ndarray, rows: int, requests: int = 4_096) -> Iterator[RequestSpan]:
    """Cuts a table of `rows` impressions, whose requests begin at `starts`, into spans of `requests`."""
    ends = np.append(starts, rows)
    for begin in range(0, len(starts), requests):
        edges = ends[begin : begin + requests + 1]
        yield RequestSpan(edges[:-1], slice(int(edges[0]), int(edges[-1])), edges - edges[0])
