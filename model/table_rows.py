"""Whole rows of a table, as snapshots, exports and deltas carry them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from .feature_ids import mix63


@dataclass(frozen=True)
class TableRows:
    """Whole rows by key: what snapshots and exports carry; a slot's default row has a negative key.

    keys int64[R], values float32[R, 1 + dim] (first order weight, then the embedding), optimizer float32[R, K]
    (unused columns zero), steps int32[R] (Adam's, per row), counts int32[R], last_seen_ms int64[R] (whole seconds),
    versions int64[R] (of the row's last touch), numbers int32[R] (which row of its table it is).
    """

    keys: NDArray[np.int64]
    values: NDArray[np.float32]
    optimizer: NDArray[np.float32]
    steps: NDArray[np.int32]
    counts: NDArray[np.int32]
    last_seen_ms: NDArray[np.int64]
    versions: NDArray[np.int64]
    numbers: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def union(cls, tables: Sequence[TableRows]) -> TableRows:
        """Rows of several shards' tables as those of one, numbered anew; of a key that several have, the row seen last."""
        rows = cls(*(np.concatenate([getattr(table, field.name) for table in tables]) for field in fields(cls)))
        order = np.lexsort((rows.versions, rows.last_seen_ms, rows.keys))
        last = np.append(rows.keys[order][1:] != rows.keys[order][:-1], True)
        return rows._taken(np.sort(order[last]))

    def of_shard(self, shard: int, shards: int) -> TableRows:
        """The rows that a table of one of `shards` shards holds: default rows, and ids by their hash; numbered anew.

        Raises:
            ValueError: there is no such shard.
        """
        if not 0 <= shard < shards:
            raise ValueError(f"shard {shard} of {shards}: shards count from 0")
        return self._taken(np.flatnonzero((self.keys < 0) | (mix63(np.abs(self.keys)) % shards == shard)))

    def _taken(self, rows: NDArray[np.int64]) -> TableRows:
        rows = rows[np.argsort(self.keys[rows] > 0, kind="stable")]  # a table's default rows come first
        taken = TableRows(*(getattr(self, field.name)[rows] for field in fields(self)))
        return replace(taken, numbers=np.arange(1, 1 + rows.size, dtype=np.int32))

    def check(self, row_width: int, optimizer_width: int) -> None:
        """Check that these rows fit a table of rows so wide.

        Raises:
            ValueError: they do not.
        """
        # Rows from before the first slot with a larger optimizer was appended lack its state.
        kept = self.optimizer.shape[-1]
        narrow = kept < optimizer_width and kept % row_width == 0
        shapes = (
            ("values", self.values, (row_width,)),
            ("optimizer", self.optimizer, (kept if narrow else optimizer_width,)),
            ("steps", self.steps, ()),
            ("counts", self.counts, ()),
            ("last_seen_ms", self.last_seen_ms, ()),
            ("versions", self.versions, ()),
            ("numbers", self.numbers, ()),
        )
        for name, array, shape in shapes:
            if array.shape != (len(self), *shape):
                raise ValueError(
                    f"rows to load: {name} is {list(array.shape)}, expected {[len(self), *shape]}: is it another configuration?"
                )
        if not self.keys.all():
            raise ValueError("rows to load: key 0 pads and has no row: leave it out")
