"""Figures window by window: how well each arm predicted, over time, in bounded memory however long the stream."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.evaluation import Progressive

#: Windows kept at most, an even number: a line in a chart shows no more.
_MOST = 1_000
_BY_ARM = ("auc", "logloss", "calibration")  # names of Progressive, too


class Windows:
    """Windows of equal counts of examples, oldest first.

    When there are 1,000, neighbours become one and windows are twice as wide from then on. ``end_ms`` of such a pair is
    the later one's, ``examples`` the sum, and the other figures are means weighted by examples, of those that are not None:
    the histograms of a window are not kept beyond it. Wider windows that come after are exact over all they hold. The cut
    is a function of the logs alone.

    Args:
        arms: models that scored each example; the first one is the one that learns.
        window: examples a window, as long as there are fewer than 1,000.
    """

    def __init__(self, arms: Sequence[str], window: int) -> None:
        self._arms = tuple(arms)
        self._window = window
        self._doublings = 0
        self._closed: list[dict[str, Any]] = []
        self._last_auc: float | None = None
        self._newest_ms = -1
        self._current = self._empty()  # of ``window`` examples, whatever the width of those kept
        self._wide = self._empty()  # those since the last one kept, together

    @property
    def last_auc(self) -> float | None:
        """Of the learning model over the last ``window`` examples that filled one; None before that."""
        return self._last_auc

    def figures(self) -> list[dict[str, Any]]:
        """By window ``end_ms``, ``examples``, ``positive_rate``, and by arm ``auc``, ``logloss`` and ``calibration``; a
        figure that is not defined, such as the AUC without both classes, is None."""
        return list(self._closed)

    def update(self, logits: np.ndarray, labels: np.ndarray, time_ms: np.ndarray) -> bool:
        """Count examples: logits float32[N, arms], labels float32[N], time_ms int64[N].

        Returns:
            Whether ``window`` examples have become full.
        """
        full = False
        while labels.size:
            room = self._window - int(self._current[self._arms[0]].count)
            for a, arm in enumerate(self._arms):
                self._current[arm].update(logits[:room, a], labels[:room])
            self._newest_ms = int(time_ms[:room][-1])
            logits, labels, time_ms = logits[room:], labels[room:], time_ms[room:]
            if self._current[self._arms[0]].count >= self._window:
                self._close()
                full = True
        return full

    def state(self) -> dict[str, np.ndarray]:
        """As arrays."""
        text = json.dumps({"closed": self._closed, "last_auc": self._last_auc}).encode()
        return {
            "histograms": np.stack([part.state() for part in (*self._current.values(), *self._wide.values())]),
            "numbers": np.array([self._doublings, self._newest_ms], np.int64),
            "json": np.frombuffer(text, np.uint8),
        }

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        parts = [Progressive.from_state(row) for row in state["histograms"]]
        self._current = dict(zip(self._arms, parts[: len(self._arms)], strict=True))
        self._wide = dict(zip(self._arms, parts[len(self._arms) :], strict=True))
        self._doublings, self._newest_ms = (int(x) for x in state["numbers"])
        text = json.loads(state["json"].tobytes())
        self._closed, self._last_auc = text["closed"], text["last_auc"]

    def _empty(self) -> dict[str, Progressive]:
        return {arm: Progressive() for arm in self._arms}

    def _close(self) -> None:
        self._last_auc = plain(self._current[self._arms[0]].auc)
        for arm, measure in self._current.items():
            self._wide[arm].merge(measure)
        self._current = self._empty()
        leader = self._wide[self._arms[0]]
        if leader.count < self._window << self._doublings:
            return
        self._closed.append(
            {"end_ms": self._newest_ms, "examples": int(leader.count)}
            | {name: {arm: plain(getattr(measure, name)) for arm, measure in self._wide.items()} for name in _BY_ARM}
            | {"positive_rate": plain(leader.positives / leader.count)}
        )
        self._wide = self._empty()
        if len(self._closed) >= _MOST:
            self._closed = [_pair(*two) for two in zip(self._closed[::2], self._closed[1::2], strict=True)]
            self._doublings += 1


def plain(value: float) -> float | None:
    """JSON has no NaN."""
    return round(float(value), 6) if math.isfinite(value) else None


def _pair(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two windows as one."""
    weights = first["examples"], second["examples"]

    def mean(a: float | None, b: float | None) -> float | None:
        if a is None or b is None:
            return b if a is None else a
        return round((weights[0] * a + weights[1] * b) / sum(weights), 6)

    return (
        {"end_ms": second["end_ms"], "examples": sum(weights)}
        | {name: {arm: mean(first[name][arm], second[name][arm]) for arm in first[name]} for name in _BY_ARM}
        | {"positive_rate": mean(first["positive_rate"], second["positive_rate"])}
    )
