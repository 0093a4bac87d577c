"""How the table grows as the model learns, and at what pace: a point every so many examples."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np

#: Points kept at most: a line in a chart shows no more.
_MOST = 1_000
_COLUMNS = ("examples", "event_ms", "table_rows", "table_bytes")


class Sized(Protocol):
    """A table, as far as its size goes."""

    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Growth:
    """Points of (examples learned, newest event time learned, rows of the table, its bytes).

    When there are 1,000, those that a stride of twice as many examples would have taken stay, and it is the stride from
    then on. The points are a function of the logs, but for the bytes: how much of the journal of changes is kept depends
    on when snapshots are written. The pace between two of them is a figure of this process alone: it is not part of the
    state, and points from before a restart have none.

    Args:
        every: examples from one point to the next, as long as there are fewer than 1,000.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._doublings = 0
        self._points: list[tuple[int, int, int, int]] = []
        self._seen: dict[int, tuple[int, float]] = {}  # by point, examples and seconds before it that this process saw
        self._since: tuple[int, float] | None = None  # examples and wall clock at the last point of this process

    def learned(self, before: int, examples: int, event_ms: int, table: Sized) -> None:
        """A step took the count of examples from ``before`` to ``examples``."""
        now = time.monotonic()
        if self._since is None:
            # The first step compiles: the clock starts after it.
            self._since = (examples, now)
        stride = self._every << self._doublings
        if before // stride == examples // stride:
            return
        counted, started = self._since
        if now > started:
            self._seen[len(self._points)] = (examples - counted, now - started)
        self._since = (examples, now)
        self._points.append((examples, event_ms, len(table), table.nbytes))
        if len(self._points) >= _MOST:
            self._thin()

    def figures(self) -> list[dict[str, Any]]:
        """The points by name, with ``examples_per_s`` since the point before, None where this process did not see it."""
        paces = {number: round(examples / seconds, 1) for number, (examples, seconds) in self._seen.items()}
        return [
            dict(zip(_COLUMNS, point, strict=True)) | {"examples_per_s": paces.get(number)}
            for number, point in enumerate(self._points)
        ]

    def state(self) -> dict[str, np.ndarray]:
        """As arrays."""
        points = np.array(self._points, np.int64).reshape(-1, len(_COLUMNS))
        return {"points": points, "doublings": np.array([self._doublings])}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        self._points = [(e, t, r, b) for e, t, r, b in state["points"].tolist()]
        self._doublings = int(state["doublings"][0])
        self._seen, self._since = {}, None

    def _thin(self) -> None:
        """Twice the stride: a point stays if its step went beyond a multiple of it."""
        self._doublings += 1
        stride = self._every << self._doublings
        points, seen = self._points, self._seen
        self._points, self._seen = [], {}
        examples, seconds, before = 0, 0.0, 0
        for number, point in enumerate(points):
            more = seen.get(number, (0, 0.0))
            examples, seconds = examples + more[0], seconds + more[1]
            if before // stride != point[0] // stride:
                if seconds:
                    self._seen[len(self._points)] = (examples, seconds)
                self._points.append(point)
                examples, seconds = 0, 0.0
            before = point[0]
        if self._since is not None:
            # What followed the last point that stayed belongs to the next one.
            self._since = (self._since[0] - examples, self._since[1] - seconds)
