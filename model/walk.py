"""A table copied while it goes on: chunk by chunk between batches, and at the end what has changed meanwhile.

No batch waits for more than a chunk. The chunks are of different moments: with all that was touched or removed since the
walk began put over them, they are the table of the moment at which that was taken.
"""

from __future__ import annotations

from collections.abc import Iterator

from .keyed_rows import KeyedRows
from .table_rows import TableRows


class Walk:
    """One walk over a table's rows, in chunks; the table's next `tick` must come before its next change.

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
        # At version 0 a reader has nothing: what closes the walk will then be everything.
        rows = self._table.export_range(self._at, self._at + self._chunk) if self.since > 0 else None
        self._at += self._chunk
        return rows

    def __iter__(self) -> Iterator[TableRows]:
        while (rows := self.step()) is not None:
            yield rows
