"""One partition of a log: what has been read, judged and decoded, and not yet passed on.

The clock of a partition is the running maximum of its records' event time. A record that would move it by more than
``max_skew_ms`` is believed only if those behind it are as late: a real gap in a stream is followed by times just as late,
one bad clock is not. The verdict thus rests on the clock and on the log alone, and is the same wherever reading began.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from schemas.log_files import Chunk
from schemas.logs import Reader
from schemas.records import Records

from .batches import EVENTS, Position, Span, empty_events
from .decode import MAX_TIME_MS, Decoder, decode_chunk

_READ_RECORDS = 2048
#: Records behind a jump of time that are asked whether it is real, by their median: two of them may be wrong, too.
_WITNESSES = 5
#: Who has not looked for longer than this cannot say that a log was silent meanwhile.
_UNSEEN_S = 0.5


def judge_times(times: np.ndarray, clock_ms: int, max_skew_ms: int, witnesses: int = _WITNESSES) -> tuple[int, np.ndarray]:
    """Which records are more than ``max_skew_ms`` ahead of their neighbours.

    Args:
        times: int64[N], in the order of the log.
        clock_ms: running maximum of the times before them; -1 at the beginning of the log.
        max_skew_ms: how far a record may be ahead.
        witnesses: how many records behind a jump must be there for a verdict (0: there will be no more).

    Returns:
        How many records have a verdict, and bool[N], which of them are too far ahead.
    """
    ahead = np.zeros(times.size, bool)
    at = 0
    while at < times.size:
        # The clock before each record, if none of them were wrong.
        before = np.maximum.accumulate(np.concatenate([[clock_ms], times[at:-1]]))
        jumps = np.flatnonzero(times[at:] - before > max_skew_ms)
        if not jumps.size:
            break
        clock_ms, at = int(before[jumps[0]]), at + int(jumps[0])
        behind = times[at + 1 : at + 1 + _WITNESSES]
        if behind.size < witnesses and (clock_ms >= 0 or witnesses > 1):
            return at, ahead
        # Without anything to compare it with, the first record of a log is believed.
        ahead[at] = times[at] - np.median(behind) > max_skew_ms if behind.size else clock_ms >= 0
        clock_ms = clock_ms if ahead[at] else int(times[at])
        at += 1
    return times.size, ahead


@dataclass
class Stream:
    """One partition, read as far as it is needed.

    Attributes:
        name: such as ``features/p000``.
        number: its index in the batch's list of partitions.
        reader, decoder: where its records come from, and what makes events of them.
        position: how far it has been passed on.
        max_skew_ms: how far ahead of its neighbours a record may be.
        ready: rows of :data:`EVENTS` whose ``order_ms`` is final.
        exhausted: whether the log has ended and all of it is ready.
    """

    name: str
    number: int
    reader: Reader
    decoder: Decoder
    position: Position
    max_skew_ms: int
    ready: pa.RecordBatch = field(default_factory=empty_events)
    exhausted: bool = False

    def __post_init__(self) -> None:
        #: Seconds by `time.monotonic`: since when each look has found nothing, and that of the last look.
        self._silent_since: float | None = None
        self._looked_at = 0.0
        self._read_to = self.position.offset
        self._clock_ms = self.position.order_ms
        #: Read, but its records wait for those behind them.
        self._held = Chunk(Records.of(self.decoder.topic), np.zeros(0, np.int64), self._read_to)

    @property
    def last_order(self) -> int:
        """The newest ``order_ms`` ready; later ones can only be as large or larger."""
        return int(self.ready.column("order_ms")[-1].as_py()) if self.ready.num_rows else self._clock_ms

    @property
    def level(self) -> bool:
        """Whether nothing that is ready can be passed on yet: more may come of the same time."""
        return not self.ready.num_rows or self.ready.column("order_ms")[0].as_py() == self.last_order

    def refill(self, ended: bool) -> bool:
        """Read on; with ``ended`` nothing more will ever come. Returns whether anything new was read or judged."""
        chunk = self.reader.read(_READ_RECORDS)
        moved = bool(len(chunk.records) or chunk.faults) or chunk.next_offset > self._read_to
        self._read_to = chunk.next_offset
        self._look(moved or not self.reader.at_end)
        self.exhausted = ended and not moved
        return self._judge(_joined(self._held, chunk), 0 if self.exhausted else _WITNESSES) or moved

    def _look(self, found: bool) -> None:
        now = time.monotonic()
        if found:
            self._silent_since = None
        elif self._silent_since is None or now - self._looked_at > _UNSEEN_S:
            self._silent_since = now
        self._looked_at = now

    def idle(self, seconds: float) -> bool:
        """Whether there is nothing to pass on, and has been nothing to read for so long.

        A log that has more is not silent, however long that takes to come; nor is one that nobody has asked.
        """
        return self.level and self._silent_since is not None and time.monotonic() - self._silent_since >= seconds

    def release(self) -> None:
        """Judge what is held by the witnesses there are: the stream has been idle for too long."""
        self._judge(self._held, 1)

    def take(self, before: int) -> tuple[pa.RecordBatch, Span]:
        """Remove and return the ready rows with ``order_ms < before``."""
        order = self.ready.column("order_ms").to_numpy()
        n = int(np.searchsorted(order, before, side="left"))
        taken, self.ready = self.ready.slice(0, n), self.ready.slice(n)
        first = self.position.offset
        self.position = Position(self._next_offset(), int(order[n - 1]) if n else self.position.order_ms)
        return taken, Span(first, *self.position)

    def _next_offset(self) -> int:
        if self.ready.num_rows:
            return int(self.ready.column("offset")[0].as_py())
        waiting = [*self._held.offsets[:1].tolist(), *(fault.offset for fault in self._held.faults[:1])]
        return min(waiting, default=self._read_to)

    def _judge(self, chunk: Chunk, witnesses: int) -> bool:
        """Make events of the records that have a verdict and hold the others; whether there were any of the former."""
        times = chunk.records.columns.longs("time_ms")
        possible = np.flatnonzero((times >= 0) & (times <= MAX_TIME_MS))
        verdicts, ahead = judge_times(times[possible], self._clock_ms, self.max_skew_ms, witnesses)
        cut = times.size if verdicts == possible.size else int(possible[verdicts])
        judged, self._held = _split(chunk, cut)
        if not (len(judged.records) or judged.faults):
            return False
        reasons: list[str | None] = [None] * cut
        for i in possible[:verdicts][ahead[:verdicts]].tolist():
            reasons[i] = f"time {times[i]} is more than {self.max_skew_ms / 1000:g} s ahead of its neighbours"
        believed = np.full(cut, -1, np.int64)
        good = possible[:verdicts][~ahead[:verdicts]]
        believed[good] = times[good]
        clock = np.maximum.accumulate(np.concatenate([[self._clock_ms], believed]))
        events = decode_chunk(self.decoder, judged, self.number, reasons)
        record = np.searchsorted(judged.offsets, events.column("offset").to_numpy(), side="right")
        order = pa.array(clock[record], pa.int64())
        events = events.set_column(EVENTS.get_field_index("order_ms"), EVENTS.field("order_ms"), order)
        self._clock_ms = int(clock[-1])
        self.ready = concat_events([self.ready, events])
        return True


def concat_events(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Batches of :data:`EVENTS` as one."""
    parts = [part for part in parts if part.num_rows]
    if len(parts) < 2:
        return parts[0] if parts else empty_events()
    return pa.concat_batches(parts)


def _joined(first: Chunk, then: Chunk) -> Chunk:
    return Chunk(
        Records.joined([first.records, then.records]),
        np.concatenate([first.offsets, then.offsets]),
        then.next_offset,
        first.faults + then.faults,
    )


def _split(chunk: Chunk, cut: int) -> tuple[Chunk, Chunk]:
    """The first ``cut`` records with the faults among them, and the rest."""
    edge = int(chunk.offsets[cut]) if cut < len(chunk.records) else chunk.next_offset
    before = [fault for fault in chunk.faults if cut == len(chunk.records) or fault.offset < edge]
    return (
        Chunk(chunk.records[:cut], chunk.offsets[:cut], edge, before),
        Chunk(chunk.records[cut:], chunk.offsets[cut:], chunk.next_offset, chunk.faults[len(before) :]),
    )
