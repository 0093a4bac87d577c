"""Batches of both logs, the next ones read, decoded, merged and encoded by a thread while the step learns those before."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from .batches import EventBatch, Position
from .merge import MergedLogs

#: What a merge brings at once is handed out as several batches, the last of which must not have to wait for the next merge.
_MOST = 6


class Taken(NamedTuple):
    """A batch and its encoding, if there was one, and where the logs stand behind it."""

    batch: EventBatch | None
    payload: bytes
    positions: dict[str, Position]
    finished: bool


class ReadAhead:
    """Merged logs, as :class:`MergedLogs` hands them out, in the same order.

    Args:
        logs: closed with this; nobody else's from here on.
    """

    def __init__(self, logs: MergedLogs) -> None:
        self._logs = logs
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: deque[Future[Taken]] = deque()
        self._last = Taken(None, b"", logs.positions, logs.finished)
        self._failure: Exception | None = None

    @property
    def positions(self) -> dict[str, Position]:
        """After the last batch handed out, of all partitions."""
        return self._last.positions

    @property
    def finished(self) -> bool:
        """Whether the final batch has been handed out."""
        return self._last.finished

    def next(self, stop: bool) -> Taken:
        """The next batch, if there is something to hand out now.

        Args:
            stop: hand out the final batch, once those read ahead have been.

        Raises:
            OSError, UserError: what reading them raised.
        """
        while self._ahead:
            self._last = self._ahead.popleft().result()
            if self._last.batch is not None:
                break
        else:  # what there was when it was looked for may be old
            self._last = self._take(stop)
        if self._last.batch is not None and not (stop or self._last.finished):
            while len(self._ahead) < _MOST:
                self._ahead.append(self._thread.submit(self._take, False))
        return self._last

    def _take(self, stop: bool) -> Taken:
        if self._failure is not None:
            raise self._failure  # what it had begun may be lost: nothing is read behind it
        try:
            batch = self._logs.next(stop)
        except Exception as failure:
            self._failure = failure
            raise
        return Taken(batch, b"" if batch is None else batch.encode(), self._logs.positions, self._logs.finished)

    def close(self) -> None:
        """Close the logs, behind what is being read from them."""
        self._thread.shutdown(cancel_futures=True)
        self._logs.close()
