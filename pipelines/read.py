"""How a runner reads the source of both logs: as Beam's unbounded source, or, on Flink, at each of Flink's own impulses.

Beam reads an unbounded source as a splittable DoFn. On Flink what that puts out stays in the task manager until its bundle
ends, and the end of a bundle is a self-checkpoint, of which Beam's Java side before 2.76 keeps 60 KB for ever (Beam #27648):
bundles would have to be short for fresh parameters, and long for a heap that lasts. Flink's impulses have no such price. At
them the source's reader takes what is there, and the mark where the next goes on is a Beam state, of the checkpoint's moment
like all others. Beam's own impulse would not do, nor a timer: its watermark ends at once, and with it the window that state
belongs to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.io.flink.flink_streaming_impulse_source import FlinkStreamingImpulseSource
from apache_beam.io.unbounded_source import ReadFromUnboundedSource
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from .source import LogsReader, LogsSource, shard_key

#: The local runner hands a bundle on only when it ends: short bundles for freshness, and for bounded memory.
_LOCAL = {"max_records_per_bundle": 32, "max_read_time_seconds": 0.5}
_IMPULSE_MS = 100
#: Batches that are read at an impulse: a checkpoint waits until the step behind has taken them all.
_MOST = 8
#: How long impulses are let go after a read. It begins with the first of them, behind whatever the step has kept the runner
#: waiting: those that gathered meanwhile are gone before the next read, and no checkpoint waits behind a queue of them.
_REST_S = 0.1


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


class Rest:
    """Says which impulses to read at: the process's one of a source, as Beam has several instances of a DoFn in turn."""

    def __init__(self) -> None:
        self._until: float | None = 0.0

    def over(self) -> bool:
        """Whether to read at the impulse that has come."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + _REST_S
        return now >= self._until

    def begin(self) -> None:
        """A read has ended."""
        self._until = None


_rests: dict[LogsSource, Rest] = {}
_rests_lock = threading.Lock()


def reset() -> None:
    """Forget what was read in this process, before a new run in it."""
    with _rests_lock:
        _rests.clear()


class ReadFn(beam.DoFn):
    """Reads a source at impulses, from where it was left."""

    MARK = ReadModifyWriteStateSpec("mark", BytesCoder())

    def __init__(self, source: LogsSource) -> None:
        self._source = source

    def process(self, element: tuple[bytes, bytes], mark: Any = beam.DoFn.StateParam(MARK)) -> Iterator[tuple[bytes, bytes]]:
        with _rests_lock:
            rest = _rests.setdefault(self._source, Rest())
        if not rest.over():
            return
        coder, written = self._source.get_checkpoint_mark_coder(), mark.read()
        reader = LogsReader(self._source, coder.decode(written) if written else None, wait_s=0.0)
        try:
            read = 0
            while read < _MOST and reader.advance():
                yield reader.get_current()
                read += 1
            # Where nothing has come yet, too: it names what has been opened for the read that follows.
            if (now := coder.encode(reader.get_checkpoint_mark())) != written:
                mark.write(now)
        finally:
            reader.close()
            rest.begin()
