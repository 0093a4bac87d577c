"""The collisionless embedding table: every id that is admitted has a row of its own.

An id without a row reads, and trains, its slot's default row. Event time alone ages rows and versions alone order changes,
so that a table is a function of the calls made to it, and goes on from a snapshot as it was, row by row; its clock, the
newest event time it was given, never goes back.

A batch's distinct ids are cut into ranges, a thread each: rows are found, seen, pooled and updated in parallel, since
distinct ids have distinct rows. Only ids that get or lose a row are dealt with one after the other: an insertion may
displace keys anywhere. Results do not depend on the number of threads.

Reference: Liu et al., "Monolith: real time recommendation system with collisionless embedding table", arXiv 2209.07663 §2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.config import FeatureConfig

from .admission import MAX_THRESHOLD
from .dedup import Dedup
from .eviction import evict_rows, expire_rows, oldest_seen, pass_over
from .feature_ids import SLOT_SHIFT, mix63
from .growing_array import kernel_array
from .initial import start_rows
from .journal import wrapped
from .lifecycle import (
    ASKS,
    AT,
    CELL,
    COUNTED,
    CREATED,
    MENTIONED,
    MISSED,
    REFUSED,
    REMOVED,
    ROW,
    WANTS,
    admit_ids,
    read_rows,
    see_ids,
)
from .optimizers import sum_defaults, update_rows
from .pooled_rows import PooledRows, Scratch
from .slot_arrays import check_known
from .threads import ranges, run

_LEAST = 4096  # ids a thread: with fewer it would take longer to wake up than to work
_EVICTED_AT_ONCE = 4096


class EmbeddingTable(PooledRows):
    """Embeddings by feature id, with optimizer state, counts and last-seen times.

    Values that `admit` returns hold until the same thread's next `admit`, as sums do of `scatter`.

    Args:
        config: slots with their admission, times to live, initial values and optimizers, and the dimension.
        capacity: rows to make room for at first.
        seed: of new rows' values.
        table_bytes: most memory to use, see `KeyedRows`. Where it does not hold another row, rows of the oldest tenth go.

    Raises:
        ValueError: an admission that the filter cannot count to, or `table_bytes` that do not hold a single id.
    """

    def __init__(self, config: FeatureConfig, capacity: int = 1 << 16, seed: int = 0, table_bytes: int | None = None) -> None:
        too_high = [s.name for s in config.slot_order if s.admission_mode == "count" and s.admission > MAX_THRESHOLD]
        if too_high:
            raise ValueError(f"slot {too_high[0]!r}: admission is above {MAX_THRESHOLD}: lower it")
        super().__init__(config, capacity, table_bytes)
        self._seed = int(mix63(np.array([seed]))[0])
        self._dedup = Dedup(self._slots.of_number)
        self._values = Scratch(self.row_width)
        self._told_oldest = np.ones(self._defaults, np.bool_)  # slots whose rows RowArrays.oldest tells of, all of them

    def warm_up(self) -> None:
        """Compiles every kernel, or reads it from the cache, by the work of one batch on a table that is thrown away."""
        table = EmbeddingTable(self._config, capacity=1)
        numbers = np.array([slot.slot for slot in self._config.slot_order], np.int64)
        ids = ((numbers << SLOT_SHIFT) | 1)[self._slots.of_column][None]
        unique, inverse, occurrences = table.dedup(ids)
        rows, values = table.admit(unique, occurrences * np.int32(MAX_THRESHOLD), 0)
        first, v = np.zeros((1, numbers.size), np.float32), np.zeros((1, numbers.size, self.dim), np.float32)
        table.pool(values, inverse, first, v)
        table.update(rows, table.scatter([(first[:, 0].copy(), v, inverse)], rows))
        table.lookup(ids, first, v)
        table.load(table.export(table.find(unique)[1:]), unique[1:2])
        table.tick()
        table.touched_since(table.version)
        table.removed_since(table.version)
        table._index.warm_up()
        table._evict(1)
        table.expire(10**15, 1)

    # From ids to rows

    def dedup(
        self, ids: NDArray[np.int64], counted: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
        """The distinct ids of a batch.

        Args:
            ids: int64[N, W], 0 pads.
            counted: bool[N], whose ids count as occurrences; None: those of all.

        Returns:
            Distinct ids int64[U], 0 first, then by appearance; int32[N, W] that leads back to them; and how often each occurs
            in the rows that count, int32[U], 0 for padding.

        Raises:
            ValueError: an id is of a slot that the configuration lacks, or ids and `counted` do not fit.
        """
        if counted is None:
            counted = np.ones(len(ids), np.bool_)
        if ids.ndim != 2 or counted.shape != ids.shape[:1]:
            raise ValueError(f"ids of shape {ids.shape} with {counted.shape} to count: pass int64[N, W] and bool[N]")
        with self._lock:
            return self._dedup(ids, counted)

    def admit(
        self, unique: NDArray[np.int64], occurrences: NDArray[np.int32], time_ms: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows int32[U] of a batch's distinct ids, after those were given one that have occurred often enough, and their
        values float32[U, 1 + dim].

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
        with self._lock:
            self._arena.reserve(unique.size)
            self._index.reserve(unique.size)
            self._journal.reserve(unique.size + self._defaults, 2 * unique.size)  # as many may expire, and be evicted
            values = self._values.take(unique.size)
            self.advance(time_ms)
            rows, fresh = np.empty(unique.size, np.int32), np.empty(unique.size, np.bool_)
            if self._see(unique, occurrences, rows, fresh, values):
                self._admit_missing(unique, occurrences, rows, fresh, values)
            else:
                self._journal.mention(rows[fresh], self.version, self._arena.touched, self._arena.end)
            return rows, values

    def _see(
        self,
        unique: NDArray[np.int64],
        occurrences: NDArray[np.int32],
        rows: NDArray[np.int32],
        fresh: NDArray[np.bool_],
        values: NDArray[np.float32],
    ) -> int:
        index, arena, version = self._index.arrays(), self._arena.arrays(), wrapped(self.version)
        first_value, now_s = self._arena.layout.values, self._now_s

        def seen(part: slice) -> int:
            return see_ids(
                index, arena.floats, arena.ints, first_value, self._slots, self._slot_rows,
                unique[part], occurrences[part], now_s, version, rows[part], fresh[part], values[part],
            )  # fmt: skip

        return sum(run(seen, ranges(unique.size, _LEAST)))

    def _admit_missing(
        self,
        unique: NDArray[np.int64],
        occurrences: NDArray[np.int32],
        rows: NDArray[np.int32],
        fresh: NDArray[np.bool_],
        values: NDArray[np.float32],
    ) -> None:
        removed, created = np.empty(unique.size, np.int64), np.empty(unique.size, np.int32)
        missed = np.empty(unique.size, np.int32)
        mentions = np.empty(unique.size + self._defaults, np.int32)
        progress = np.zeros(WANTS + 1, np.int64)
        progress[ASKS] = 1
        seed = (self._seed + self.version * 0x9E3779B97F4A7C15) & ((1 << 63) - 1)  # other draws for each version
        while True:
            admit_ids(
                self._index.arrays(), self._arena.arrays(), self._slots, self._slot_rows, self._sketch.cells,
                unique, occurrences, self._now_s, wrapped(self.version), seed,
                rows, fresh, removed, created, missed, mentions, progress,
            )  # fmt: skip
            if progress[WANTS] == CELL:
                self._index.relieve()
            elif progress[WANTS] == ROW and not self._evict(unique.size - int(progress[AT])):
                progress[ASKS] = 0
            elif progress[AT] == unique.size:
                break
        self._sketch.age(int(progress[COUNTED]))
        self.expired += int(progress[REMOVED])
        self.refused += int(progress[REFUSED])
        arena, new = self._arena.arrays(), created[: progress[CREATED]]
        run(
            lambda part: start_rows(arena, self._arena.layout, self._slots, rows, new[part], self._seed),
            ranges(new.size, _LEAST),
        )
        read_rows(arena.floats, self._arena.layout.values, rows, missed[: progress[MISSED]], values)
        self._journal.remove(removed[: progress[REMOVED]], self.version)
        self._journal.mention(mentions[: progress[MENTIONED]], self.version, self._arena.touched, self._arena.end)

    # From gradients to rows

    def update(self, rows: NDArray[np.int32], grads: NDArray[np.float32]) -> int:
        """One optimizer step of rows int32[U] by gradients float32[U, 1 + dim], each slot by its own optimizer.

        Gradients of ids that share a default row are summed first; other rows are distinct. Row 0 stays zero.

        Returns:
            Gradients left out because they were not finite, or larger than 2^60; their rows keep their values.
        """
        with self._lock:
            rows = self._checked_rows(rows)
            grads = kernel_array(grads, np.float32)
            if grads.shape != (rows.size, self.row_width):
                raise ValueError(f"gradients of shape {grads.shape} for {rows.size} rows of {self.row_width} weights")
            left_out = self._update(rows, grads, first=1 + self._defaults)
            given, sums = np.zeros(1 + self._defaults, np.bool_), np.zeros((1 + self._defaults, self.row_width), np.float32)
            left_out += int(sum_defaults(rows, grads, given, sums))
            defaults = np.flatnonzero(given).astype(np.int32)
            return left_out + (self._update(defaults, sums[defaults], first=1) if defaults.size else 0)

    def _update(self, rows: NDArray[np.int32], grads: NDArray[np.float32], first: int) -> int:
        arena, layout, version = self._arena.arrays(), self._arena.layout, wrapped(self.version)
        slots, fresh = self._slots, np.empty(rows.size, np.bool_)

        def updated(part: slice) -> tuple[int, int]:
            return update_rows(
                arena, layout, slots.of_number, slots.optimizers, slots.adam_rates, first,
                rows[part], grads[part], version, fresh[part],
            )  # fmt: skip

        results = run(updated, ranges(rows.size, _LEAST))
        if any(touched for _, touched in results):
            self._journal.mention(rows[fresh], self.version, self._arena.touched, self._arena.end)
        return sum(left_out for left_out, _ in results)

    # What goes

    def expire(self, time_ms: int, budget: int) -> int:
        """Moves a clock hand over at most `budget` rows; lets go of those unseen for longer than their time to live.

        Returns:
            Rows let go. Their keys are reported by `removed_since`, their rows used again.
        """
        with self._lock:
            self.advance(time_ms)
            first, end, now_s = 1 + self._defaults, self._arena.end, self._now_s
            arena = self._arena.arrays()
            hand, left = pass_over(arena.due, first, end, self._hands[0], max(0, min(budget, end - first)), now_s)
            self._hands[0] = hand
            if not left:
                return 0
            removed = np.empty(left, np.int64)
            self._hands[0], gone = expire_rows(
                self._index.arrays(), arena, self._slots, self._slot_rows, now_s, left, hand, removed
            )
            self._journal.remove(removed[:gone], self.version)
            self.expired += gone
            return int(gone)

    def _evict(self, wanted: int) -> bool:
        """Frees at most `wanted` rows, the oldest tenth's first; whether it freed any.

        This version's rows stay, and so do the last of each slot, its `min_rows`, unless there are no others.
        """
        wanted = min(wanted, _EVICTED_AT_ONCE, 1 + len(self) // 64)
        removed, arena, freed = np.empty(wanted, np.int64), self._arena.arrays(), 0
        evictable = self._slot_rows > self._slots.min_rows
        if (evictable & ~self._told_oldest).any():
            self._arena.forget_oldest()
            self._told_oldest[:] = True
        # The batch itself, and slots' last rows, may be all of the oldest tenth, or all there is.
        for seen_s, spare in ((oldest_seen(arena, 1 + self._defaults), True), (self._now_s, True), (self._now_s, False)):
            if not freed:
                self._hands[1], freed = evict_rows(
                    self._index.arrays(), arena, self._slots, self._slot_rows,
                    seen_s, wrapped(self.version), self._hands[1], spare, removed,
                )  # fmt: skip
        self._told_oldest &= self._slot_rows > self._slots.min_rows
        self._journal.remove(removed[:freed], self.version)
        self.evicted += freed
        return freed > 0
