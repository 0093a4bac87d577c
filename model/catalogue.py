"""The newest features of users and videos, as the features log had them: what a client needs to ask for a ranking.

A recommender of its own keeps its own catalogue and profiles; this one travels inside the SavedModel, bounded, so that
the model server alone can answer "the ten best videos for user U".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from schemas.config import FeatureConfig

from .feature_ids import hash_strings
from .snapshot import Increment, KeyedPart

USERS, ITEMS = "catalogue_users", "catalogue_items"


@dataclass(frozen=True)
class Entries:
    """Users or videos.

    Attributes:
        names: object[N], the ids of the logs.
        ids: int64[N, W], packed feature ids of that side.
        last_seen_ms: int64[N].
    """

    names: np.ndarray
    ids: np.ndarray
    last_seen_ms: np.ndarray

    def newest(self, n: int) -> Entries:
        """The ``n`` seen last, newest first; ties by name, so that the choice is the same everywhere."""
        order = np.lexsort((self.names.astype(str), -self.last_seen_ms))[:n]
        return Entries(self.names[order], self.ids[order], self.last_seen_ms[order])


class _Side:
    """Entries by 62-bit hash of their name; the oldest tenth leaves when there are too many."""

    def __init__(self, width: int, most: int) -> None:
        self._most = most
        self._row: dict[int, int] = {}
        self._keys = np.zeros(0, np.int64)
        self._names = np.zeros(0, object)
        self._ids = np.zeros((0, width), np.int64)
        self._seen = np.zeros(0, np.int64)
        self._dirty = np.zeros(0, bool)
        self._removed: list[int] = []

    def update(self, names: np.ndarray, ids: np.ndarray, time_ms: np.ndarray) -> None:
        """The last mention in a batch counts."""
        keys = hash_strings(names, bits=62)
        unique, last = np.unique(keys[::-1], return_index=True)
        last = keys.size - 1 - last
        rows = np.fromiter((self._row.get(key, -1) for key in unique.tolist()), np.int64, unique.size)
        fresh = np.flatnonzero(rows < 0)
        if fresh.size:
            rows[fresh] = np.arange(self._keys.size, self._keys.size + fresh.size)
            self._row.update(zip(unique[fresh].tolist(), rows[fresh].tolist(), strict=True))
            grow = fresh.size
            self._keys = np.concatenate([self._keys, unique[fresh]])
            self._names = np.concatenate([self._names, names[last[fresh]]])
            self._ids = np.concatenate([self._ids, np.zeros((grow, self._ids.shape[1]), np.int64)])
            self._seen = np.concatenate([self._seen, np.full(grow, -1, np.int64)])
            self._dirty = np.concatenate([self._dirty, np.zeros(grow, bool)])
        self._ids[rows] = ids[last]
        self._seen[rows] = np.maximum(self._seen[rows], time_ms[last])
        self._dirty[rows] = True
        if self._keys.size > self._most:
            self._evict()

    def entries(self) -> Entries:
        return Entries(self._names, self._ids, self._seen)

    def part(self) -> KeyedPart:
        rows = np.flatnonzero(self._dirty)
        ids = pa.FixedSizeListArray.from_arrays(pa.array(self._ids[rows].ravel()), self._ids.shape[1])
        table = pa.table(
            {
                "key": self._keys[rows],
                "name": pa.array(self._names[rows].tolist(), pa.string()),
                "ids": ids,
                "last_seen_ms": self._seen[rows],
            }
        )
        return KeyedPart(table, np.array([key for key in self._removed if key not in self._row], np.int64))

    def committed(self) -> None:
        self._dirty[:] = False
        self._removed = []

    def load(self, entries: Entries, keys: np.ndarray) -> None:
        self._keys, self._names, self._ids, self._seen = (
            keys.copy(),
            entries.names,
            entries.ids.copy(),
            entries.last_seen_ms.copy(),
        )
        self._dirty = np.zeros(keys.size, bool)
        self._row = {key: row for row, key in enumerate(keys.tolist())}

    def _evict(self) -> None:
        keep = np.sort(np.argsort(self._seen, kind="stable")[self._keys.size - self._most * 9 // 10 :])
        gone = np.setdiff1d(self._keys, self._keys[keep])
        self._removed += gone.tolist()
        self._keys, self._names, self._ids = self._keys[keep], self._names[keep], self._ids[keep]
        self._seen, self._dirty = self._seen[keep], self._dirty[keep]
        self._row = {key: row for row, key in enumerate(self._keys.tolist())}


class Catalogue:
    """Newest features by user and by video.

    Args:
        config: feature configuration.
        max_users, max_items: bounds; beyond them the tenth that was seen longest ago leaves.
    """

    def __init__(self, config: FeatureConfig, max_users: int = 100_000, max_items: int = 10_000) -> None:
        self._sides = {USERS: _Side(config.user_width, max_users), ITEMS: _Side(config.item_width, max_items)}

    def update(
        self, users: np.ndarray, user_ids: np.ndarray, items: np.ndarray, item_ids: np.ndarray, time_ms: np.ndarray
    ) -> None:
        """Rows of a batch: names object[N], packed ids int64[N, Wu] and int64[N, Wi], event times int64[N]."""
        self._sides[USERS].update(users, user_ids, time_ms)
        self._sides[ITEMS].update(items, item_ids, time_ms)

    @property
    def users(self) -> Entries:
        return self._sides[USERS].entries()

    @property
    def items(self) -> Entries:
        return self._sides[ITEMS].entries()

    def increment(self) -> Increment:
        """What changed since the last :meth:`committed`."""
        return Increment({name: side.part() for name, side in self._sides.items()})

    def committed(self) -> None:
        """The last increment is durable."""
        for side in self._sides.values():
            side.committed()

    def load(self, state: Increment) -> None:
        """Restore a merged increment."""
        for name, side in self._sides.items():
            side.load(entries_of(state.keyed[name].rows), state.keyed[name].rows.column("key").to_numpy())


def entries_of(table: pa.Table) -> Entries:
    """Entries as a snapshot's part holds them."""
    table = table.combine_chunks()
    width = table.column("ids").type.list_size
    flat = table.column("ids").combine_chunks().flatten() if table.num_rows else pa.array([], pa.int64())
    return Entries(
        table.column("name").to_numpy(zero_copy_only=False),
        flat.to_numpy(zero_copy_only=False).reshape(-1, width),
        table.column("last_seen_ms").to_numpy(),
    )
