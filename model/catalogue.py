"""The newest features of users and videos, as the features log had them: what a client needs to ask for a ranking.

A recommender of its own keeps its own catalogue and profiles; this one travels inside the SavedModel, bounded, so that
the model server alone can answer "the ten best videos for user U".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from schemas.config import FeatureConfig

from .cuckoo import CuckooIndex
from .feature_ids import hash_strings
from .snapshot import Increment, KeyedPart, matrix_column, matrix_of

USERS, ITEMS = "catalogue_users", "catalogue_items"
#: Bits of the hash by which entries are told apart: among a million names, two collide once in nine million such sets.
NAME_BITS = 62


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
        """The `n` seen last, newest first; ties by name, so that the choice is the same everywhere."""
        order = np.lexsort((self.names.astype(str), -self.last_seen_ms))[:n]
        return Entries(self.names[order], self.ids[order], self.last_seen_ms[order])


class _Side:
    """Entries by a hash of their name, in rows without gaps; the oldest tenth leaves when there are too many."""

    def __init__(self, width: int, most: int) -> None:
        self.most = most
        self._index = CuckooIndex(1024)
        self._size = 0
        self._keys = np.zeros(0, np.int64)
        self._names = np.zeros(0, object)
        self._ids = np.zeros((0, width), np.int64)
        self._seen = np.zeros(0, np.int64)
        # Changes are stamped by increment, so that what changes while one is being written belongs to the next.
        self._stamps = np.zeros(0, np.int64)
        self._stamp = self._durable = 0
        self._gone: list[tuple[int, np.ndarray]] = []

    @property
    def row_bytes(self) -> int:
        vectors = (self._keys, self._names, self._seen, self._stamps)
        return sum(column.itemsize for column in vectors) + self._ids.itemsize * int(self._ids.shape[1])

    def update(self, names: np.ndarray, ids: np.ndarray, time_ms: np.ndarray) -> None:
        """Names object[N], ids int64[N, W], event times int64[N]; of a name's mentions the newest counts, the later of
        equals; one older than what is known changes nothing."""
        order = np.argsort(time_ms, kind="stable")[::-1]
        keys, at = np.unique(_keys_of(names)[order], return_index=True)
        at = order[at]
        rows = self._index.find(keys)
        fresh = np.flatnonzero(rows < 0)
        rows[fresh] = self._take(keys[fresh])
        newer = time_ms[at] >= self._seen[rows]
        rows, at = rows[newer], at[newer]
        self._names[rows], self._ids[rows], self._seen[rows] = names[at], ids[at], time_ms[at]
        self._stamps[rows] = self._stamp
        if self._size > self.most:
            self._evict(self.most * 9 // 10)

    def entries(self) -> Entries:
        """All of them, in the order of their rows: copies."""
        live = slice(self._size)
        return Entries(self._names[live].copy(), self._ids[live].copy(), self._seen[live].copy())

    def part(self) -> KeyedPart:
        """What changed since the last part that was made durable."""
        rows = np.flatnonzero(self._stamps[: self._size] >= self._durable)
        gone = np.unique(np.concatenate([np.zeros(0, np.int64), *(keys for _, keys in self._gone)]))
        self._stamp += 1
        table = {
            "key": self._keys[rows],
            "name": pa.array(self._names[rows].tolist(), pa.string()),
            "ids": matrix_column(self._ids[rows]),
            "last_seen_ms": self._seen[rows],
        }
        return KeyedPart(pa.table(table), gone[self._index.find(gone) < 0])

    def committed(self) -> None:
        """The last part is durable."""
        self._durable = self._stamp
        self._gone = [(stamp, keys) for stamp, keys in self._gone if stamp >= self._durable]

    def load(self, part: KeyedPart, durable: bool) -> None:
        """Take the entries of a merged part; if they are not `durable` as they are, the next part has them all."""
        entries = entries_of(part.rows)
        rows = self._take(part.rows.column("key").to_numpy())
        self._names[rows], self._ids[rows], self._seen[rows] = entries.names, entries.ids, entries.last_seen_ms
        self._stamps[rows] = -1 if durable else self._stamp

    def _take(self, keys: np.ndarray) -> np.ndarray:
        """Rows int32[N] for new keys."""
        rows = np.arange(self._size, self._size + keys.size, dtype=np.int32)
        self._size += keys.size
        if self._size > self._keys.size:
            more = max(1024, self._size) * 2 - self._keys.size
            self._keys = np.concatenate([self._keys, np.zeros(more, np.int64)])
            self._names = np.concatenate([self._names, np.zeros(more, object)])
            self._ids = np.concatenate([self._ids, np.zeros((more, self._ids.shape[1]), np.int64)])
            self._seen = np.concatenate([self._seen, np.zeros(more, np.int64)])
            self._stamps = np.concatenate([self._stamps, np.zeros(more, np.int64)])
        self._index.insert(keys, rows)
        self._keys[rows], self._seen[rows] = keys, np.iinfo(np.int64).min
        return rows

    def _evict(self, kept: int) -> None:
        # By key where times are equal: the order of rows is another after a restart.
        order = np.lexsort((self._keys[: self._size], self._seen[: self._size]))
        self._gone.append((self._stamp, self._keys[order[: self._size - kept]].copy()))
        rows = np.sort(order[self._size - kept :])
        columns = [column[rows] for column in (self._keys, self._names, self._ids, self._seen, self._stamps)]
        self._keys, self._names, self._ids, self._seen, self._stamps = columns
        self._size = kept
        self._index = CuckooIndex(kept)
        self._index.insert(self._keys, np.arange(kept, dtype=np.int32))


class Catalogue:
    """Newest features by user and by video.

    Args:
        config: feature configuration.
        max_users, max_items: bounds; beyond them the tenth that was seen longest ago leaves.
    """

    def __init__(self, config: FeatureConfig, max_users: int = 100_000, max_items: int = 10_000) -> None:
        self._sides = {USERS: _Side(config.user_width, max_users), ITEMS: _Side(config.item_width, max_items)}

    @property
    def row_bytes(self) -> dict[str, tuple[int, int]]:
        """By side, the most entries and the bytes of the columns of one."""
        return {name: (side.most, side.row_bytes) for name, side in self._sides.items()}

    def update(
        self,
        users: np.ndarray,
        user_ids: np.ndarray,
        items: np.ndarray,
        item_ids: np.ndarray,
        time_ms: np.ndarray,
    ) -> None:
        """Rows of a batch: names object[N], packed ids int64[N, Wu] and int64[N, Wi], event times int64[N]."""
        self._sides[USERS].update(users, user_ids, time_ms)
        self._sides[ITEMS].update(items, item_ids, time_ms)

    @property
    def users(self) -> Entries:
        """The users known, copies: `ids` int64[N, Wu]."""
        return self._sides[USERS].entries()

    @property
    def items(self) -> Entries:
        """The videos known, copies: `ids` int64[N, Wi]."""
        return self._sides[ITEMS].entries()

    def increment(self) -> Increment:
        """What changed before this call and is not in an increment that was `committed`."""
        return Increment({name: side.part() for name, side in self._sides.items()})

    def committed(self) -> None:
        """The last increment is durable."""
        for side in self._sides.values():
            side.committed()

    def load(self, state: Increment, durable: bool = True) -> None:
        """Restore a merged increment into a new catalogue.

        Args:
            state: has its parts.
            durable: whether they are in files as they are; otherwise the next increment holds everything.
        """
        for name, side in self._sides.items():
            side.load(state.keyed[name], durable)


def entries_of(table: pa.Table) -> Entries:
    """Entries as a snapshot's part holds them."""
    names = table.column("name").to_numpy()
    return Entries(names, matrix_of(table.column("ids")), table.column("last_seen_ms").to_numpy())


def _keys_of(names: np.ndarray) -> np.ndarray:
    # Above 0, which an index cannot hold.
    return hash_strings(names, bits=NAME_BITS) + 1
