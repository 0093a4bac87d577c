"""A table copied while it goes on: chunk by chunk between batches, and at the end what has changed meanwhile.

No batch waits for more than a chunk. After all rows, those follow that were touched meanwhile, then those touched while they
were copied, and so on until few are left. The chunks are of different moments, some rows in several of them: put over each
other in their order, with what was touched since `reached` and removed since `since` on top, they are the table of the moment
at which that was taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .keyed_rows import KeyedRows
from .table_rows import TableRows

_SHRINKS = 0.75  # of the rows of a pass in the next one, at most; otherwise no further pass would leave fewer to the end


class Walk:
    """One walk over a table's rows, in chunks; the table's next `tick` must come before its next change.

    Args:
        table: to walk over.
        chunk: rows looked at in a step; with fewer left to copy it has come to its end.

    Attributes:
        since: version that the walk began at: the table must not be trimmed past it.
        reached: the walk's chunks have all that was touched up to this version and not later.
    """

    def __init__(self, table: KeyedRows, chunk: int = 1 << 14) -> None:
        if chunk < 1:
            raise ValueError(f"a walk in steps of {chunk} rows: use 1 or more")
        self._table = table
        self._chunk = chunk
        self._at = 1
        self._touched: NDArray[np.int32] | None = None
        self.since = self.reached = table.version

    def step(self) -> TableRows | None:
        """The next chunk's rows in use; None when the walk has come to the end."""
        if self.since == 0:  # a reader has nothing: what closes the walk will then be everything
            return None
        if self._touched is None:
            rows = self._table.export_range(self._at, self._at + self._chunk)
            self._at += self._chunk
            if rows is not None:
                return rows
            self._touched = np.empty(0, np.int32)
            self._begin_pass(limit=self._at)
        elif self._at >= self._touched.size:
            self._begin_pass(limit=int(_SHRINKS * self._touched.size))
        chunk = self._touched[self._at : self._at + self._chunk]
        self._at += self._chunk
        return self._table.export_used(chunk) if chunk.size else None

    def _begin_pass(self, limit: int) -> None:
        """Turns to the rows touched since the last pass began, if they are more than a chunk and no more than `limit`."""
        # A batch may be under way, and touch more in this version: those rows are left to the next pass.
        version = self._table.version - 1
        touched = self._table.touched_since(self.reached)
        self._touched, self._at = touched[:0], 0
        if self._chunk < touched.size <= limit:
            self._touched, self.reached = touched, max(self.reached, version)

    def __iter__(self) -> Iterator[TableRows]:
        while (rows := self.step()) is not None:
            yield rows
