"""Both logs of a shard, merged by event time into batches.

Each partition is a stream in its own order; partitions are merged by the running maximum of their event time, features
before actions at the same millisecond. An event is passed on once no partition can still bring an earlier one, so the
order of a replay is a function of the logs alone, and at most one buffer a partition is held in memory. Where logs still
grow, a partition that has been silent for a while no longer holds back the others, and new partitions are taken in. Silent is
one that has been read to its end and brings no more; one that lags behind what is in it is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from schemas.config import FeatureConfig
from schemas.logs import Logs

from .batches import START, EventBatch, Final, Position, Span, empty_events
from .decode import ActionsDecoder, Decoder, FeaturesDecoder
from .stream import Stream, concat_events

_FOREVER = np.iinfo(np.int64).max


class MergedLogs:
    """Both logs' partitions of one shard as event batches.

    Args:
        logs: open; closed with this.
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
        logs: Logs,
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
        self.streams: list[Stream] = []
        self._logs, self._max_skew_ms = logs, max_skew_ms
        self._decoders: list[Decoder] = [FeaturesDecoder(config), ActionsDecoder(actions)]
        self._follow, self._shard, self._batch_rows = follow, shard, batch_rows
        self._idle_s, self._sync_interval_s = idle_s, sync_interval_s
        self._sync_due = time.monotonic() + sync_interval_s
        self._queue: list[EventBatch] = []
        # A partition that nothing has come from yet holds nothing back.
        self._emitted = {name: position for name, position in positions.items() if position != START}
        self._finished = False
        # What has been read is read on even if its folder is gone: that is a hole in the log, and told as one.
        self._open(frozenset(offsets_of(positions)))

    @property
    def positions(self) -> dict[str, Position]:
        """After the last batch handed out, of all partitions."""
        return dict.fromkeys(self._names, START) | self._emitted

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
            if self._follow:
                self._open()
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
            self._logs.commit(offsets_of(self._emitted))
        return batch

    def close(self) -> None:
        """Close the logs."""
        self._logs.close()

    def _open(self, known: frozenset[tuple[str, int]] = frozenset()) -> None:
        """Streams for the partitions that have none yet."""
        opened = {stream.name for stream in self.streams}
        for decoder in self._decoders:
            numbers = {number for topic, number in known if topic == decoder.topic}
            for number in sorted(numbers.union(self._logs.partitions(decoder.topic, numbers))):
                name = f"{decoder.topic}/p{number:03d}"
                if name not in opened:
                    position = self._emitted.get(name, START)
                    reader = self._logs.reader(decoder.topic, number, position.offset)
                    self.streams.append(Stream(name, len(self.streams), reader, decoder, position, self._max_skew_ms))
        self._names = tuple(stream.name for stream in self.streams)
        # Ties of event time are broken by name, features first, whenever a partition appeared.
        topics = [decoder.topic for decoder in self._decoders]
        by_name = sorted(self._names, key=lambda name: (topics.index(name.split("/")[0]), name))
        self._rank = np.array([by_name.index(name) for name in self._names], np.int64)

    def _mark(self, final: Final) -> EventBatch:
        watermark = min((position.order_ms for position in self._emitted.values()), default=-1)
        # It says where it stands, though it brings nothing: a runner that lost the batches before it is found out.
        here = {n: Span(p.offset, *p) for n, p in self._emitted.items() if n in self._names}
        return EventBatch(self._shard, self._names, here, empty_events(), watermark, final, sync=final is not Final.NO)

    def _merge(self) -> list[EventBatch]:
        limit = self._limit()
        taken, spans = [], {}
        for stream in self.streams:
            rows, span = stream.take(limit)
            taken.append(rows)
            if span.next > span.first:
                spans[stream.name] = span
        events = concat_events(taken)
        if not events.num_rows and not spans:
            return []
        rank = self._rank[events.column("partition").to_numpy()]
        order = np.lexsort((rank, events.column("order_ms").to_numpy()))
        return self._cut(events.take(pa.array(order)), spans)

    def _limit(self) -> int:
        """Events before this time can be passed on: no partition will bring an earlier one."""
        limit = _FOREVER
        for stream in self.streams:
            # What is ready must reach beyond its first time, or nothing of it can be passed on.
            while not stream.exhausted and stream.level:
                if not stream.refill(ended=not self._follow):
                    break
            if stream.exhausted:
                continue
            if self._follow and stream.idle(self._idle_s):
                stream.release()
                continue
            limit = min(limit, stream.last_order)
        return limit

    def _cut(self, events: pa.RecordBatch, spans: dict[str, Span]) -> list[EventBatch]:
        """Split merged rows into batches, never within a record, and give each its own spans."""
        partition = events.column("partition").to_numpy()
        offset = events.column("offset").to_numpy()
        order = events.column("order_ms").to_numpy()
        rows = {name: np.flatnonzero(partition == self._names.index(name)) for name in spans}
        at = {name: self._emitted.get(name, START) for name in spans}
        batches = []
        for start, end in pairwise(self._edges(partition, offset)):
            own = {}
            for name, span in spans.items():
                done = int(np.searchsorted(rows[name], end))
                reach = span.next if done == rows[name].size else int(offset[rows[name][done]])
                if reach > at[name].offset:
                    clock_ms = int(order[rows[name][done - 1]]) if done else at[name].order_ms
                    own[name] = Span(at[name].offset, reach, clock_ms)
                    at[name] = Position(reach, clock_ms)
            watermark = int(order[end - 1]) if end > start else -1
            batches.append(EventBatch(self._shard, self._names, own, events.slice(start, end - start), watermark))
        return batches

    def _edges(self, partition: np.ndarray, offset: np.ndarray) -> list[int]:
        """Where batches begin and end: at the starts of records, at most ``batch_rows`` apart where records allow it."""
        starts = np.flatnonzero(np.diff(partition, prepend=-1) | np.diff(offset, prepend=-1))
        edges = [0]
        while offset.size - edges[-1] > self._batch_rows:
            fits = int(np.searchsorted(starts, edges[-1] + self._batch_rows, side="right")) - 1
            beyond = int(np.searchsorted(starts, edges[-1], side="right"))
            if max(fits, beyond) >= starts.size:
                break
            edges.append(int(starts[max(fits, beyond)]))
        return [*edges, offset.size]


def offsets_of(positions: Mapping[str, Position]) -> dict[tuple[str, int], int]:
    """By topic and number of the partition, how far each has been handed out."""
    return {(name.split("/")[0], int(name.rpartition("/p")[2])): position.offset for name, position in positions.items()}
