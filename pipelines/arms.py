"""Lagged copies of the one model, scored beside it: what freshness is worth, on the same rows.

An arm is fed by the trainer's own deltas, every ``interval`` of event time: ``hourly`` is what a system would serve that
syncs once an hour, ``frozen`` what one would that never does. All arms start at the end of the warm start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.lagged_copy import LaggedCopy
from model.trainer import Trainer
from schemas.config import FeatureConfig
from schemas.process import UserError

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Arm:
    """A lagged copy.

    Attributes:
        name: as in reports.
        interval_ms: event time between syncs; None: never after the start.
    """

    name: str
    interval_ms: int | None


ARMS = {"frozen": Arm("frozen", None), "daily": Arm("daily", 24 * HOUR_MS), "hourly": Arm("hourly", HOUR_MS)}


def arms_named(names: Sequence[str]) -> tuple[Arm, ...]:
    """Arms by name.

    Raises:
        UserError: for a name that is none of :data:`ARMS`, or comes twice: figures are kept by name.
    """
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise UserError(f"--arms {','.join(unknown)}: no such arm; choose from {', '.join(ARMS)}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--arms {','.join(names)}: {twice} is named twice; name each once")
    return tuple(ARMS[name] for name in names)


class Arms:
    """The arms of one shard and their calendar.

    Args:
        config: feature configuration.
        arms: which.
        warm_start_ms: event time from the first event on, at whose end the arms start and evaluation begins.
    """

    def __init__(self, config: FeatureConfig, arms: Sequence[Arm], warm_start_ms: int) -> None:
        self._arms = tuple(arms)
        self._copies = [LaggedCopy(config) for _ in arms]
        self._versions = [0] * len(self._arms)
        self._warm_start_ms = warm_start_ms
        self._start_ms = -1  # end of the warm start
        self._next_ms = [-1] * len(self._arms)  # -1: no sync to come

    @property
    def evaluated_from_ms(self) -> int:
        """Requests from this event time on are evaluated."""
        return self._start_ms if self._start_ms >= 0 else 0

    def due(self, order_ms: np.ndarray) -> list[int]:
        """Indexes of the events before which arms are to be synced; ``order_ms`` int64[N] is non-decreasing."""
        if not order_ms.size:
            return []
        if self._start_ms < 0 and order_ms[-1] >= 0:
            first = int(order_ms[np.searchsorted(order_ms, 0)])
            self._start_ms = first + self._warm_start_ms
            self._next_ms = [self._start_ms] * len(self._arms)
        moments: set[int] = set()
        for arm, next_ms in zip(self._arms, self._next_ms, strict=True):
            while 0 <= next_ms <= order_ms[-1]:
                moments.add(int(np.searchsorted(order_ms, next_ms)))
                if arm.interval_ms is None:
                    break
                # Of several boundaries without an event between them, one sync serves.
                at = int(order_ms[np.searchsorted(order_ms, next_ms)])
                next_ms += ((at - next_ms) // arm.interval_ms + 1) * arm.interval_ms
        return sorted(moments)

    def sync(self, now_ms: int, trainer: Trainer) -> None:
        """Bring the arms whose time has come up to the trainer's present version."""
        for number, arm in enumerate(self._arms):
            next_ms = self._next_ms[number]
            if not 0 <= next_ms <= now_ms:
                continue
            self._copies[number].apply(trainer.delta(self._versions[number]))
            self._versions[number] = trainer.version
            if arm.interval_ms is None:
                self._next_ms[number] = -1
            else:
                self._next_ms[number] = next_ms + ((now_ms - next_ms) // arm.interval_ms + 1) * arm.interval_ms

    def predict(self, number: int, ids: np.ndarray, current: np.ndarray) -> np.ndarray:
        """Logits float32[N, H] of an arm; before its start it is the model itself, whose logits are ``current``."""
        started = self._start_ms >= 0 and self._next_ms[number] != self._start_ms
        return self._copies[number].predict(ids) if started else current

    def oldest_version(self, version: int) -> int:
        """The oldest model version that an arm may still ask a delta from."""
        due = [v for v, next_ms in zip(self._versions, self._next_ms, strict=True) if next_ms >= 0]
        return min(due, default=version) if self._start_ms >= 0 or not self._arms else 0

    def state(self) -> dict[str, np.ndarray]:
        """As arrays."""
        state = {
            "versions": np.array(self._versions, np.int64),
            "next_ms": np.array(self._next_ms, np.int64),
            "start_ms": np.array([self._start_ms], np.int64),
        }
        for number, copy in enumerate(self._copies):
            state |= {f"{number}/{name}": array for name, array in copy.state().items()}
        return state

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`, of the same arms."""
        self._versions = state["versions"].tolist()
        self._next_ms = state["next_ms"].tolist()
        self._start_ms = int(state["start_ms"][0])
        for number, copy in enumerate(self._copies):
            prefix = f"{number}/"
            copy.load({name[len(prefix) :]: array for name, array in state.items() if name.startswith(prefix)})
