"""Whole rows of a table, as snapshots, exports and deltas carry them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
