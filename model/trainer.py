"""The trainer: embedding table and DeepFM, learned step by step.

    dedup ids -> admit -> pool rows into slots -> compiled step -> scatter gradients -> update rows

The table's part is compiled by Numba, the dense part by XLA; what passes between them is one array of pooled embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.config import FeatureConfig

from .deepfm import LADDER, DeepFM, padded
from .delta import Delta
from .snapshot import FileEntry, Increment, KeyedPart, merge, read_increment, write_increment
from .table import EmbeddingTable, TableRows

#: Rows looked at for expiry in a step, per example: the clock hand passes the table in bounded work.
_EXPIRE_PER_EXAMPLE = 4


@dataclass(frozen=True)
class ExampleBatch:
    """Examples of one step.

    Attributes:
        ids: int64[N, W] feature ids, 0 pads.
        labels: float32[N, H].
        mask: float32[N, H], 1 where a head is learned now.
        first: bool[N], whether this row's ids are counted: a row may come back for another head.
        time_ms: int64[N], event time of the request.
    """

    ids: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    first: np.ndarray
    time_ms: np.ndarray


@dataclass(frozen=True)
class StepMetrics:
    """What a step came to.

    Attributes:
        loss: mean over rows of the masked cross-entropy, summed over heads.
        logits: float32[N, H], before the step.
        examples: N.
        finite: whether loss and gradients were finite; otherwise the dense parameters were left alone.
        non_finite_rows: rows whose gradient was not finite and that kept their values.
    """

    loss: float
    logits: np.ndarray
    examples: int
    finite: bool
    non_finite_rows: int


class Trainer:
    """Learns online; every verb is deterministic given the calls before it.

    Args:
        config: feature configuration.
        seed: of all initial values.
        capacity: rows the table has room for at first.
    """

    def __init__(self, config: FeatureConfig, seed: int = 0, capacity: int = 1 << 16) -> None:
        self.config = config
        self.table = EmbeddingTable(config, capacity=capacity, seed=seed)
        self.network = DeepFM(config, seed=seed)
        self.newest_event_ms = -1

    @property
    def version(self) -> int:
        """Steps learned."""
        return self.table.version

    def learn(self, batch: ExampleBatch) -> StepMetrics:
        """One step; at most ``LADDER[-1]`` examples.

        Raises:
            ValueError: for a larger batch, or ids of a slot that the configuration lacks.
        """
        n = len(batch.ids)
        if not 0 < n <= LADDER[-1]:
            raise ValueError(f"a step of {n} examples; the compiled steps take 1 to {LADDER[-1]}")
        newest = int(batch.time_ms.max())
        self.newest_event_ms = max(self.newest_event_ms, newest)
        self.table.tick()
        unique, inverse = self.table.dedup(batch.ids)
        occurrences = np.bincount(inverse[batch.first].ravel(), minlength=unique.size).astype(np.int32)
        rows = self.table.admit(unique, occurrences, newest)
        rung = padded(n)
        embeddings = _pad(self.table.pool(rows, inverse), rung)
        gradient, logits, loss = self.network.step(embeddings, _pad(batch.labels, rung), _pad(batch.mask, rung))
        bad = self.table.update(rows, self.table.scatter(gradient[:n], inverse, rows))
        self.table.expire(newest, _EXPIRE_PER_EXAMPLE * n)
        return StepMetrics(loss, logits[:n], n, bool(np.isfinite(loss)) and bad == 0, bad)

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Logits float32[N, H] of ids int64[N, W]; reads only."""
        parts = [self._predict(ids[at : at + LADDER[-1]]) for at in range(0, len(ids), LADDER[-1])]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.config.heads)), np.float32)

    def _predict(self, ids: np.ndarray) -> np.ndarray:
        unique, inverse = self.table.dedup(ids)
        rows = self.table.find(unique)
        return self.network.predict(_pad(self.table.pool(rows, inverse), padded(len(ids))))[: len(ids)]

    def delta(self, since: int, shard: int = 0, epoch: int = 0) -> Delta:
        """Parameters touched after version ``since``; costs what was touched, not the table's size."""
        rows = self.table.export(self.table.touched_since(since))
        return Delta(
            shard=shard,
            epoch=epoch,
            from_version=since,
            to_version=self.version,
            newest_event_ms=self.newest_event_ms,
            keys=rows.keys,
            rows=rows.values,
            removed=self.table.removed_since(since),
            dense=self.network.dense if self.version > since else {},
        )

    def increment(self, since: int) -> Increment:
        """All state that changed after version ``since``: rows with optimizer slots, counts and times, filter, dense part."""
        rows = self.table.export(self.table.touched_since(since))
        part = KeyedPart(_rows_to_table(rows), self.table.removed_since(since))
        numbers = np.array([self.version, self.newest_event_ms], np.int64)
        whole = {"dense": self.network.state(), "filter": self.table.filter_state(), "trainer": {"numbers": numbers}}
        return Increment({"table": part}, whole)

    def load(self, state: Increment) -> None:
        """Restore a merged increment into a new trainer."""
        self.network.load(state.whole["dense"])
        self.table.load(_table_to_rows(state.keyed["table"].rows), np.zeros(0, np.int64))
        self.table.load_filter(state.whole["filter"])
        version, self.newest_event_ms = (int(x) for x in state.whole["trainer"]["numbers"])
        self.table.restore_version(version)

    def trim(self, version: int) -> None:
        """No reader will ask for what was touched up to ``version`` any more."""
        self.table.trim(version)

    def snapshot(self, path: str | Path) -> list[FileEntry]:
        """All state, as files in a new folder."""
        Path(path).mkdir(parents=True)
        return write_increment(path, "snapshot", self.increment(0))

    def restore(self, path: str | Path, entries: list[FileEntry]) -> None:
        """What :meth:`snapshot` wrote.

        Raises:
            SnapshotError: if a file is missing, truncated or altered.
        """
        self.load(merge([read_increment(path, entries)]))

    def warm_up(self, sizes: tuple[int, ...]) -> None:
        """Compile the steps for these batch sizes, on rows that are thrown away."""
        for size in sizes:
            rung = padded(size)
            self.network.predict(np.zeros((rung, self.config.num_slots, 1 + self.config.model.dim), np.float32))


def _pad(array: np.ndarray, rows: int) -> np.ndarray:
    if len(array) == rows:
        return np.ascontiguousarray(array, np.float32)
    padded_array = np.zeros((rows, *array.shape[1:]), np.float32)
    padded_array[: len(array)] = array
    return padded_array


def _rows_to_table(rows: TableRows) -> pa.Table:
    def matrix(array: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel(), pa.float32()), max(1, array.shape[1]))

    return pa.table(
        {
            "key": rows.keys,
            "values": matrix(rows.values),
            "optimizer": matrix(rows.optimizer),
            "steps": rows.steps,
            "counts": rows.counts,
            "last_seen_ms": rows.last_seen_ms,
        }
    )


def _table_to_rows(table: pa.Table) -> TableRows:
    table = table.combine_chunks()

    def matrix(name: str) -> np.ndarray:
        column = table.column(name)
        width = column.type.list_size
        flat = column.combine_chunks().flatten() if table.num_rows else pa.array([], pa.float32())
        return np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)

    return TableRows(
        keys=table.column("key").to_numpy(),
        values=matrix("values"),
        optimizer=matrix("optimizer"),
        steps=table.column("steps").to_numpy(),
        counts=table.column("counts").to_numpy(),
        last_seen_ms=table.column("last_seen_ms").to_numpy(),
    )
