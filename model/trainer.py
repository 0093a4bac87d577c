"""The trainer: embedding table and DeepFM, learned step by step.

    dedup ids -> admit -> pool rows into slots -> compiled step -> scatter gradients -> update rows

The table's part is compiled by Numba, the dense part by XLA; pooled embeddings and their gradients pass between them, slice by
slice of the batch, a thread each.
"""

from __future__ import annotations

import itertools
import math
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.config import FeatureConfig
from schemas.files import replace_file

from .deepfm import DeepFM, SliceResult
from .delta import Delta
from .predictor import Predictor
from .slices import Buffers, cut, rung
from .snapshot import (
    FileEntry,
    Increment,
    KeyedPart,
    SnapshotError,
    matrix_column,
    matrix_of,
    merge,
    read_increment,
    seal,
    unseal,
    write_chunks,
    write_increment,
)
from .table import EmbeddingTable
from .table_rows import TableRows
from .threads import run
from .walk import Walk
from .widening import Widening

#: Rows looked at for expiry in a step, per example: the clock hand passes the table in bounded work.
_EXPIRE_PER_EXAMPLE = 4
_TABLE = "table"
_WALK, _CLOSING = "rows", "closing"  # parts of a snapshot, in the order in which they are put over each other
_PARTS = "snapshot.json"  # that names their files, and is written last


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
        finite: whether the loss was finite and all gradients below 2^60; otherwise the dense parameters were left alone.
        non_finite_rows: rows whose gradient was not, and that kept their values.
    """

    loss: float
    logits: np.ndarray
    examples: int
    finite: bool
    non_finite_rows: int


class Trainer:
    """Learns online; every verb is deterministic given the calls before it, on any number of cores.

    Verbs take turns: several threads may call them. A snapshot only takes its turn at its beginning and its end.

    Args:
        config: feature configuration.
        seed: of all initial values.
        capacity: rows the table has room for at first.
        table_bytes: most memory for the table, see `EmbeddingTable`.

    Raises:
        ValueError: `table_bytes` does not hold a single id.
    """

    def __init__(self, config: FeatureConfig, seed: int = 0, capacity: int = 1 << 16, table_bytes: int | None = None) -> None:
        self.config = config
        self.table = EmbeddingTable(config, capacity=capacity, seed=seed, table_bytes=table_bytes)
        self.network = DeepFM(config, seed=seed)
        self.newest_event_ms = -1  # the table's clock, too
        self._lock = threading.RLock()
        self._walks: list[int] = []  # versions that snapshots began at
        self._forgets = any(slot.ttl_s is not None for slot in config.slots)
        self._predictor = Predictor(config, self.network, self.table.lookup_part)
        heads = len(config.heads)
        self._buffers = Buffers(
            first=(config.num_slots,), v=(config.num_slots, config.model.dim), labels=(heads,), mask=(heads,)
        )

    @property
    def version(self) -> int:
        """Steps learned."""
        return self.table.version

    def learn(self, batch: ExampleBatch) -> StepMetrics:
        """One step of one or more examples.

        Raises:
            ValueError: an empty batch, or ids of a slot that the configuration lacks; nothing has changed then.
        """
        if len(batch.ids) == 0:
            raise ValueError("a step without examples: skip it")
        with self._lock:
            return self._learn(batch)

    def _learn(self, batch: ExampleBatch) -> StepMetrics:
        n, newest = len(batch.ids), int(batch.time_ms.max())
        unique, inverse, occurrences = self.table.dedup(batch.ids, batch.first)
        self.table.tick()
        rows, values = self.table.admit(unique, occurrences, newest)
        self.newest_event_ms = max(self.newest_event_ms, newest)
        slices = cut(n)
        learned = int(np.count_nonzero((batch.mask > 0).any(axis=1)))
        gradients = self.network.step if len(slices) == 1 else self.network.gradient

        def slice_of(part: slice) -> SliceResult:
            pooled = self._buffers.take(part.stop - part.start)
            self.table.pool(values, inverse[part], pooled["first"], pooled["v"])
            pooled["labels"][: part.stop - part.start] = batch.labels[part]
            pooled["mask"][: part.stop - part.start] = batch.mask[part]
            return gradients(pooled, max(1, learned))

        results = run(slice_of, slices)
        loss = sum(r.entropy for r in results) / max(1, learned)
        moved = math.isfinite(loss) if len(slices) == 1 else self.network.descend(results)
        parts = [(r.grad_first, r.grad_v, inverse[part]) for r, part in zip(results, slices, strict=True)]
        bad = self.table.update(rows, self.table.scatter(parts, rows))
        self.table.expire(newest, _EXPIRE_PER_EXAMPLE * n)
        logits = np.concatenate([r.logits[: part.stop - part.start] for r, part in zip(results, slices, strict=True)])
        return StepMetrics(loss, logits, n, moved and bad == 0, bad)

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Logits float32[N, H] of ids int64[N, W]; reads only.

        Raises:
            ValueError: ids are of a slot that the configuration lacks.
        """
        with self._lock:
            return self._predictor.predict(ids)

    def delta(self, since: int, shard: int = 0, epoch: int = 0) -> Delta:
        """Parameters touched after version `since`; costs what was touched, not the table's size.

        What was touched since a version that has been trimmed is not known any more: then, as for version 0, the delta
        starts from version 0 and holds everything.
        """
        with self._lock:
            since = since if since >= self.table.trimmed else 0
            rows = self.table.export(self.table.touched_since(since), state=False)
            return Delta(
                shard=shard,
                fingerprint=self.config.fingerprint,
                epoch=epoch,
                from_version=since,
                to_version=self.version,
                newest_event_ms=self.newest_event_ms,
                keys=rows.keys,
                rows=rows.values,
                last_seen_ms=rows.last_seen_ms if self._forgets else np.zeros(0, np.int64),
                removed=self.table.removed_since(since),
                dense=self.network.dense if self.version > since else {},
            )

    def increment(self, since: int) -> Increment:
        """All state that changed after version `since`: rows with optimizer slots, counts and times, filter, dense part.

        Raises:
            ValueError: that version has been trimmed.
        """
        return self._increment(since, since)

    def _increment(self, since: int, removed_since: int) -> Increment:
        with self._lock:
            rows = self.table.export(self.table.touched_since(since))
            removed = self.table.removed_since(removed_since)
            numbers = {
                "numbers": np.array([self.version, self.newest_event_ms], np.int64),
                "fingerprint": np.array([self.config.fingerprint], np.int64),
            }
            whole = {"dense": self.network.state(), "table": self.table.state(), "trainer": numbers}
        # These are copies: nobody has to wait while they are turned into columns.
        return Increment({_TABLE: KeyedPart(_rows_to_table(rows), removed)}, whole)

    def load(self, state: Increment, shard: tuple[int, int] | None = None) -> None:
        """Restore a merged increment into a new trainer, whose configuration may have slots appended since.

        Args:
            state: everything, see `snapshot.merge`.
            shard: (s, S) to take the rows of shard s of S only; None: all.

        Raises:
            SnapshotError: it is of another configuration.
        """
        dense = Widening.of(state, self.config).dense(state.whole["dense"])
        # Hidden layers are no part of the fingerprint: logs do not mind them.
        size = dense["theta"].size
        if size != self.network.layout.size:
            raise SnapshotError(
                f"{size} dense parameters instead of {self.network.layout.size}; use the configuration they were made with"
            )
        version, self.newest_event_ms = (int(x) for x in state.whole["trainer"]["numbers"])
        self.network.load(dense)
        self.table.restore(_table_to_rows(state.keyed[_TABLE].rows), state.whole["table"], version, shard)

    def trim(self, version: int) -> None:
        """No reader will ask for what was touched up to `version` any more."""
        with self._lock:
            self.table.trim(min([version, *self._walks]))

    def snapshot(self, path: str | Path) -> None:
        """All state of one moment, as files in a new folder; another thread may learn meanwhile.

        The table's rows are written chunk by chunk, see `Walk`; learning waits for one at a time to be copied.

        Raises:
            FileExistsError: the folder is there already.
            OSError: the disk refuses; nothing is left of the snapshot then.
        """
        folder = Path(path)
        folder.mkdir(parents=True)
        with self._lock:
            walk = Walk(self.table)
            self._walks.append(walk.since)
        try:
            chunks = map(_rows_to_table, walk)
            first = next(chunks, None)  # a table at its very beginning has none
            walked = [] if first is None else [write_chunks(folder, _WALK, _TABLE, itertools.chain([first], chunks))]
            closing = write_increment(folder, _CLOSING, self._increment(walk.reached, walk.since))
            parts = [[asdict(entry) for entry in part] for part in (walked, closing)]
            replace_file(folder / _PARTS, seal({"parts": parts}), durable=True)
        except BaseException:
            shutil.rmtree(folder)
            raise
        finally:
            self._walks.remove(walk.since)

    def restore(self, path: str | Path, shard: tuple[int, int] | None = None) -> None:
        """What `snapshot` wrote, into a new trainer, whatever its capacity; with `shard` as in `load`.

        Raises:
            SnapshotError: a file is missing, truncated or altered, or of another configuration; one that ended before it
                was written whole lacks its list of files.
        """
        named = Path(path) / _PARTS
        try:
            parts = [[FileEntry(**entry) for entry in part] for part in unseal(named.read_bytes())["parts"]]
        except OSError as error:
            raise SnapshotError(f"{named}: {error.strerror}; give the folder of a snapshot that is whole") from error
        except (ValueError, KeyError, TypeError) as error:
            raise SnapshotError(f"{named}: no list of a snapshot's files ({error}); use another snapshot") from error
        self.load(merge([read_increment(path, part) for part in parts]), shard)

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Compile all that steps of these sizes, and predictions of any, need; nothing is learned."""
        self.table.warm_up()
        self._predictor.warm_up()
        for size in sizes:
            parts = cut(size)
            for rows in {rung(part.stop - part.start) for part in parts}:
                self.network.warm_up(self._buffers.take(rows), several=len(parts) > 1)


def _rows_to_table(rows: TableRows) -> pa.Table:
    return pa.table(
        {
            "key": rows.keys,
            "values": matrix_column(rows.values),
            "optimizer": matrix_column(rows.optimizer),
            "steps": rows.steps,
            "counts": rows.counts,
            "last_seen_ms": rows.last_seen_ms,
            "versions": rows.versions,
            "row": rows.numbers,
        }
    )


def _table_to_rows(table: pa.Table) -> TableRows:
    return TableRows(
        keys=table.column("key").to_numpy(),
        values=matrix_of(table.column("values")),
        optimizer=matrix_of(table.column("optimizer")),
        steps=table.column("steps").to_numpy(),
        counts=table.column("counts").to_numpy(),
        last_seen_ms=table.column("last_seen_ms").to_numpy(),
        versions=table.column("versions").to_numpy(),
        numbers=table.column("row").to_numpy(),
    )
