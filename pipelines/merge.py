"""Both logs of a shard, merged by event time into batches.

Each partition is a stream in its own order; partitions are merged by the running maximum of their event time, features
before actions at the same millisecond. An event is passed on once no partition can still bring an earlier one, so the
order of a replay is a function of the logs alone, and at most one buffer a partition is held in memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from schemas.config import FeatureConfig
from schemas.log_files import PartitionReader, list_partitions

from .batches import EVENTS, START, EventBatch, Final, Kind, Position, Span
from .decode import RAW_LIMIT, ActionsDecoder, Decoder, FeaturesDecoder, decode_chunk, empty, is_outlier

_READ_RECORDS = 2048
_HISTORY = 5
_FOREVER = np.iinfo(np.int64).max


@dataclass
class Stream:
    """One partition: what has been read, judged and not yet passed on.

    Attributes:
        name: such as ``features/p000``.
        number: its place in the batch's list of partitions; breaks ties of event time.
        ready: rows of :data:`EVENTS` whose ``order_ms`` is final.
        held: rows that need their successors to tell a jump of time from a bad clock.
    """

    name: str
    number: int
    reader: PartitionReader
    decoder: Decoder
    position: Position
    max_skew_ms: int
    ready: pa.RecordBatch = field(default_factory=empty)
    held: pa.RecordBatch = field(default_factory=empty)
    exhausted: bool = False
    idle_since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._read_to = self.position.offset
        self._order = self.position.order_ms
        self._history = np.zeros(0, np.int64)

    @property
    def last_order(self) -> int:
        """The newest ``order_ms`` ready; later ones can only be as large or larger."""
        return int(self.ready.column("order_ms")[-1].as_py()) if self.ready.num_rows else self._order

    def refill(self, ended: bool) -> bool:
        """Read on; with ``ended`` nothing more will ever come. Returns whether anything new was read or judged."""
        chunk = self.reader.read(_READ_RECORDS)
        fresh = decode_chunk(self.decoder, chunk, self.number)
        moved = fresh.num_rows > 0 or chunk.next_offset > self._read_to
        self._read_to = chunk.next_offset
        if moved:
            self.idle_since = time.monotonic()
        self.exhausted = ended and not moved
        if self.held.num_rows or fresh.num_rows:
            before = self.held.num_rows
            self._judge(_concat([self.held, fresh]), final=self.exhausted)
            moved = moved or self.held.num_rows < before
        return moved

    def release(self) -> None:
        """Judge what is held without its successors: the stream has been idle for too long."""
        if self.held.num_rows:
            self._judge(self.held, final=True)

    def take(self, before: int) -> tuple[pa.RecordBatch, Span]:
        """Remove and return the ready rows with ``order_ms < before``."""
        order = self.ready.column("order_ms").to_numpy()
        n = int(np.searchsorted(order, before, side="left"))
        taken, self.ready = self.ready.slice(0, n), self.ready.slice(n)
        first = self.position.offset
        self.position = Position(self._next_offset(), int(order[n - 1]) if n else self.position.order_ms)
        return taken, Span(first, *self.position)

    def _next_offset(self) -> int:
        for rows in (self.ready, self.held):
            if rows.num_rows:
                return int(rows.column("offset")[0].as_py())
        return self._read_to

    def _judge(self, events: pa.RecordBatch, final: bool) -> None:
        times = events.column("time_ms").to_numpy()
        kinds = events.column("kind").to_numpy()
        good = np.flatnonzero(kinds != Kind.FAULT)
        series = np.concatenate([self._history, times[good]])
        outlier = is_outlier(series, self.max_skew_ms)[self._history.size :]
        cut = events.num_rows
        if not final and outlier.any():
            # The last few have too few successors for a verdict: wait for more.
            doubtful = good[outlier & (np.arange(good.size) >= good.size - _HISTORY)]
            if doubtful.size:
                offsets = events.column("offset").to_numpy()
                cut = int(np.searchsorted(offsets, offsets[doubtful[0]], side="left"))
        self.held = events.slice(cut)
        events, kinds, times = events.slice(0, cut), kinds[:cut].copy(), times[:cut]
        bad = np.zeros(cut, bool)
        bad[good[outlier & (good < cut)]] = True
        if bad.any():
            events = self._condemn(events, bad)
        kept = times[(kinds != Kind.FAULT) & ~bad]
        self._history = np.concatenate([self._history, kept])[-_HISTORY:]
        order = np.maximum.accumulate(np.r_[self._order, np.where(bad | (kinds == Kind.FAULT), -1, times)])[1:]
        if cut:
            self._order = int(order[-1])
        events = events.set_column(EVENTS.get_field_index("order_ms"), EVENTS.field("order_ms"), pa.array(order, pa.int64()))
        self.ready = _concat([self.ready, events])

    def _condemn(self, events: pa.RecordBatch, bad: np.ndarray) -> pa.RecordBatch:
        rows = events.to_pylist()
        for i in np.flatnonzero(bad).tolist():
            shown = {k: v for k, v in rows[i].items() if k in ("request_id", "user_id", "item_id", "time_ms", "ids")}
            rows[i] |= {
                "kind": int(Kind.FAULT),
                "reason": f"time {rows[i]['time_ms']} is more than {self.max_skew_ms} ms ahead of its neighbours",
                "raw": str(shown).encode()[:RAW_LIMIT],
                "ids": [],
            }
        return pa.RecordBatch.from_pylist(rows, schema=EVENTS)


class MergedLogs:
    """Both logs' partitions of one shard as event batches.

    Args:
        root: folder of the logs.
        config: feature configuration.
        positions: where each partition goes on; the start for those not named.
        follow: whether the logs still grow.
        batch_rows: rows a batch at the most (a record's rows are never parted).
        max_skew_ms: how far ahead of its neighbours an event's time may be.
        idle_s: with ``follow``, seconds after which a silent partition no longer holds back the others.
        sync_interval_s: seconds between batches marked ``sync``.
    """

    def __init__(
        self,
        root: str,
        config: FeatureConfig,
        actions: Sequence[str],
        positions: Mapping[str, Position],
        *,
        follow: bool = False,
        shard: int = 0,
        batch_rows: int = 4096,
        max_skew_ms: int = 3_600_000,
        idle_s: float = 2.0,
        sync_interval_s: float = 10.0,
    ) -> None:
        decoders: list[Decoder] = [FeaturesDecoder(config), ActionsDecoder(actions)]
        self.streams: list[Stream] = []
        for decoder in decoders:
            for partition in list_partitions(root, decoder.topic):
                name = f"{decoder.topic}/p{partition:03d}"
                position = positions.get(name, START)
                reader = PartitionReader(root, decoder.topic, partition, position.offset)
                self.streams.append(Stream(name, len(self.streams), reader, decoder, position, max_skew_ms))
        self._names = tuple(stream.name for stream in self.streams)
        self._follow, self._shard, self._batch_rows = follow, shard, batch_rows
        self._idle_s, self._sync_interval_s = idle_s, sync_interval_s
        self._sync_due = time.monotonic() + sync_interval_s
        self._queue: list[EventBatch] = []
        self._emitted = dict(positions)
        self._finished = False

    @property
    def positions(self) -> dict[str, Position]:
        """After the last batch handed out."""
        return dict(self._emitted)

    @property
    def finished(self) -> bool:
        """Whether the final batch has been handed out."""
        return self._finished

    def next(self, stop: bool) -> EventBatch | None:
        """The next batch, or None when there is nothing to hand out now.

        Args:
            stop: hand out the final batch now, whatever is left in the logs.
        """
        if self._finished:
            return None
        if stop:
            self._finished = True
            return self._mark(Final.STOP)
        if not self._queue:
            self._queue = self._merge()
        if self._queue:
            batch = self._queue.pop(0)
        elif not self._follow and all(s.exhausted and not s.ready.num_rows for s in self.streams):
            self._finished = True
            return self._mark(Final.END)
        elif time.monotonic() >= self._sync_due:
            batch = self._mark(Final.NO)
        else:
            return None
        self._emitted |= {name: Position(span.next, span.order_ms) for name, span in batch.spans.items()}
        if time.monotonic() >= self._sync_due:
            self._sync_due = time.monotonic() + self._sync_interval_s
            batch = replace(batch, sync=True)
        return batch

    def _mark(self, final: Final) -> EventBatch:
        watermark = min((position.order_ms for position in self._emitted.values()), default=-1)
        return EventBatch(self._shard, self._names, {}, empty(), watermark, final, sync=final is not Final.NO)

    def _merge(self) -> list[EventBatch]:
        limit = self._limit()
        taken, spans = [], {}
        for stream in self.streams:
            rows, span = stream.take(limit)
            taken.append(rows)
            if span.next > span.first:
                spans[stream.name] = span
        events = _concat(taken)
        if not events.num_rows and not spans:
            return []
        order = np.lexsort((events.column("partition").to_numpy(), events.column("order_ms").to_numpy()))
        return self._cut(events.take(pa.array(order)), spans)

    def _limit(self) -> int:
        """Events before this time can be passed on: no partition will bring an earlier one."""
        limit = _FOREVER
        for stream in self.streams:
            # What is ready must reach beyond its first time, or nothing of it can be passed on.
            while not stream.exhausted and (not stream.ready.num_rows or self._flat(stream)):
                if not stream.refill(ended=not self._follow):
                    break
            if stream.exhausted:
                continue
            if self._follow and time.monotonic() - stream.idle_since > self._idle_s:
                stream.release()
                continue
            limit = min(limit, stream.last_order)
        return limit

    @staticmethod
    def _flat(stream: Stream) -> bool:
        return bool(stream.ready.column("order_ms")[0].as_py() == stream.last_order)

    def _cut(self, events: pa.RecordBatch, spans: dict[str, Span]) -> list[EventBatch]:
        """Split merged rows into batches, never within a record, and give each its own spans."""
        partition = events.column("partition").to_numpy()
        offset = events.column("offset").to_numpy()
        order = events.column("order_ms").to_numpy()
        starts = (
            np.flatnonzero(np.r_[True, (np.diff(partition) != 0) | (np.diff(offset) != 0)]) if len(offset) else np.zeros(1, int)
        )
        edges = [0]
        while len(offset) - edges[-1] > self._batch_rows:
            fits = starts[(starts > edges[-1]) & (starts <= edges[-1] + self._batch_rows)]
            beyond = starts[starts > edges[-1]]
            edges.append(int(fits[-1]) if fits.size else int(beyond[0]) if beyond.size else len(offset))
            if edges[-1] == len(offset):
                break
        if edges[-1] != len(offset) or len(edges) == 1:
            edges.append(len(offset))
        batches = []
        at = {name: span.first for name, span in spans.items()}
        for start, end in pairwise(edges):
            last = end == len(offset)
            own = {}
            for number, name in enumerate(self._names):
                if name not in spans:
                    continue
                later = np.flatnonzero(partition[end:] == number)
                reach = spans[name].next if last or not later.size else int(offset[end + later[0]])
                inside = np.flatnonzero(partition[start:end] == number)
                if reach > at[name]:
                    reached = int(order[start + inside[-1]]) if inside.size else spans[name].order_ms
                    own[name] = Span(at[name], reach, reached)
                    at[name] = reach
            watermark = int(order[end - 1]) if end > start else -1
            batches.append(EventBatch(self._shard, self._names, own, events.slice(start, end - start), watermark))
        return batches


def _concat(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    parts = [part for part in parts if part.num_rows]
    if len(parts) < 2:
        return parts[0] if parts else empty()
    return pa.concat_batches(parts)
