"""The collisionless embedding table: every id that is admitted has a row of its own.

    rows: 0 padding (zeros) | 1 to S the slots' default rows | ids, as they come

An index leads from id to row; rows lie in columns that grow in place. An id without a row reads, and trains, its slot's
default row. Event time alone ages rows and versions alone order changes, so that a table is a function of the calls made
to it, and goes on from a snapshot as it was, row by row; its clock, the newest event time it was given, never goes back.
One thread at a time.

Reference: Liu et al., "Monolith: real time recommendation system with collisionless embedding table", arXiv 2209.07663 §2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.config import FeatureConfig

from .admission import MAX_THRESHOLD, AdmissionSketch
from .arena import RowArena, TableRows, kernel_array
from .cuckoo import CuckooIndex
from .dedup import Dedup, count_ids_of
from .feature_ids import SLOT_SHIFT, default_key, mix63
from .journal import Journal
from .lifecycle import AT, COUNTED, REMOVED, admit_ids, expire_rows, fill_defaults
from .optimizers import state_width, update_rows
from .pooling import check_inverse, check_pooled, pool_rows, read_only, scatter_gradients
from .slot_arrays import NEVER_MS, SlotArrays, check_known, unknown_slot

_SKETCH_WIDTH = 1 << 20

#: A part of a batch: gradient of the sum of first-order weights, gradient of the embeddings, inverse.
GradientPart = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]


class EmbeddingTable:
    """Embeddings by feature id, with optimizer state, counts and last-seen times.

    Row numbers hold until the next `admit`, `expire` or `load`; what `scatter` returns, until the next `scatter`: fresh
    memory for each batch would cost more in page faults than the sums.

    Args:
        config: slots with their admission thresholds, times to live and optimizers, and the dimension.
        capacity: rows to make room for at first.
        seed: of new rows' values.
    """

    def __init__(self, config: FeatureConfig, capacity: int = 1 << 16, seed: int = 0) -> None:
        slots = config.slot_order
        too_high = [slot.name for slot in slots if slot.admission > MAX_THRESHOLD]
        if too_high:
            raise ValueError(f"slot {too_high[0]!r}: admission is above {MAX_THRESHOLD}: lower it")
        self.dim = config.model.dim
        self.row_width = 1 + self.dim
        self.optimizer_width = state_width([slot.optimizer for slot in slots], self.row_width)
        self.version = 0
        self._config = config
        self._slots = SlotArrays.of(config)
        self._seed = int(mix63(np.array([seed]))[0])
        self._index = CuckooIndex(capacity)
        self._arena = RowArena(self.row_width, self.optimizer_width, capacity)
        # Slots without a filter never reach the sketch: nothing is kept, or written to snapshots, for them.
        filters = any(slot.admission > 1 for slot in slots)
        self._sketch = AdmissionSketch(_SKETCH_WIDTH if filters else 1)
        self._journal = Journal(max(capacity, 1 + len(slots)))
        self._newest_ms = -1
        self._hand = 0
        self._dedup = Dedup(self._slots.of_number)
        self._gradients = np.zeros((0, self.row_width), np.float32)
        self._defaults = len(slots)
        self._arena.take(1 + len(slots))
        defaults = np.arange(1, 1 + len(slots), dtype=np.int32)
        self._index.insert(np.array([default_key(slot.slot) for slot in slots], np.int64), defaults)
        initial = [o.initial_accumulator if o.kind == "adagrad" else 0.0 for o in (slot.optimizer for slot in slots)]
        self._arena.arrays().optimizer[defaults, : self.row_width] = np.array(initial)[:, None]

    def __len__(self) -> int:
        """Ids with a row of their own."""
        return len(self._index) - self._defaults

    @property
    def nbytes(self) -> int:
        """Bytes of the rows used so far, their index, the journal and the admission sketch."""
        per_row = self._index.keys.itemsize + self._journal.row_nbytes
        parts = self._arena.nbytes + self._index.nbytes + self._journal.nbytes + self._sketch.nbytes
        return parts + self._arena.end * per_row

    @property
    def trimmed(self) -> int:
        """Version up to which changes were forgotten."""
        return self._journal.trimmed

    def tick(self) -> None:
        """Begins the next version: what is touched from now on belongs to it."""
        self.version += 1

    def warm_up(self) -> None:
        """Compiles every kernel, or reads it from the cache, by the work of one batch on a table that is thrown away."""
        table = EmbeddingTable(self._config, capacity=1)
        numbers = np.array([slot.slot for slot in self._config.slot_order], np.int64)
        ids = ((numbers << SLOT_SHIFT) | 1)[self._slots.of_column][None]
        unique, inverse = table.dedup(ids)
        rows = table.admit(unique, table.count(inverse, np.ones(1, np.bool_), unique.size) * MAX_THRESHOLD, 0)
        first, v = np.zeros((1, numbers.size), np.float32), np.zeros((1, numbers.size, self.dim), np.float32)
        table.pool(rows, inverse, first, v)
        table.update(rows, table.scatter([(first[:, 0].copy(), v, inverse)], rows))
        table.load(table.export(table.find(unique)[1:]), unique[1:2])
        table._index.grow()
        table.expire(NEVER_MS, 1)

    # From ids to rows

    def dedup(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Distinct ids int64[U] of ids int64[N, W], 0 first, then by appearance; int32[N, W] leads back to them.

        Raises:
            ValueError: an id is of a slot that the configuration lacks.
        """
        return self._dedup(ids)

    def count(self, inverse: NDArray[np.int32], first: NDArray[np.bool_], unique: int) -> NDArray[np.int32]:
        """Occurrences int32[U] of the `unique` distinct ids in the rows that `first` bool[N] marks; 0 for padding."""
        inverse = check_inverse(inverse, unique, self._slots.of_column.size)
        occurrences = np.zeros(unique, np.int32)
        count_ids_of(inverse, kernel_array(first, np.bool_), occurrences)
        return occurrences

    def find(self, unique: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows int32[U] of ids int64[U]: an id's own, or its slot's default row; row 0 for id 0. Changes nothing.

        Raises:
            ValueError: an id is of a slot that the configuration lacks.
        """
        unique = kernel_array(unique, np.int64)
        rows = self._index.find(unique)
        unknown = fill_defaults(self._slots, self._arena.arrays().last_seen_ms, unique, self._newest_ms, rows)
        if unknown >= 0:
            raise unknown_slot(int(unique[unknown]))
        return rows

    def admit(self, unique: NDArray[np.int64], occurrences: NDArray[np.int32], time_ms: int) -> NDArray[np.int32]:
        """Rows int32[U] of a batch's distinct ids, after those were given one that have occurred often enough.

        An id whose time to live has passed is let go first, and counts as one never seen.

        Args:
            unique: int64[U], distinct.
            occurrences: int32[U], how often each id occurs now; one with 0 is not counted and gets no row.
            time_ms: event time; one older than the table's clock counts as the clock's.

        Raises:
            ValueError: an id is of a slot that the configuration lacks; then nothing has changed.
            MemoryError: the system refuses; then nothing has changed.
        """
        unique = kernel_array(unique, np.int64)
        occurrences = kernel_array(occurrences, np.int32)
        if unique.shape != occurrences.shape:
            raise ValueError(f"{unique.size} ids cannot have {occurrences.size} occurrences: give each id one")
        check_known(self._slots, unique)
        self._index.reserve_rows(self._arena.reserve(unique.size))
        now_ms = self.advance(time_ms)
        rows = self._index.find(unique)
        removed = np.empty(unique.size, np.int64)
        progress = np.zeros(3, np.int64)
        while True:
            admit_ids(
                self._index.arrays(), self._arena.arrays(), self._slots, self._sketch.cells,
                unique, occurrences, now_ms, self._seed, rows, removed, progress,
            )  # fmt: skip
            if progress[AT] == unique.size:
                break
            self._index.grow()
        self._sketch.age(int(progress[COUNTED]))
        self._journal.remove(removed[: progress[REMOVED]], self.version)
        self._touch(rows)
        return rows

    # Between rows and slots

    def pool(
        self,
        rows: NDArray[np.int32],
        inverse: NDArray[np.int32],
        first_out: NDArray[np.float32],
        v_out: NDArray[np.float32],
    ) -> None:
        """Pools a batch by slot, summed, or averaged over the ids present; a slot without ids is 0.

        Reads the table only, so that several threads may pool parts of a batch.

        Args:
            rows: int32[U] rows of the distinct ids.
            inverse: int32[N, W] from `dedup`.
            first_out: float32[>= N, S] for first-order weights; rows from N on are left alone.
            v_out: float32[>= N, S, dim] for embeddings, likewise.
        """
        rows, inverse = self._checked_rows(rows), check_inverse(inverse, rows.size, self._slots.of_column.size)
        check_pooled("first_out", first_out, len(inverse), (self._defaults,))
        check_pooled("v_out", v_out, len(inverse), (self._defaults, self.dim))
        pool_rows(self._arena.arrays().values, rows, inverse, self._slots.of_column, self._slots.mean, first_out, v_out)

    def scatter(self, parts: Sequence[GradientPart], rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """The transpose of `pool`: gradients of pooled slots summed by distinct id, float32[U, 1 + dim].

        Args:
            parts: one or more parts of a batch, summed in this order. Each is (float32[>= N] gradient of the sum of a
                row's first-order weights, float32[>= N, S, dim] gradient of its embeddings, int32[N, W] from `dedup`).
            rows: int32[U] rows of the distinct ids.
        """
        rows = self._checked_rows(rows)
        if len(self._gradients) < rows.size:
            self._gradients = np.empty((2 * rows.size, self.row_width), np.float32)
        out = self._gradients[: rows.size]
        out[:] = 0.0
        for grad_first, grad_v, inverse in parts:
            inverse = check_inverse(inverse, rows.size, self._slots.of_column.size)
            check_pooled("grad_first", grad_first, len(inverse), ())
            check_pooled("grad_v", grad_v, len(inverse), (self._defaults, self.dim))
            scatter_gradients(read_only(grad_first), read_only(grad_v), inverse, self._slots.of_column, self._slots.mean, out)
        return out

    def update(self, rows: NDArray[np.int32], grads: NDArray[np.float32]) -> int:
        """One optimizer step of rows int32[U] by gradients float32[U, 1 + dim], each slot by its own optimizer.

        Gradients of ids that share a default row are summed first; other rows are distinct. Row 0 stays zero.

        Returns:
            Gradients left out because they were not finite, or larger than 2^60; their rows keep their values.
        """
        rows = self._checked_rows(rows)
        grads = kernel_array(grads, np.float32)
        if grads.shape != (rows.size, self.row_width):
            raise ValueError(f"gradients of shape {grads.shape} for {rows.size} rows of {self.row_width} weights")
        sums = np.zeros((1 + self._defaults, self.row_width), np.float32)
        left_out = update_rows(
            self._arena.arrays(), self._index.keys, self._slots.of_number, self._slots.optimizers, rows, grads, sums
        )
        self._touch(rows)
        return int(left_out)

    def expire(self, time_ms: int, budget: int) -> int:
        """Moves a clock hand over at most `budget` rows; lets go of those unseen for longer than their time to live.

        Returns:
            Rows let go. Their keys are reported by `removed_since`, their rows used again.
        """
        now_ms = self.advance(time_ms)
        if budget <= 0 or bool((self._slots.ttl_ms == NEVER_MS).all()):
            return 0
        removed = np.empty(min(budget, self._arena.end), np.int64)
        self._hand, gone = expire_rows(
            self._index.arrays(), self._arena.arrays(), self._slots, now_ms, removed.size, self._hand, removed
        )
        self._journal.remove(removed[:gone], self.version)
        return int(gone)

    # Readers

    def touched_since(self, version: int) -> NDArray[np.int32]:
        """Default rows and rows of ids that were touched after `version`, int32[R], at a cost that follows their number.

        `version` 0 means a reader that has nothing: it gets all rows, in ascending order.

        Raises:
            ValueError: that much has been trimmed.
        """
        rows = self._journal.touched_since(version) if version > 0 else np.arange(1, self._arena.end, dtype=np.int32)
        return rows[self._index.keys[rows] != 0]

    def removed_since(self, version: int) -> NDArray[np.int64]:
        """Keys int64[R] removed after `version` that did not come back; none for a reader that has nothing, at 0.

        Raises:
            ValueError: that much has been trimmed.
        """
        if version <= 0:
            return np.zeros(0, np.int64)
        keys = self._journal.removed_since(version)
        return keys[self._index.find(keys) < 0]

    def trim(self, version: int) -> None:
        """Forgets changes up to `version`: every reader has them, or has nothing."""
        self._journal.trim(version)

    # Snapshots

    def export(self, rows: NDArray[np.int32]) -> TableRows:
        """Copies of rows int32[R], with all there is to restore them.

        Raises:
            ValueError: a row is not in use.
        """
        rows = self._checked_rows(rows)
        keys = self._index.keys[rows]
        if not keys.all():
            raise ValueError(f"row {rows[keys == 0][0]} is not in use: export what touched_since returned")
        arena = self._arena.arrays()
        return TableRows(
            keys=keys,
            values=arena.values[rows],
            optimizer=arena.optimizer[rows],
            steps=arena.steps[rows],
            counts=arena.counts[rows],
            last_seen_ms=arena.last_seen_ms[rows],
            versions=self._journal.versions_of(rows),
            numbers=rows,
        )

    def load(self, rows: TableRows, removed: NDArray[np.int64]) -> None:
        """Removes keys int64[], then puts rows as they are, in the place of those with the same key.

        To readers that is a touch at the present version, whatever the rows' `versions`; `numbers` are not looked at.

        Raises:
            ValueError: rows of another shape or of a slot that the configuration lacks, or the removal of a default row;
                then nothing has changed. A key that occurs twice is an error found too late for that.
        """
        self._check_rows(rows)
        removed = kernel_array(removed, np.int64)
        if removed.size and removed.min() <= 0:
            raise ValueError(f"key {removed.min()} is no feature id: only rows of feature ids can be removed")
        there = self._index.remove(removed)
        self._arena.put_back(there[there >= 0])
        self._journal.remove(removed[there >= 0], self.version)
        at = self._index.find(rows.keys)
        fresh = np.flatnonzero(at < 0)
        at[fresh] = self._arena.take(fresh.size)
        self._put(rows, at, fresh)
        self._touch(at)

    def state(self) -> dict[str, NDArray]:
        """What there is besides the rows, as copies: the admission sketch, the journal's tombstones, `newest_ms` int64[1],
        the clock, and `layout` int64[3], the first row behind the default rows, the first never used, and the hand's place."""
        layout = np.array([1 + self._defaults, self._arena.end, self._hand], np.int64)
        times = {"newest_ms": np.array([self._newest_ms], np.int64)}
        return self._sketch.state() | self._journal.state() | times | {"layout": layout}

    def restore(self, rows: TableRows, state: dict[str, NDArray], version: int) -> None:
        """The inverse of `export` of all rows and of `state`, in a new table: it goes on as if it had never stopped.

        Raises:
            ValueError: this table is not new, or the rows or state are of another configuration.
        """
        if len(self) or self.version:
            raise ValueError(f"a table at version {self.version} with {len(self)} rows: restore into a new one")
        self._check_rows(rows)
        self._sketch.load_state(state)
        first, end, hand = (int(x) for x in state["layout"])
        appended = 1 + self._defaults - first  # slots' default rows, which push the others back
        at = self._index.find(rows.keys)
        live = np.flatnonzero(at < 0)
        at[live] = rows.numbers[live] + appended
        self._arena.lay_out(at[live], 1 + self._defaults, end + appended)
        self._index.reserve_rows(self._arena.end)
        self._put(rows, at, live)
        self._journal.restore(at, rows.versions, state)
        self._newest_ms, self.version = int(state["newest_ms"][0]), version
        self._hand = hand + appended if hand >= first else 0

    def advance(self, time_ms: int) -> int:
        """Sets the clock to an event time, ms, unless it stands past it already. Returns where it stands."""
        # Event times may go back from step to step. Were rows judged by such a time, one past its own would live on where the
        # hand had not come by, and start anew where it had.
        self._newest_ms = max(self._newest_ms, time_ms)
        return self._newest_ms

    def _put(self, rows: TableRows, at: NDArray[np.int32], fresh: NDArray[np.int64]) -> None:
        size = len(self._index)
        self._index.insert(rows.keys[fresh], at[fresh])
        if len(self._index) != size + fresh.size:
            raise ValueError("a key occurs twice in the rows to load: merge them first, the last one counts")
        arena = self._arena.arrays()
        arena.values[at] = rows.values
        arena.optimizer[at, : rows.optimizer.shape[1]] = rows.optimizer
        arena.optimizer[at, rows.optimizer.shape[1] :] = 0.0
        arena.steps[at] = rows.steps
        arena.counts[at] = rows.counts
        arena.last_seen_ms[at] = rows.last_seen_ms

    # Checks, so that no kernel reads or writes outside the columns

    def _touch(self, rows: NDArray[np.int32]) -> None:
        self._journal.touch(rows, self.version, self._arena.end)

    def _check_rows(self, rows: TableRows) -> None:
        rows.check(self.row_width, self.optimizer_width)
        check_known(self._slots, rows.keys[rows.keys > 0])
        defaults = rows.keys[rows.keys < 0]
        unknown = defaults[self._index.find(defaults) < 0]
        if unknown.size:
            raise ValueError(f"rows to load: key {unknown[0]} is no slot's default row: is it another configuration?")

    def _checked_rows(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        rows = kernel_array(rows, np.int32)
        if rows.size and int(rows.view(np.uint32).max()) >= self._arena.end:
            raise ValueError(f"row {rows.max()} is not in a table of {self._arena.end} rows: look rows up in this table")
        return rows
