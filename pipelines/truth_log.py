"""The simulated world's truth, kept aside from the logs: files to compare with, and the best AUC there is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.evaluation import Progressive
from pipelines.datasets.requests import Truth

_ROWS_A_FILE = 1_000_000
_FILE = "part-{:05d}.parquet"


class TruthWriter:
    """Writes `folder`/part-*.parquet: a row an impression of request_id, item_id, time_ms and p_HEAD by head.

    A file has its final name only when it is whole.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = 0
        self._rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._oracle: dict[str, Progressive] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, truth: Truth) -> None:
        columns: dict[str, object] = {
            "request_id": truth.request_id,
            "item_id": truth.item_id,
            "time_ms": truth.time_ms,
        }
        columns |= {f"p_{head}": truth.probability[:, i] for i, head in enumerate(truth.heads)}
        table = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._unfinished, table.schema)
        self._writer.write_table(table)
        self._rows += table.num_rows
        if self._rows >= _ROWS_A_FILE:
            self._finish()
        chance = np.clip(truth.probability.astype(np.float64), 1e-9, 1 - 1e-9)
        logits, labels = np.log(chance / (1 - chance)), truth.happened.astype(np.float32)
        for i, head in enumerate(truth.heads):
            self._oracle.setdefault(head, Progressive()).update(logits[:, i], labels[:, i])

    @property
    def oracle_auc(self) -> dict[str, float]:
        """AUC by head of who knows the true probability; NaN where only one class was met."""
        return {head: measure.auc for head, measure in self._oracle.items()}

    def close(self) -> None:
        if self._writer is not None:
            self._finish()

    @property
    def _unfinished(self) -> Path:
        return self._folder / f".{_FILE.format(self._files)}.tmp"

    def _finish(self) -> None:
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        self._unfinished.rename(self._folder / _FILE.format(self._files))
        self._files += 1
        self._rows = 0
