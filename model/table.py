"""The collisionless embedding table: every id that is admitted has a row of its own.

Row 0 is padding (zeros, never written), rows 1 to S are the slots' default rows, which ids without a row of their own
read and train; live rows follow. An index leads from id to row; a row is one record of columns that grow in place.
"""

from __future__ import annotations

import numpy as np

from schemas.config import FeatureConfig

from .admission import AdmissionFilter
from .arena import GrowingArray, TableRows
from .cuckoo import CuckooIndex
from .feature_ids import SLOT_SHIFT, default_key
from .journal import Journal
from .optimizers import ADAGRAD, STATES, settings_of, update_rows
from .pooling import dedup_ids, initial_rows, pool_rows, scatter_gradients


class EmbeddingTable:
    """Embeddings by feature id, with optimizer state, counts and last-seen times.

    Args:
        config: slots, their admission thresholds, times to live and optimizers; dimension.
        capacity: rows there is room for at first.
        seed: of new rows' values.
    """

    def __init__(self, config: FeatureConfig, capacity: int = 1 << 12, seed: int = 0) -> None:
        slots = config.slot_order
        self._seed = seed
        self.row_width = 1 + config.model.dim
        self._slots = len(slots)
        self._column_slot = config.column_slot
        self._mean = np.array([slot.pooling == "mean" for slot in slots])
        self._slot_number = np.full(max(slot.slot for slot in slots) + 1, -1, np.int64)
        self._slot_number[[slot.slot for slot in slots]] = np.arange(len(slots))
        self._settings = settings_of([slot.optimizer for slot in slots])
        self.optimizer_width = self.row_width * max(STATES[int(kind)] for kind in self._settings[:, 0])
        self._accumulators = np.where(self._settings[:, 0] == ADAGRAD, self._settings[:, 2], 0.0)
        self._scales = np.array([slot.init_scale for slot in slots])
        self._thresholds = np.array([slot.admission for slot in slots], np.int64)
        forever = np.iinfo(np.int64).max
        self._ttl_ms = np.array([forever if slot.ttl_s is None else slot.ttl_s * 1000 for slot in slots], np.int64)
        self._index = CuckooIndex(capacity)
        self._filter = AdmissionFilter()
        self._keys = GrowingArray((), np.int64, capacity)
        self._values = GrowingArray((self.row_width,), np.float32, capacity)
        self._state = GrowingArray((self.optimizer_width,), np.float32, capacity)
        self._steps = GrowingArray((), np.int32, capacity)
        self._counts = GrowingArray((), np.int32, capacity)
        self._seen_ms = GrowingArray((), np.int64, capacity)
        self._columns = (self._keys, self._values, self._state, self._steps, self._counts, self._seen_ms)
        self._free = np.zeros(0, np.int64)
        self._end = 1 + self._slots
        self._hand = self._end
        self._touched, self._removed = Journal(), Journal()
        self.version = 0
        defaults = np.arange(1, self._end)
        self._reserve(self._end)
        self._keys.array[0] = 0
        self._keys.array[defaults] = [default_key(slot.slot) for slot in slots]
        self._state.array[defaults] = self._accumulators[:, None]
        self._default_keys = self._keys.array[defaults].copy()

    def __len__(self) -> int:
        """Live rows."""
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of index and rows in use."""
        return self._index.nbytes + self._end * sum(column.row_nbytes for column in self._columns)

    def tick(self) -> None:
        """A new version begins: what is touched from now on belongs to it."""
        self.version += 1

    # From ids to rows

    def dedup(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct ids int64[U] of a batch int64[N, W], 0 first, and int32[N, W] leading back to them."""
        inverse = np.empty(ids.size, np.int32)
        unique = np.empty(ids.size + 1, np.int64)
        size = 1 << int(2 * ids.size + 2).bit_length()
        n = dedup_ids(ids.reshape(-1), inverse, unique, np.full(size, -1, np.int64), np.empty(size, np.int32))
        return unique[:n], inverse.reshape(ids.shape)

    def find(self, unique: np.ndarray) -> np.ndarray:
        """Rows int32[U] of distinct ids; an id without one has its slot's default row, 0 the padding row.

        Raises:
            ValueError: for an id of a slot that the configuration lacks.
        """
        slots = self._slots_of(unique)
        rows = self._index.find(unique)
        missing = rows < 0
        rows[missing] = 1 + slots[missing]
        rows[unique == 0] = 0
        return rows

    def admit(self, unique: np.ndarray, occurrences: np.ndarray, time_ms: int) -> np.ndarray:
        """Rows int32[U] of distinct ids, after those that have occurred often enough were given one.

        Args:
            unique: int64[U] from :meth:`dedup`.
            occurrences: int32[U], times each id occurred now; 0 counts nothing and admits nothing.
            time_ms: event time, ms.

        Raises:
            ValueError: for an id of a slot that the configuration lacks.
        """
        slots = self._slots_of(unique)
        rows = self._index.find(unique)
        seen = (occurrences > 0) & (unique > 0)
        fresh = np.flatnonzero(seen & (rows < 0))
        if fresh.size:
            counts = occurrences[fresh].astype(np.int64)
            thresholds = self._thresholds[slots[fresh]]
            filtered = thresholds > 1
            counts[filtered] = self._filter.count(unique[fresh[filtered]], occurrences[fresh[filtered]])
            admitted = counts >= thresholds
            fresh, counts = fresh[admitted], counts[admitted]
            new = self._take(fresh.size)
            self._keys.array[new] = unique[fresh]
            self._steps.array[new] = 0
            self._counts.array[new] = counts - occurrences[fresh]
            self._seen_ms.array[new] = time_ms
            initial_rows(
                self._values.array,
                self._state.array,
                new,
                unique[fresh],
                slots[fresh],
                self._scales,
                self._accumulators,
                self._seed,
            )
            self._index.insert(unique[fresh], new.astype(np.int32))
            rows[fresh] = new
        live = np.flatnonzero(seen & (rows >= 0))
        at = rows[live]
        self._counts.array[at] += occurrences[live]
        self._seen_ms.array[at] = np.maximum(self._seen_ms.array[at], time_ms)
        self._touched.add(self.version, at.astype(np.int64))
        missing = rows < 0
        rows[missing] = 1 + slots[missing]
        rows[unique == 0] = 0
        return rows

    # Between rows and slots

    def pool(self, rows: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        """float32[N, S, 1 + dim]: each slot's rows summed or averaged over the ids present."""
        out = np.empty((len(inverse), self._slots, self.row_width), np.float32)
        pool_rows(self._values.array, rows, inverse, self._column_slot, self._mean, out)
        return out

    def scatter(self, grad: np.ndarray, inverse: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Gradients float32[N, S, 1 + dim] of pooled slots, summed by distinct id: float32[U, 1 + dim]."""
        out = np.zeros((rows.size, self.row_width), np.float32)
        scatter_gradients(np.ascontiguousarray(grad), inverse, self._column_slot, self._mean, out)
        return out

    def update(self, rows: np.ndarray, grads: np.ndarray) -> int:
        """One optimizer step of ``rows`` int32[U] by ``grads`` float32[U, 1 + dim].

        Ids without a row share their slot's default row: their gradients are added up first.

        Returns:
            Rows left alone because their gradient was not finite.
        """
        shared = rows <= self._slots
        own = ~shared
        defaults = np.unique(rows[shared])
        sums = np.zeros((1 + self._slots, self.row_width), np.float32)
        np.add.at(sums, rows[shared], grads[shared])
        defaults = defaults[defaults > 0]
        rows = np.concatenate([defaults, rows[own]])
        grads = np.concatenate([sums[defaults], grads[own]])
        keys = self._keys.array[rows]
        slots = np.concatenate([defaults - 1, self._slots_of(keys[defaults.size :])]).astype(np.int64)
        self._touched.add(self.version, rows.astype(np.int64))
        return int(update_rows(self._values.array, self._state.array, self._steps.array, rows, slots, grads, self._settings))

    def expire(self, time_ms: int, budget: int) -> int:
        """Let a hand go over ``budget`` rows and remove those unseen for longer than their slot's time to live.

        Returns:
            Rows removed.
        """
        live = self._end - 1 - self._slots
        if live <= 0 or (self._ttl_ms == np.iinfo(np.int64).max).all():
            return 0
        rows = 1 + self._slots + (self._hand + np.arange(min(budget, live))) % live
        self._hand = int((self._hand + rows.size) % live)
        keys = self._keys.array[rows]
        rows, keys = rows[keys > 0], keys[keys > 0]
        old = time_ms - self._seen_ms.array[rows] > self._ttl_ms[self._slots_of(keys)]
        self._remove(keys[old], rows[old])
        return int(np.count_nonzero(old))

    # Readers

    def touched_since(self, version: int) -> np.ndarray:
        """Live and default rows touched after ``version``: int64[R]; costs what was touched."""
        # For a reader from before what is remembered: all there is.
        whole = version < self._touched.trimmed
        rows = np.arange(1, self._end) if whole else self._touched.since(version)
        return rows[self._keys.array[rows] != 0]

    def removed_since(self, version: int) -> np.ndarray:
        """Keys that left after ``version`` and did not come back: int64[]."""
        gone = self._removed.since(max(version, self._removed.trimmed))
        return gone[self._index.find(gone) < 0]

    def trim(self, version: int) -> None:
        """Every reader has seen what happened up to ``version``."""
        self._touched.trim(version)
        self._removed.trim(version)

    def export(self, rows: np.ndarray) -> TableRows:
        """Copies of whole rows."""
        columns = (self._keys, self._values, self._state, self._steps, self._counts, self._seen_ms)
        return TableRows(*(column.array[rows] for column in columns))

    def load(self, rows: TableRows, removed: np.ndarray) -> None:
        """Put rows as they are, overwriting those of equal keys, and remove keys."""
        at = self._index.find(rows.keys)
        self._remove(removed, self._index.find(removed))
        fresh = (at < 0) & (rows.keys >= 0)
        new = self._take(int(fresh.sum()))
        at[fresh] = new
        defaults = rows.keys < 0
        order = np.argsort(self._default_keys)
        at[defaults] = 1 + order[np.searchsorted(self._default_keys[order], rows.keys[defaults])]
        for column, values in zip(
            self._columns, (rows.keys, rows.values, rows.optimizer, rows.steps, rows.counts, rows.last_seen_ms), strict=True
        ):
            column.array[at] = values
        self._index.insert(rows.keys[fresh], new.astype(np.int32))
        self._touched.add(self.version, at.astype(np.int64))

    def filter_state(self) -> dict[str, np.ndarray]:
        """The admission filter, and where the expiry hand stands."""
        return self._filter.state() | {"hand": np.array([self._hand], np.int64)}

    def load_filter(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`filter_state`."""
        self._filter.load(state)
        self._hand = int(state["hand"][0])

    def restore_version(self, version: int) -> None:
        """Go on counting from ``version``: everything so far belongs to it or before."""
        self.version = version
        self.trim(version)

    # Helpers

    def _slots_of(self, ids: np.ndarray) -> np.ndarray:
        slots = ids >> SLOT_SHIFT
        within = (slots >= 0) & (slots < self._slot_number.size)
        numbers = np.where(within, self._slot_number[np.where(within, slots, 0)], -1)
        unknown = (numbers < 0) & (ids != 0)
        if unknown.any():
            raise ValueError(f"feature id {ids[unknown][0]} is of slot {slots[unknown][0]}, which the configuration lacks")
        return numbers

    def _reserve(self, rows: int) -> None:
        for column in self._columns:
            column.reserve(rows)

    def _take(self, n: int) -> np.ndarray:
        """``n`` rows to use: freed ones first."""
        reused, self._free = self._free[:n], self._free[n:]
        fresh = np.arange(self._end, self._end + n - reused.size)
        self._end += fresh.size
        self._reserve(self._end)
        return np.concatenate([reused, fresh])

    def _remove(self, keys: np.ndarray, rows: np.ndarray) -> None:
        there = rows >= 0
        keys, rows = keys[there], rows[there].astype(np.int64)
        if not keys.size:
            return
        self._index.remove(keys)
        self._keys.array[rows] = 0
        self._free = np.concatenate([self._free, rows])
        self._removed.add(self.version, keys)
