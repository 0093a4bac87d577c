"""How a runner drives the source and the step: as Beam's unbounded source before a DoFn, or, on Flink, both at impulses.

Beam reads an unbounded source as a splittable DoFn. On Flink what that puts out stays in the task manager until its bundle
ends, and the end of a bundle is a self-checkpoint, of which Beam's Java side before 2.76 keeps 60 KB for ever (Beam #27648):
bundles would have to be short for fresh parameters, and long for a heap that lasts. Flink's impulses have no such price. At
them the source's reader takes what is there, the step learns it at once, where it is, and the mark where the next reader goes
on is a Beam state like the step's own: nothing is ever between the two for a checkpoint to wait for, or to keep. Beam's own
impulse would not do, nor a timer: its watermark ends at once, and with it the window that state belongs to.
"""

from __future__ import annotations

import functools
import secrets
import struct
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
from .step_fn import TAGS, BeamState, JoinAndLearnFn

#: The local runner hands a bundle on only when it ends: short bundles for freshness, and for bounded memory.
_LOCAL = {"max_records_per_bundle": 32, "max_read_time_seconds": 0.5}
_IMPULSE_S = 0.1
#: How long batches are read and learned at an impulse: what they put out leaves only then, and a checkpoint waits for it.
_MOST_S = 1.5
#: An impulse that is older than this when there is time for it has gathered.
_FRESH_S = 0.15
_LET_GO_S = 0.2


class JoinAndLearnLogs(beam.PTransform):
    """Both logs to the step's tagged outputs.

    Args:
        source: what to read.
        step: what each batch is applied to, by event time.
        local: whether Beam's local runner reads it, not Flink.
    """

    def __init__(self, source: LogsSource, step: JoinAndLearnFn, local: bool) -> None:
        super().__init__()
        self._source, self._step, self._local = source, step, local

    def expand(self, begin: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        if self._local:
            batches = (
                begin
                | "Read both logs by event time" >> ReadFromUnboundedSource(self._source, poll_interval=0.05, **_LOCAL)
                | "Key by shard" >> beam.Map(lambda pair: pair).with_output_types(tuple[bytes, bytes])
            )
            return batches | "Join and learn" >> beam.ParDo(self._step).with_outputs(*TAGS)
        key = shard_key(self._source.shard)
        return (
            begin
            | "Impulses" >> FlinkStreamingImpulseSource().set_interval_ms(int(1000 * _IMPULSE_S))
            | "Key by shard" >> beam.Map(_stamped, key).with_output_types(tuple[bytes, bytes])
            | "Read both logs by event time, join and learn"
            >> beam.ParDo(ReadAndLearnFn(self._source, self._step)).with_outputs(*TAGS)
        )


@functools.cache
def _process() -> bytes:
    """This process among all, drawn when it first asks: what is drawn at an import, forks share."""
    return secrets.token_bytes(8)


def _stamped(impulse: bytes, key: bytes) -> tuple[bytes, bytes]:
    """An impulse with the clock that it is made by, and its time there."""
    return key, _process() + struct.pack("d", time.monotonic())


class Impulses:
    """Says which impulses to work at: the process's one of a source, as Beam has several instances of a DoFn in turn.

    While one is worked at, others gather. Those are let go, so that no checkpoint waits behind a queue of them.
    """

    def __init__(self) -> None:
        self._ended_s = 0.0
        self._until: float | None = 0.0

    def due(self, stamp: bytes) -> bool:
        """Whether to work at the impulse that has come.

        Args:
            stamp: of when it was made. If another process's clock says that, it tells nothing here: impulses are let go for a
                moment after each one that was worked at.
        """
        now = time.monotonic()
        if stamp.startswith(_process()):
            (made_s,) = struct.unpack("d", stamp.removeprefix(_process()))
            return bool(made_s >= self._ended_s - _FRESH_S)
        if self._until is None:
            self._until = now + _LET_GO_S
        return now >= self._until

    def worked(self) -> None:
        """The one that was due has been worked at."""
        self._ended_s, self._until = time.monotonic(), None


_impulses: dict[LogsSource, Impulses] = {}
_impulses_lock = threading.Lock()


def reset() -> None:
    """Forget what was read in this process, before a new run in it."""
    with _impulses_lock:
        _impulses.clear()


class ReadAndLearnFn(beam.DoFn):
    """Reads a source at impulses, from where it was left, and hands each batch to the step."""

    MARK = ReadModifyWriteStateSpec("mark", BytesCoder())
    VERSION, BASE, INPUTS = JoinAndLearnFn.VERSION, JoinAndLearnFn.BASE, JoinAndLearnFn.INPUTS

    def __init__(self, source: LogsSource, step: JoinAndLearnFn) -> None:
        self._source, self._step = source, step

    def setup(self) -> None:
        self._step.setup()

    def teardown(self) -> None:
        self._step.teardown()

    def process(
        self,
        element: tuple[bytes, bytes],
        mark: Any = beam.DoFn.StateParam(MARK),
        version: Any = beam.DoFn.StateParam(VERSION),
        base: Any = beam.DoFn.StateParam(BASE),
        inputs: Any = beam.DoFn.StateParam(INPUTS),
    ) -> Iterator[Any]:
        with _impulses_lock:
            impulses = _impulses.setdefault(self._source, Impulses())
        if not impulses.due(element[1]):
            return
        began = time.monotonic()
        coder, written = self._source.get_checkpoint_mark_coder(), mark.read()
        reader = LogsReader(self._source, coder.decode(written) if written else None, wait_s=0.0)
        try:
            while reader.advance():
                batch, payload = reader.current
                yield from self._step.apply(batch, payload, BeamState(version, base, inputs))
                # One without events says that there are none now.
                if time.monotonic() >= began + _MOST_S or not len(batch):
                    break
            # Where nothing has come yet, too: it names what has been opened for the read that follows.
            if (now := coder.encode(reader.get_checkpoint_mark())) != written:
                mark.write(now)
        finally:
            reader.close()
            impulses.worked()
