"""Figures of a running shard: by arm and head over the whole stream, and window by window."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from model.evaluation import Progressive
from model.trainer import StepMetrics
from schemas.config import Head

from .windows import Windows, plain

log = logging.getLogger(__name__)

#: A loss this many times its own running mean has exploded.
_EXPLODED = 10.0
#: Steps that must be well again before parameters are published again.
_CONVALESCENCE = 50


class Progress:
    """What has been learned and how well it was predicted.

    Args:
        heads: the model's heads; the first one gives the headline figures.
        arms: models that scored each row; the first one is the one that learns.
        window: decided examples of the first head a window.
    """

    def __init__(self, heads: Sequence[Head], arms: Sequence[str], window: int) -> None:
        self.arms = tuple(arms)
        self._heads = tuple(head.name for head in heads)
        self.started = time.monotonic()
        self._since_start = 0
        self.examples = 0
        self._total = {(arm, head): Progressive() for arm in self.arms for head in self._heads}
        self._emission = {head: Progressive() for head in self._heads}
        self._windows = Windows(self.arms, window)
        self._news = False
        self._loss = float("nan")
        self._sick = 0
        self._bad_steps = 0

    @property
    def healthy(self) -> bool:
        """Whether parameters may be published: no step of late had a loss that was not finite or had exploded."""
        return self._sick == 0

    @property
    def examples_per_s(self) -> float:
        """Examples learned a second of this process's life."""
        return self._since_start / max(time.monotonic() - self.started, 1e-9)

    @property
    def auc_last_window(self) -> float | None:
        """Of the first head and the learning model; None before the first window has closed."""
        return self._windows.last_auc

    def learned(self, step: StepMetrics, labels: np.ndarray, mask: np.ndarray, fresh: int) -> None:
        """Count a step; ``mask`` float32[N, H] is 1 where a learned head is evaluated, too, ``fresh`` of the examples are rows
        learned from for the first time."""
        self.examples += fresh
        self._since_start += fresh
        for h, head in enumerate(self._heads):
            rows = (mask[:, h] > 0) & np.isfinite(step.logits[:, h])
            self._emission[head].update(step.logits[rows, h], labels[rows, h])
        exploded = math.isfinite(self._loss) and step.loss > _EXPLODED * max(self._loss, 0.1)
        healthy = self.healthy
        if not step.finite or exploded:
            self._bad_steps += 1
            self._sick = _CONVALESCENCE
            if healthy:
                self._news = True
                why = "has exploded" if step.finite else "or its gradient is not finite"
                log.error("publishing stopped: the loss (%g) %s; learning goes on", step.loss, why)
            return
        self._sick = max(0, self._sick - 1)
        if not healthy and self.healthy:
            self._news = True
            log.warning("publishing resumed: %d steps were well, the last one with a loss of %g", _CONVALESCENCE, step.loss)
        self._loss = step.loss if math.isnan(self._loss) else 0.99 * self._loss + 0.01 * step.loss

    def met(self, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray, time_ms: np.ndarray) -> None:
        """Predictions float32[N, arms, H] of the request meet their labels float32[N, H]."""
        for h, head in enumerate(self._heads):
            rows = (mask[:, h] > 0) & np.isfinite(logits[:, :, h]).all(axis=1)
            for a, arm in enumerate(self.arms):
                self._total[arm, head].update(logits[rows, a, h], labels[rows, h])
        rows = (mask[:, 0] > 0) & np.isfinite(logits[:, :, 0]).all(axis=1)
        if self._windows.update(logits[rows, :, 0], labels[rows, 0], time_ms[rows]):
            self._news = True

    def news(self) -> bool:
        """Whether, since the last call, a window has closed or publishing has stopped or resumed."""
        news, self._news = self._news, False
        return news

    def figures(self) -> dict[str, Any]:
        """Figures for people and programs; the headline ones are the first head's, of the learning model."""
        headline = self._total[self.arms[0], self._heads[0]]
        last = self.auc_last_window
        return {
            "examples": self.examples,
            "positives": int(headline.positives),
            "auc": plain(headline.auc),
            "logloss": plain(headline.logloss),
            "auc_last_window": plain(headline.auc) if last is None else last,
            "examples_per_s": round(self.examples_per_s, 1),
            "healthy": self.healthy,
            "bad_steps": self._bad_steps,
            "heads": {head: _figures(self._total[self.arms[0], head]) for head in self._heads},
            "arms": {arm: _figures(self._total[arm, self._heads[0]]) for arm in self.arms},
            "auc_scored_at_emission": plain(self._emission[self._heads[0]].auc),
            "windows": self._windows.figures(),
        }

    def state(self) -> dict[str, np.ndarray]:
        """As arrays."""
        parts = [*self._total.values(), *self._emission.values()]
        numbers = [self.examples, self._loss, self._sick, self._bad_steps, self._news]
        return {
            "histograms": np.stack([part.state() for part in parts]),
            "numbers": np.array(numbers, np.float64),
        } | {f"windows_{name}": array for name, array in self._windows.state().items()}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        parts = [Progressive.from_state(row) for row in state["histograms"]]
        for store in (self._total, self._emission):
            for key in store:
                store[key] = parts.pop(0)  # type: ignore[index]
        self.examples, self._loss = int(state["numbers"][0]), float(state["numbers"][1])
        self._sick, self._bad_steps = (int(x) for x in state["numbers"][2:4])
        self._news = bool(state["numbers"][4])
        prefix = "windows_"
        self._windows.load({name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)})


def _figures(measure: Progressive) -> dict[str, Any]:
    """AUC and the like, and ``reliability``: (mean prediction, mean label, count) by tenths of the prediction."""
    figures: dict[str, Any] = {name: plain(value) for name, value in measure.figures().items()}
    return figures | {"reliability": [[round(value, 6) for value in part] for part in measure.reliability()]}
