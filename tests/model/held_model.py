"""What an embedding table held to a number of bytes is to do: which rows had to go it is told, and checks that they might."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.admission import AdmissionSketch
from model.table import EmbeddingTable
from schemas.config import FeatureConfig
from tests.model.table_model import TableModel


def bytes_for(config: FeatureConfig, rows: int) -> int:
    """The `table_bytes` with which a table holds so many ids, or hardly more."""
    sketch, taken = EmbeddingTable(config, capacity=0)._sketch.nbytes, 1 << 20
    a_row = taken / most_ids(EmbeddingTable(config, capacity=0, table_bytes=sketch + taken))
    return sketch + int(a_row * (rows + 2 + len(config.slots)))


def most_ids(table: EmbeddingTable) -> int:
    """Ids that a table can hold; row 0 and the default rows are none."""
    return table._arena.most - 1 - len(table._config.slots)


class HeldModel(TableModel):
    """`TableModel` of a table with room for so many ids.

    A slot may have a time to live or a least number of rows, not both: evictions amid a batch would decide which of its rows
    outlive their time.

    Args:
        room: see `most_ids`; the others as for `TableModel`.

    Attributes:
        evicted: rows so far, without those of a batch that were past their time when it came: these count as expired here.
    """

    def __init__(self, config: FeatureConfig, values: int, seed: int, room: int, sketch: AdmissionSketch | None = None) -> None:
        assert not any(slot.ttl_s is not None and slot.min_rows for slot in config.slots)
        super().__init__(config, values, seed, sketch)
        self._room, self.evicted = room, 0

    def admit(
        self,
        unique: NDArray[np.int64],
        occurrences: NDArray[np.int32],
        time_ms: int,
        version: int,
        there: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """`TableModel.admit`; all that had a row and is not `there` was evicted, or had outlived its time."""
        assert there is not None
        self.clock_ms = max(self.clock_ms, time_ms)
        everywhere = np.arange(self.keys.size)
        batch = np.isin(self.keys, unique)
        outlived = batch & self.past(everywhere)
        gone = self.alive & ~np.isin(self.keys, there) & ~outlived
        assert not (gone & batch).any(), "rows of the batch itself were evicted"
        refused = self.refused
        self.alive[gone] = False
        self.evicted += int(np.count_nonzero(gone))
        entries = super().admit(unique, occurrences, time_ms, version, there)
        self._check_eviction(gone, batch, int(np.count_nonzero(outlived)), self.refused - refused)
        return entries

    def _check_eviction(self, gone: NDArray[np.bool_], batch: NDArray[np.bool_], outlived: int, refused: int) -> None:
        ids = self.keys > 0
        rows, others = self.slot_rows(), self.alive & ids & ~batch
        free = self._room - int(rows.sum())
        assert free >= 0, f"{rows.sum()} rows where there is room for {self._room}"
        if gone.any():
            # A table that is full evicts at most a row more than a 64th of its rows at once, and one at least is used.
            assert free <= self._room // 64 + outlived, f"rows were evicted, and {free} are free"
        if refused:
            assert free <= outlived and not others.any(), f"{refused} ids were refused beside {others.sum()} rows of others"
        of_slot = np.bincount(self.slot[gone], minlength=len(self.slots))
        if ((of_slot > 0) & (rows < self.min_rows)).any():  # only where there is nothing else to take
            left = np.bincount(self.slot[others], minlength=len(self.slots))
            assert (left <= self.min_rows).all(), "rows that a slot keeps at least were evicted beside others"

    def check(self, table: EmbeddingTable, relative: float = 1e-5) -> None:
        """`TableModel.check`, and what the table counted."""
        super().check(table, relative)
        assert table.refused == self.refused
        assert table.expired + table.evicted == self.expired + self.evicted and table.evicted >= self.evicted
