"""A table copied while it goes on: chunk by chunk between batches, and at the end what has changed meanwhile.

No batch waits for more than a chunk. The chunks are of different moments; the closing increment holds all that was touched
or removed since the walk began, so that together they are the table of the moment at which the walk ended.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .keyed_rows import KeyedRows
from .table_rows import TableRows


class Walk:
    """One walk over a table's rows; the table's next `tick` must come before its next change.

    Args:
        table: to walk over.
        chunk: rows looked at in a step.
    """

    def __init__(self, table: KeyedRows, chunk: int = 1 << 14) -> None:
        if chunk < 1:
            raise ValueError(f"a walk in steps of {chunk} rows: use 1 or more")
        self._table = table
        self._chunk = chunk
        self._at = 1
        #: Version that the walk began at: the table must not be trimmed past it.
        self.since = table.version

    def step(self) -> TableRows | None:
        """The next chunk's rows in use; None when the walk has come to the end."""
        rows = self._table.rows_in_use(self._at, self._at + self._chunk)
        if rows is None:
            return None
        self._at += self._chunk
        return self._table.export(rows)

    def close(self) -> tuple[TableRows, NDArray[np.int64]]:
        """Rows touched and keys removed since the walk began: put over the chunks, they make the table of this moment.

        Raises:
            ValueError: that much has been trimmed.
        """
        if self.since == 0:  # a walk over a table without a version has seen nothing that it could miss
            return self._table.export(self._table.touched_since(0)), np.zeros(0, np.int64)
        return self._table.export(self._table.touched_since(self.since)), self._table.removed_since(self.since)
