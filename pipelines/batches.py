"""What crosses Beam: one Arrow record batch of events, in the order in which they are to be applied.

Nothing between steps is per event. A batch holds a few thousand events of one shard and says, by partition, which
stretch of the logs it is (``spans``), how far event time has come (``watermark_ms``), and whether it is the last.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.process import UserError


class Kind(IntEnum):
    """What a row of an event batch is."""

    FEATURES = 0  # one video of one request, with the ids the model was asked with
    ACTION = 1  # what a user did with a video
    FAULT = 2  # what could not be read: bound for the dead letters


class Final(IntEnum):
    """Whether a batch is the shard's last, and why."""

    NO = 0
    STOP = 1  # the process was asked to stop: windows stay open
    END = 2  # the logs have ended: windows close


class Span(NamedTuple):
    """A stretch of one partition's log: ``[first, next)`` in offsets; ``order_ms`` is its event time's running maximum."""

    first: int
    next: int
    order_ms: int


class Position(NamedTuple):
    """How far a partition has been applied: the next record's offset, and event time's running maximum before it."""

    offset: int
    order_ms: int


START = Position(0, -1)


#: ``key`` is a 62-bit hash of request and item id; ``action`` indexes the configuration's actions (-1: no head uses it);
#: ``order_ms`` is the partition's running maximum of event time, by which partitions are merged.
EVENTS = pa.schema(
    [
        ("kind", pa.int8()),
        ("partition", pa.int16()),
        ("offset", pa.int64()),
        ("time_ms", pa.int64()),
        ("order_ms", pa.int64()),
        ("key", pa.int64()),
        ("action", pa.int8()),
        ("request_id", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("value", pa.float64()),
        ("ids", pa.list_(pa.int64())),
        ("reason", pa.string()),
        ("raw", pa.binary()),
    ]
)


#: A third of the bytes, for a runner's state and its checkpoints, in no more time than it takes to copy them all.
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)


@dataclass(frozen=True)
class EventBatch:
    """Events of one shard, in the order in which they are to be applied.

    Attributes:
        shard: number of the shard.
        partitions: names of the log partitions, such as ``features/p000``; ``events.partition`` indexes them.
        spans: by partition name, the stretch of its log that this batch covers.
        events: rows of :data:`EVENTS`, ordered by ``order_ms``.
        watermark_ms: no event with a smaller ``order_ms`` is still to come.
        final: whether this is the shard's last batch.
        sync: whether a parameter delta is cut after this batch.
    """

    shard: int
    partitions: tuple[str, ...]
    spans: dict[str, Span]
    events: pa.RecordBatch
    watermark_ms: int
    final: Final = Final.NO
    sync: bool = False

    def __len__(self) -> int:
        return self.events.num_rows

    def column(self, name: str) -> np.ndarray:
        """A fixed-width column as a NumPy array, without a copy."""
        return self.events.column(name).to_numpy(zero_copy_only=True)

    def ids(self, width: int) -> np.ndarray:
        """Feature ids of the FEATURES rows alone, in order: int64[rows, width], without a copy.

        Raises:
            UserError: if the batch was packed for another width: one that a runner has kept since before slots were appended.
        """
        values = self.events.column("ids").flatten().to_numpy(zero_copy_only=True)
        rows = np.count_nonzero(self.column("kind") == Kind.FEATURES)
        if values.size != width * rows:
            raise UserError(
                f"a batch of shard {self.shard} holds {values.size} feature ids, not {rows} rows of {width}: it is of another "
                "feature configuration; start anew with the same --state_dir, without the runner's savepoint"
            )
        return values.reshape(-1, width)

    def keep(self, mask: np.ndarray) -> EventBatch:
        """The same batch with only the events where ``mask`` (bool[N]) holds."""
        return replace(self, events=self.events.filter(pa.array(mask)))

    def as_faults(self, reason: str) -> EventBatch:
        """The same stretch of the logs with each record as one that cannot be used, for this reason unless it had its own."""
        places = np.stack([self.column("partition").astype(np.int64), self.column("offset")], axis=1)
        first = np.sort(np.unique(places, axis=0, return_index=True)[1])  # a request has a row for each of its videos
        rows = self.events.take(pa.array(first))
        own = pa.array(rows.column("kind").to_numpy() == Kind.FAULT)
        n = rows.num_rows
        replaced = {
            "kind": pa.array(np.full(n, Kind.FAULT, np.int8)),
            "key": pa.array(np.zeros(n, np.int64)),
            "action": pa.array(np.full(n, -1, np.int8)),
            "ids": pa.nulls(n, EVENTS.field("ids").type),
            "reason": pc.if_else(own, rows.column("reason"), pa.scalar(reason)),
        }
        columns = [replaced.get(name, rows.column(name)) for name in EVENTS.names]
        return replace(self, events=pa.RecordBatch.from_arrays(columns, schema=EVENTS))

    def encode(self) -> bytes:
        """One Arrow IPC stream, compressed; the header travels as metadata of its schema."""
        header = {
            "shard": self.shard,
            "partitions": self.partitions,
            "spans": self.spans,
            "watermark_ms": self.watermark_ms,
            "final": int(self.final),
            "sync": self.sync,
        }
        batch = self.events.replace_schema_metadata({b"freshet": json.dumps(header).encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema, options=_COMPRESSED) as writer:
            writer.write_batch(batch)
        return sink.getvalue().to_pybytes()

    @classmethod
    def decode(cls, data: bytes) -> EventBatch:
        """The inverse of :meth:`encode`."""
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            header = json.loads(reader.schema.metadata[b"freshet"])
            events = reader.read_next_batch()
        return cls(
            shard=header["shard"],
            partitions=tuple(header["partitions"]),
            spans={name: Span(*span) for name, span in header["spans"].items()},
            events=events,
            watermark_ms=header["watermark_ms"],
            final=Final(header["final"]),
            sync=header["sync"],
        )


def empty_events() -> pa.RecordBatch:
    """A record batch of :data:`EVENTS` without rows."""
    return pa.RecordBatch.from_pylist([], schema=EVENTS)
