"""The source of both logs: Beam's native unbounded source, handing out one Arrow batch an element.

Beam rebuilds a reader many times a second and keeps several instances of it, so what is open belongs to the process: a
reader borrows the merged logs at its position from a pool, and gives them back at each checkpoint and when it is closed. One
that Beam has put aside holds nothing: on Flink the next bundle is as often another instance's, which goes on from the pool.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from apache_beam.coders import BytesCoder, Coder, PickleCoder, TupleCoder
from apache_beam.io.unbounded_source import CheckpointMark, UnboundedReader, UnboundedSource
from apache_beam.metrics import Metrics
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from schemas.config import FeatureConfig
from schemas.logs import Logs, LogsPlace

from . import monitoring
from .batches import EventBatch, Position
from .failures import noted
from .merge import MergedLogs
from .read_ahead import ReadAhead, Taken

_PoolKey = tuple["LogsSource", tuple[tuple[str, Position], ...]]
_pool: dict[_PoolKey, ReadAhead] = {}
#: Reentrant: a reader that is collected as garbage gives back its logs wherever its thread happens to be.
_pool_lock = threading.RLock()
_stopping = threading.Event()

#: Open logs that wait for their reader; those of a failed attempt are never asked for again, and the oldest go.
_POOL_MOST = 8
#: Once a process in a run without faults: a consumer, where the logs are topics.
_connects = Metrics.counter("source", "consumer_connects")
_WAIT_S = 0.2
_POLL_S = 0.01


def request_stop() -> None:
    """Ask every source of this process to hand out its final batch (SIGTERM)."""
    _stopping.set()


def reset() -> None:
    """Forget an earlier request to stop, and the logs left open, before a new run in the same process."""
    _stopping.clear()
    with _pool_lock:
        opened = list(_pool.values())
        _pool.clear()
    for logs in opened:
        logs.close()


@dataclass(frozen=True)
class LogsMark(CheckpointMark):
    """Positions after the last element handed out; the shard's state holds the same, so nothing is committed here."""

    positions: tuple[tuple[str, Position], ...]
    finished: bool

    def finalize_checkpoint(self) -> None:
        """Nothing to acknowledge: a file log keeps its records."""


@dataclass(frozen=True)
class LogsSource(UnboundedSource):
    """The two logs of one shard.

    Args:
        logs: where they are.
        config: feature configuration.
        actions: action names in the order of their codes.
        positions: where to start when there is no checkpoint: those of the newest manifest.
        follow: whether the logs still grow; otherwise the source ends with them.
    """

    logs: LogsPlace
    config: FeatureConfig
    actions: tuple[str, ...]
    positions: tuple[tuple[str, Position], ...]
    follow: bool
    shard: int
    batch_rows: int
    max_skew_ms: int
    idle_s: float
    sync_interval_s: float

    def split(self, desired_num_splits: int, options: object = None) -> list[UnboundedSource]:
        """One split: its order is the point."""
        return [self]

    def create_reader(self, options: object, checkpoint_mark: LogsMark | None) -> UnboundedReader:
        """A reader that goes on after the mark."""
        return LogsReader(self, checkpoint_mark)

    def get_checkpoint_mark_coder(self) -> Coder:
        return PickleCoder()

    def default_output_coder(self) -> Coder:
        return TupleCoder([BytesCoder(), BytesCoder()])


class LogsReader(UnboundedReader):
    """Hands out ``(shard key, encoded EventBatch)``.

    Args:
        source: what to read.
        mark: where to go on; None: where the source starts.
        wait_s: how long it waits for data before it lets the runner go on with other work.
    """

    def __init__(self, source: LogsSource, mark: LogsMark | None, wait_s: float = _WAIT_S) -> None:
        mark = mark or LogsMark(source.positions, finished=False)
        self._source, self._mark, self._wait_s = source, mark, wait_s
        self._logs: ReadAhead | None = None
        self._taken: Taken | None = None
        self._watermark_ms = -1
        self._finished = mark.finished

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        """The next batch, if it comes in time."""
        with noted():
            try:
                return self._advance()
            except Exception:
                # Some of what was read may be lost with it: who goes on from the mark reads it again.
                logs, self._logs = self._logs, None
                if logs is not None:
                    logs.close()
                raise

    def _advance(self) -> bool:
        if self._logs is None:
            self._finished = self._finished or self._mark.finished
        if self._finished:
            return False
        if self._logs is None:
            self._logs = self._borrow()
        deadline = time.monotonic() + self._wait_s
        while True:
            self._taken = self._logs.next(stop=_stopping.is_set())
            if self._taken.batch is not None:
                self._watermark_ms = max(self._watermark_ms, self._taken.batch.watermark_ms)
                return True
            if self._logs.finished:
                self._finished = True
                return False
            if time.monotonic() >= deadline:
                return False
            _stopping.wait(_POLL_S)

    def get_current(self) -> tuple[bytes, bytes]:
        batch, payload = self.current
        return shard_key(batch.shard), payload

    @property
    def current(self) -> tuple[EventBatch, bytes]:
        """The current batch, and its encoding."""
        assert self._taken is not None
        assert self._taken.batch is not None
        return self._taken.batch, self._taken.payload

    def get_current_timestamp(self) -> Timestamp:
        return self._timestamp()

    def get_watermark(self) -> Timestamp:
        return MAX_TIMESTAMP if self._finished else self._timestamp()

    def get_checkpoint_mark(self) -> LogsMark:
        """Where the next reader goes on, this one or another: what is open is given back for it."""
        self._give_back()
        return self._mark

    def close(self) -> None:
        """Give the open logs back to the process, for the reader that goes on from here."""
        self._give_back()

    def _give_back(self) -> None:
        logs, self._logs = self._logs, None
        if logs is None:
            return
        self._mark = LogsMark(tuple(sorted(logs.positions.items())), logs.finished)
        if logs.finished:
            logs.close()
            return
        with _pool_lock:
            replaced = _pool.pop((self._source, self._mark.positions), None)
            _pool[self._source, self._mark.positions] = logs
            outdated = [_pool.pop(next(iter(_pool))) for _ in range(len(_pool) - _POOL_MOST)]
        # Not under the lock: each waits for what is being read from it.
        for each in (*outdated, *([] if replaced is None else [replaced])):
            each.close()

    def _timestamp(self) -> Timestamp:
        return Timestamp(micros=self._watermark_ms * 1000) if self._watermark_ms >= 0 else MIN_TIMESTAMP

    def _borrow(self) -> ReadAhead:
        with _pool_lock:
            logs = _pool.pop((self._source, self._mark.positions), None)
        if logs is not None:
            return logs
        source = self._source
        opened = source.logs.open(source.follow)
        _connects.inc()
        monitoring.of_process().consumer_connects.inc()
        try:
            return self._ahead(opened)
        except BaseException:
            opened.close()
            raise

    def _ahead(self, opened: Logs) -> ReadAhead:
        source = self._source
        merged = MergedLogs(
            opened,
            source.config,
            source.actions,
            dict(self._mark.positions),
            follow=source.follow,
            shard=source.shard,
            batch_rows=source.batch_rows,
            max_skew_ms=source.max_skew_ms,
            idle_s=source.idle_s,
            sync_interval_s=source.sync_interval_s,
        )
        return ReadAhead(merged)


def shard_key(shard: int) -> bytes:
    """Key of a shard in Beam."""
    return b"shard-%03d" % shard
