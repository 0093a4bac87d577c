"""How a runner reads the source of both logs: as Beam's unbounded source, or, on Flink, at each of Flink's own impulses.

Beam reads an unbounded source as a splittable DoFn. On Flink what that puts out stays in the task manager until its bundle
ends, and the end of a bundle is a self-checkpoint, of which Beam's Java side before 2.76 keeps 60 KB for ever (Beam #27648):
bundles would have to be short for fresh parameters, and long for a heap that lasts. Flink's impulses have no such price. At
each the source is read for a moment, and the mark where the next goes on is a Beam state, of the checkpoint's moment like all
others. Beam's own impulse would not do, nor a timer: its watermark ends at once, and with it the window that state belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.io.flink.flink_streaming_impulse_source import FlinkStreamingImpulseSource
from apache_beam.io.unbounded_source import ReadFromUnboundedSource
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from .source import LogsSource, shard_key

#: The local runner hands a bundle on only when it ends: short bundles for freshness, and for bounded memory.
_LOCAL = {"max_records_per_bundle": 32, "max_read_time_seconds": 0.5}
_IMPULSE_MS = 25
#: How long an impulse has the source read: what has been read waits for the end of it, and so does a checkpoint.
_READ_S = 0.2
#: An impulse that comes this soon after a read was made during it, and is one of those that nobody needs any more.
_LATE_S = 0.01


class ReadLogs(beam.PTransform):
    """``(shard key, encoded EventBatch)`` of both logs, by event time.

    Args:
        source: what to read.
        local: whether Beam's local runner reads it, not Flink.
    """

    def __init__(self, source: LogsSource, local: bool) -> None:
        super().__init__()
        self._source, self._local = source, local

    def expand(self, begin: beam.pvalue.PBegin) -> beam.pvalue.PCollection:
        if self._local:
            read = begin | "Read" >> ReadFromUnboundedSource(self._source, poll_interval=0.05, **_LOCAL)
            return read | "Key by shard" >> beam.Map(lambda pair: pair).with_output_types(tuple[bytes, bytes])
        key = shard_key(self._source.shard)
        return (
            begin
            | "Impulses" >> FlinkStreamingImpulseSource().set_interval_ms(_IMPULSE_MS)
            | "Key by shard" >> beam.Map(lambda _: (key, b"")).with_output_types(tuple[bytes, bytes])
            | "Read" >> beam.ParDo(ReadFn(self._source)).with_output_types(tuple[bytes, bytes])
        )


class ReadFn(beam.DoFn):
    """Reads a source for a moment at each element, from where it was left."""

    MARK = ReadModifyWriteStateSpec("mark", BytesCoder())

    def __init__(self, source: LogsSource) -> None:
        self._source, self._read_until = source, 0.0

    def process(self, element: tuple[bytes, bytes], mark: Any = beam.DoFn.StateParam(MARK)) -> Iterator[tuple[bytes, bytes]]:
        started = time.monotonic()
        if started < self._read_until + _LATE_S:
            return
        coder, written = self._source.get_checkpoint_mark_coder(), mark.read()
        reader = self._source.create_reader(None, coder.decode(written) if written else None)
        try:
            while reader.advance():
                yield reader.get_current()
                if time.monotonic() > started + _READ_S:
                    break
            mark.write(coder.encode(reader.get_checkpoint_mark()))
        finally:
            reader.close()
        self._read_until = time.monotonic()
