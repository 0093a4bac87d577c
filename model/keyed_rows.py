"""Rows by key: the part of an embedding table that readers, snapshots and copies deal with.

    rows: 0 padding (zeros) | 1 to S the slots' default rows | ids, as they come

An index leads from id to row; rows lie in an arena that grows in place and never move.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from schemas.config import FeatureConfig

from .admission import AdmissionSketch
from .arena import COUNT, SEEN, STEPS, Layout, RowArena, keep_used
from .cuckoo import KEY_BYTES, CuckooIndex
from .feature_ids import default_key
from .growing_array import MAX_ROWS, kernel_array
from .journal import Journal, wrapped
from .optimizers import INITIAL, counts_steps, state_width
from .row_copies import copy_rows
from .slot_arrays import SlotArrays, check_known, slot_rows_of
from .table_rows import TableRows
from .threads import free_at_fork

_SKETCH_WIDTH = 1 << 20
_MENTIONS_BYTES = 8  # of the journal, at most, for each row
_LAST_S = 2**32 - 1  # seconds that a row can have been seen at, in 2106
_COUNTERS = ("expired", "evicted", "refused")


def layout_of(config: FeatureConfig) -> Layout:
    """Where the parts of a record of a configuration's table lie."""
    optimizers, width = [slot.optimizer for slot in config.slot_order], 1 + config.model.dim
    return Layout.of(width, state_width(optimizers, width), counts_steps(optimizers))


def row_bytes(config: FeatureConfig) -> float:
    """Bytes that an id with a row takes at most: its record, its place in index and list of free rows, its mentions."""
    record = 8 * ((layout_of(config).end + 1) // 2)
    return record + np.dtype(np.int32).itemsize + KEY_BYTES + _MENTIONS_BYTES


class KeyedRows:
    """Rows with their keys, optimizer state, counts, last-seen times and versions.

    Row numbers hold until rows are next admitted, let go or loaded. Verbs take turns: several threads may call them, and a
    fork waits for the verb at work.

    Args:
        config: slots with their optimizers, and the dimension.
        capacity: rows to make room for at first.
        table_bytes: most memory to use for rows, their index, the journal's mentions and the admission sketch; None: what
            the system gives. Keys removed that no reader has taken yet come on top.

    Attributes:
        version: of what is touched from now on; see `tick`.
        expired, evicted, refused: rows let go because their time had passed, or because memory was short, and ids that
            passed admission when no row could be had, so far.

    Raises:
        ValueError: a negative capacity, or `table_bytes` that do not hold a single id.
    """

    def __init__(self, config: FeatureConfig, capacity: int, table_bytes: int | None) -> None:
        if capacity < 0:
            raise ValueError(f"a table with room for {capacity} rows: give 0 or more")
        slots = config.slot_order
        layout = layout_of(config)
        self.dim = config.model.dim
        self.row_width = 1 + self.dim
        self.optimizer_width = layout.end - layout.state
        self.version = 0
        self.expired = self.evicted = self.refused = 0
        self._lock = threading.RLock()
        free_at_fork(self._lock)
        self._config = config
        self._slots = SlotArrays.of(config)
        self._defaults = len(slots)
        # Slots without a counting filter never reach the sketch: nothing is kept, or written to snapshots, for them.
        counted = any(slot.admission > 1 and slot.admission_mode == "count" for slot in slots)
        self._sketch = AdmissionSketch(_SKETCH_WIDTH if counted else 1)
        self._arena = RowArena(layout, capacity, self._most_rows(table_bytes))
        self._index = CuckooIndex(min(capacity, self._arena.most), self._arena.records)
        self._journal = Journal()
        self._slot_rows = np.zeros(self._defaults, np.int64)
        self._newest_ms = -1
        self._hands = np.zeros(2, np.int64)  # of expiry and of eviction
        self._arena.take(1 + self._defaults)
        defaults = np.arange(1, 1 + self._defaults, dtype=np.int32)
        self._index.insert(np.array([default_key(slot.slot) for slot in slots], np.int64), defaults)
        accumulators = slice(layout.state, min(layout.state + self.row_width, layout.end))
        self._arena.arrays().floats[defaults, accumulators] = self._slots.optimizers[:, [INITIAL]]

    def _most_rows(self, table_bytes: int | None) -> int:
        if table_bytes is None:
            return MAX_ROWS
        per_row = row_bytes(self._config)
        most = int((table_bytes - self._sketch.nbytes) / per_row)
        if most < 2 + self._defaults:
            least = self._sketch.nbytes + int(per_row * (2 + self._defaults)) + 1
            raise ValueError(f"table_bytes = {table_bytes} does not hold a single id: give at least {least}")
        return min(most, MAX_ROWS)

    def __len__(self) -> int:
        """Ids with a row of their own."""
        return len(self._index) - self._defaults

    @property
    def nbytes(self) -> int:
        """Bytes of the rows used so far, their index, the journal and the admission sketch."""
        return self._arena.nbytes + self._index.nbytes + self._journal.nbytes + self._sketch.nbytes

    @property
    def trimmed(self) -> int:
        """Version up to which changes were forgotten."""
        return self._journal.trimmed

    def tick(self) -> None:
        """Begins the next version: what is touched from now on belongs to it."""
        with self._lock:
            self.version += 1

    def advance(self, time_ms: int) -> int:
        """Sets the clock to an event time, ms, unless it stands past it already. Returns where it stands."""
        # Event times may go back from step to step. Were rows judged by such a time, one past its own would live on where the
        # hand had not come by, and start anew where it had.
        with self._lock:
            self._newest_ms = max(self._newest_ms, time_ms)
            return self._newest_ms

    @property
    def _now_s(self) -> int:
        return min(max(0, self._newest_ms // 1000), _LAST_S)

    # Readers

    def touched_since(self, version: int) -> NDArray[np.int32]:
        """Default rows and rows of ids that were touched after `version`, int32[R], at a cost that follows their number.

        `version` 0 means a reader that has nothing: it gets all rows, in ascending order.

        Raises:
            ValueError: that much has been trimmed.
        """
        with self._lock:
            if version > 0:
                rows = self._journal.touched_since(version, self._arena.touched)
            else:
                rows = np.arange(1, self._arena.end, dtype=np.int32)
            return rows[: keep_used(self._arena.arrays().longs, rows)]

    def removed_since(self, version: int) -> NDArray[np.int64]:
        """Keys int64[R] removed after `version` that did not come back; none for a reader that has nothing, at 0.

        Raises:
            ValueError: that much has been trimmed.
        """
        if version <= 0:
            return np.zeros(0, np.int64)
        with self._lock:
            keys = self._journal.removed_since(version)
            return keys[self._index.find(keys) < 0]

    def trim(self, version: int) -> None:
        """Forgets changes up to `version`: every reader has them, or has nothing."""
        with self._lock:
            self._journal.trim(version)

    # Snapshots

    def export_range(self, start: int, stop: int) -> TableRows | None:
        """Copies of those of rows `start` to `stop` that are in use; None if all that were ever used lie before."""
        with self._lock:
            if start >= self._arena.end:
                return None
            return self.export_used(np.arange(start, min(stop, self._arena.end), dtype=np.int32))

    def export_used(self, rows: NDArray[np.int32]) -> TableRows:
        """Copies of those of rows int32[R] that are in use."""
        with self._lock:
            rows = self._checked_rows(rows).copy()
            return self._copies(rows[: keep_used(self._arena.arrays().longs, rows)])

    def export(self, rows: NDArray[np.int32], state: bool = True) -> TableRows:
        """Copies of rows int32[R], with all there is to restore them, or without optimizer state.

        Raises:
            ValueError: a row is not in use.
        """
        with self._lock:
            copies = self._copies(self._checked_rows(rows), state)
            if not copies.keys.all():
                row = copies.numbers[copies.keys == 0][0]
                raise ValueError(f"row {row} is not in use: export what touched_since returned")
            return copies

    def _copies(self, rows: NDArray[np.int32], state: bool = True) -> TableRows:
        return copy_rows(self._arena.arrays(), self._arena.layout, rows, self.version, state)

    def load(self, rows: TableRows, removed: NDArray[np.int64]) -> None:
        """Removes keys int64[N], then puts rows in, over what those keys have: what a delta does to a copy.

        Raises:
            ValueError: the rows are of another configuration, or a key occurs twice; nothing has changed then.
            MemoryError: there is no room for so many; nothing has changed then.
        """
        with self._lock:
            self._check_rows(rows)
            removed = kernel_array(removed, np.int64)
            if removed.size and removed.min() <= 0:
                raise ValueError(f"key {removed.min()} is no feature id: only rows of feature ids can be removed")
            self._make_room(rows.keys, removed)
            there = self._index.remove(removed)
            self._slot_rows -= slot_rows_of(self._slots, removed[there >= 0])
            self._arena.put_back(there[there >= 0])
            self._journal.remove(removed[there >= 0], self.version)
            at = self._index.find(rows.keys)
            fresh = np.flatnonzero(at < 0)
            at[fresh] = self._arena.take(fresh.size)
            self._put(rows, at, fresh)
            touched = self._arena.touched
            new = at[touched[at] != wrapped(self.version)]
            touched[new] = wrapped(self.version)
            self._journal.mention(new, self.version, touched, self._arena.end)

    def _make_room(self, keys: NDArray[np.int64], removed: NDArray[np.int64]) -> None:
        """Has room for what `load` puts in, once `removed` has left."""
        removed = np.unique(removed)
        leaving = removed[self._index.find(removed) >= 0]
        coming = int(np.count_nonzero(self._index.find(keys) < 0)) + np.isin(leaving, keys).sum()
        self._arena.check_room(coming - leaving.size)
        self._arena.reserve(coming)
        self._index.reserve(coming)

    def state(self) -> dict[str, NDArray]:
        """What there is besides the rows, as copies: the admission sketch, the journal's tombstones, `newest_ms` int64[1],
        the clock, `layout` int64[4], the first row behind the default rows, the first never used, and the hands' places,
        and `counters` int64[3], rows expired and evicted, and ids refused."""
        with self._lock:
            numbers = {
                "newest_ms": [self._newest_ms],
                "layout": [1 + self._defaults, self._arena.end, *self._hands],
                "counters": [getattr(self, name) for name in _COUNTERS],
            }
            arrays = {name: np.array(values, np.int64) for name, values in numbers.items()}
            return self._sketch.state() | self._journal.state() | arrays

    def restore(self, rows: TableRows, state: dict[str, NDArray], version: int, shard: tuple[int, int] | None = None) -> None:
        """The inverse of `export` of all rows and of `state`, in a new table: it goes on as if it had never stopped.

        Args:
            rows: of one table; or of the tables of several shards, see `TableRows.union`, with the state of any of them.
            state, version: of the table.
            shard: (s, S) to take the rows of shard s of S only; None: all.

        Raises:
            ValueError: this table is not new, or the rows or state are of another configuration.
            MemoryError: there is no room for so many.
        """
        with self._lock:
            if len(self) or self.version:
                raise ValueError(f"a table at version {self.version} with {len(self)} rows: restore into a new one")
            self._check_rows(rows)
            self._sketch.load_state(state)
            first, end = (int(x) for x in state["layout"][:2])
            hands = state["layout"][2:]
            if shard is not None:
                rows = rows.of_shard(*shard)
                end, hands = 1 + len(rows), np.zeros_like(hands)
            appended = 1 + self._defaults - first  # slots' default rows, which push the others back
            at = self._index.find(rows.keys)
            live = np.flatnonzero(at < 0)
            at[live] = rows.numbers[live] + appended
            self._arena.lay_out(at[live], 1 + self._defaults, end + appended)
            self._put(rows, at, live)
            self._arena.touched[at] = rows.versions.astype(np.int32)
            self._journal.restore(at, rows.versions, state)
            self._newest_ms = int(state["newest_ms"][0])
            self.version = max(version, int(rows.versions.max(initial=0)))  # other shards may have come further
            self._hands[:] = np.where(hands >= first, hands + appended, 0)
            for name, value in zip(_COUNTERS, state["counters"].tolist(), strict=True):
                setattr(self, name, value)

    def _put(self, rows: TableRows, at: NDArray[np.int32], fresh: NDArray[np.int64]) -> None:
        self._index.insert(rows.keys[fresh], at[fresh])
        self._slot_rows += slot_rows_of(self._slots, rows.keys[fresh])
        arena, layout = self._arena.arrays(), self._arena.layout
        given = layout.state + rows.optimizer.shape[1]
        arena.floats[at, layout.values : layout.state] = rows.values
        arena.floats[at, layout.state : given] = rows.optimizer
        arena.floats[at, given : layout.end] = 0.0
        if layout.values > STEPS:
            arena.ints[at, STEPS] = rows.steps
        arena.ints[at, COUNT] = rows.counts
        arena.ints.view(np.uint32)[at, SEEN] = np.maximum(rows.last_seen_ms // 1000, 0).astype(np.uint32)
        self._arena.written(at)

    # Checks, so that no kernel reads or writes outside the arena

    def _check_rows(self, rows: TableRows) -> None:
        rows.check(self.row_width, self.optimizer_width)
        if np.unique(rows.keys).size != len(rows):
            raise ValueError("a key occurs twice in the rows to load: merge them first, the last one counts")
        check_known(self._slots, rows.keys[rows.keys > 0])
        defaults = rows.keys[rows.keys < 0]
        unknown = defaults[self._index.find(defaults) < 0]
        if unknown.size:
            raise ValueError(f"rows to load: key {unknown[0]} is no slot's default row: is it another configuration?")

    def _checked_rows(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        rows = kernel_array(rows, np.int32)
        if rows.size and int(rows.view(np.uint32).max()) >= self._arena.end:
            row = rows[(rows < 0) | (rows >= self._arena.end)][0]
            raise ValueError(f"row {row} is not in a table of {self._arena.end} rows: look rows up in this table")
        return rows
