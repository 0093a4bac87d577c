"""How the table grows as the model learns, and at what pace: a point every so many examples."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np

_COLUMNS = ("examples", "event_ms", "table_rows", "table_bytes")


class Sized(Protocol):
    """A table, as far as its size goes."""

    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Growth:
    """Points of (examples learned, newest event time learned, rows of the table, its bytes).

    The points are a function of the logs, but for the bytes: how much of the journal of changes is kept depends on when
    snapshots are written. The pace between two of them is a figure of this process alone: it is not part of the state,
    and points from before a restart have none.

    Args:
        every: examples from one point to the next.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._points: list[tuple[int, int, int, int]] = []
        self._pace: dict[int, float] = {}
        self._since: tuple[int, float] | None = None  # examples and wall clock at the last point of this process

    def learned(self, before: int, examples: int, event_ms: int, table: Sized) -> None:
        """A step took the count of examples from ``before`` to ``examples``."""
        now = time.monotonic()
        if self._since is None:
            # The first step compiles: the clock starts after it.
            self._since = (examples, now)
        if before // self._every == examples // self._every:
            return
        counted, started = self._since
        if now > started:
            self._pace[len(self._points)] = (examples - counted) / (now - started)
        self._since = (examples, now)
        self._points.append((examples, event_ms, len(table), table.nbytes))

    def figures(self) -> list[dict[str, Any]]:
        """The points by name, with ``examples_per_s`` since the point before, None where this process did not see it."""
        return [
            dict(zip(_COLUMNS, point, strict=True))
            | {"examples_per_s": round(self._pace[number], 1) if number in self._pace else None}
            for number, point in enumerate(self._points)
        ]

    def state(self) -> dict[str, np.ndarray]:
        """As arrays."""
        return {"points": np.array(self._points, np.int64).reshape(-1, len(_COLUMNS))}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        self._points = [(e, t, r, b) for e, t, r, b in state["points"].tolist()]
        self._pace, self._since = {}, None
