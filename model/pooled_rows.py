"""Rows of a table as the slots of examples: found, pooled, and gradients brought back to the distinct ids."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.config import FeatureConfig

from .growing_array import kernel_array
from .keyed_rows import KeyedRows
from .lookup import find_ids, lookup_ids
from .pooling import check_inverse, check_pooled, even_shares, pool_rows, read_only, scatter_gradients
from .slot_arrays import unknown_slot
from .threads import ranges, run

_LEAST = 4096  # ids a thread: with fewer it would take longer to wake up than to work
_LEAST_SUMMED = 4096  # a thread that adds up gradients passes over the whole batch

#: A part of a batch: gradient of the sum of first-order weights, gradient of the embeddings, inverse.
GradientPart = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]


class Scratch(threading.local):
    """Rows float32[R, width] to write to, which each thread has for its own and keeps: fresh memory for each batch would cost
    more in page faults than what is put there."""

    def __init__(self, width: int) -> None:
        self._rows = np.empty((0, width), np.float32)

    def take(self, rows: int) -> NDArray[np.float32]:
        """So many rows, which hold anything, until this thread's next call."""
        if len(self._rows) < rows:
            self._rows = np.empty((2 * rows, self._rows.shape[1]), np.float32)
        return self._rows[:rows]


class PooledRows(KeyedRows):
    """Keyed rows that are read, and that gradients come to, by batches of examples.

    What `scatter` returns holds until the same thread's next `scatter`.

    Args: as `KeyedRows`.
    """

    def __init__(self, config: FeatureConfig, capacity: int, table_bytes: int | None) -> None:
        super().__init__(config, capacity, table_bytes)
        self._gradients = Scratch(self.row_width)

    def find(self, unique: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows int32[U] of ids int64[U]: an id's own, or its slot's default row; row 0 for id 0. Changes nothing.

        Raises:
            ValueError: an id is of a slot that the configuration lacks.
        """
        unique = kernel_array(unique, np.int64)
        rows = np.empty(unique.size, np.int32)
        with self._lock:
            index, ints, now_s = self._index.arrays(), self._arena.arrays().ints, self._now_s

            def found(part: slice) -> int:
                return int(find_ids(index, ints, self._slots, self._slot_rows, unique[part], now_s, rows[part]))

            parts = ranges(unique.size, _LEAST)
            for part, unknown in zip(parts, run(found, parts), strict=True):
                if unknown >= 0:
                    raise unknown_slot(int(unique[part][unknown]))
        return rows

    def lookup(self, ids: NDArray[np.int64], first_out: NDArray[np.float32], v_out: NDArray[np.float32]) -> None:
        """Pools what ids int64[N, W] read, as `pool` does with what `find` found, in one pass. Changes nothing.

        Args:
            ids: int64[N, W], 0 pads.
            first_out: float32[>= N, S] for first-order weights; rows from N on are left alone.
            v_out: float32[>= N, S, dim] for embeddings, likewise.

        Raises:
            ValueError: an id is of a slot that the configuration lacks.
        """
        with self._lock:
            self.lookup_part(ids, first_out, v_out)

    def lookup_part(self, ids: NDArray[np.int64], first_out: NDArray[np.float32], v_out: NDArray[np.float32]) -> None:
        """`lookup` for several threads at once, of a caller that lets nobody change the table meanwhile."""
        ids = kernel_array(ids, np.int64)
        width = self._slots.of_column.size
        if ids.ndim != 2 or ids.shape[1] != width:
            raise ValueError(f"ids of shape {ids.shape} for {width} id columns: pass int64[N, {width}]")
        self._check_pooled(len(ids), first_out, v_out)
        index, arena, now_s = self._index.arrays(), self._arena.arrays(), self._now_s
        values = self._arena.layout.values

        def looked_up(part: slice) -> int:
            return int(
                lookup_ids(
                    index, arena.floats, arena.ints, values, self._slots, self._slot_rows,
                    ids[part], now_s, first_out[part], v_out[part],
                )
            )  # fmt: skip

        parts = ranges(len(ids), max(1, _LEAST // width))
        for part, unknown in zip(parts, run(looked_up, parts), strict=True):
            if unknown >= 0:
                raise unknown_slot(int(ids[part].flat[unknown]))

    def pool(
        self,
        values: NDArray[np.float32],
        inverse: NDArray[np.int32],
        first_out: NDArray[np.float32],
        v_out: NDArray[np.float32],
    ) -> None:
        """Pools a batch by slot, summed, or averaged over the ids present; a slot without ids is 0.

        Several threads may pool parts of a batch at once.

        Args:
            values: float32[U, 1 + dim] of the distinct ids; zeros for padding.
            inverse: int32[N, W] from `dedup`.
            first_out: float32[>= N, S] for first-order weights; rows from N on are left alone.
            v_out: float32[>= N, S, dim] for embeddings, likewise.
        """
        values = kernel_array(values, np.float32)
        if values.ndim != 2 or values.shape[1] != self.row_width:
            raise ValueError(f"values of shape {values.shape}: pass what admit returned, float32[U, {self.row_width}]")
        inverse = check_inverse(inverse, len(values), self._slots.of_column.size)
        self._check_pooled(len(inverse), first_out, v_out)
        of_column, mean = self._slots.of_column, self._slots.mean
        run(
            lambda part: pool_rows(values, inverse[part], of_column, mean, first_out[part], v_out[part]),
            ranges(len(inverse), max(1, _LEAST // of_column.size)),
        )

    def _check_pooled(self, rows: int, first_out: NDArray[np.float32], v_out: NDArray[np.float32]) -> None:
        check_pooled("first_out", first_out, rows, (self._defaults,))
        check_pooled("v_out", v_out, rows, (self._defaults, self.dim))

    def scatter(self, parts: Sequence[GradientPart], rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """The transpose of `pool`: gradients of pooled slots summed by distinct id, float32[U, 1 + dim].

        Args:
            parts: one or more parts of a batch, summed in this order. Each is (float32[>= N] gradient of the sum of a
                row's first-order weights, float32[>= N, S, dim] gradient of its embeddings, int32[N, W] from `dedup`).
            rows: int32[U] rows of the distinct ids.
        """
        rows = self._checked_rows(rows)
        out = self._gradients.take(rows.size)
        checked: list[GradientPart] = []
        for grad_first, grad_v, inverse in parts:
            inverse = check_inverse(inverse, rows.size, self._slots.of_column.size)
            check_pooled("grad_first", grad_first, len(inverse), ())
            check_pooled("grad_v", grad_v, len(inverse), (self._defaults, self.dim))
            checked.append((read_only(grad_first), read_only(grad_v), inverse))
        parts_of = [inverse for _, _, inverse in checked]
        threads = len(ranges(sum(inverse.size for inverse in parts_of), _LEAST_SUMMED))
        shares = even_shares(parts_of, rows.size, threads) if threads > 1 else [slice(0, rows.size)]

        def summed(share: slice) -> None:
            begun = share.start
            for grad_first, grad_v, inverse in checked:
                begun = scatter_gradients(
                    grad_first, grad_v, inverse, self._slots.of_column, self._slots.mean, share.start, share.stop, begun, out
                )
            out[begun : share.stop] = 0.0

        run(summed, shares)
        return out
