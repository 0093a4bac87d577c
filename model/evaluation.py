"""Progressive evaluation of one head from mergeable histograms of the logit.

AUC is exact up to pairs that share one of 30,000 bins, and those are judged by where in it the positives and the negatives
lie on average: so it is within 1e-4 even while all logits lie within a few bins, as a new model's do. Logarithmic loss and
calibration are sums. A prediction counts as of its request: the caller hands over logits made then, once their labels are
known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_LIMIT = 15.0  # logits beyond it share the outermost bins
_BINS = 30_000
_PROBABILITY = 1 / (1 + np.exp(_LIMIT - (np.arange(_BINS) + 0.5) * (2 * _LIMIT / _BINS)))  # in the middle of a bin
_GRAINS = 1024.0  # to which places in a bin are rounded: their sums are exact then, in whatever order they are merged


@njit(nogil=True, cache=True)
def _count(logits, labels, weight, positives, negatives, positive_places, negative_places, sums):  # type: ignore[no-untyped-def]
    """Add float32[N] predictions to histograms float64[bins] and to the sums float64[4]; of no weights, each is 1."""
    for i in range(logits.size):
        z, y = np.float64(logits[i]), np.float64(labels[i])
        w = np.float64(weight[i]) if weight.size else 1.0
        at = min(max((z + _LIMIT) * (_BINS / (2 * _LIMIT)), 0.0), _BINS - 1e-9)
        cell = np.int64(at)
        place = np.round((at - cell - 0.5) * _GRAINS) / _GRAINS
        positives[cell] += w * y
        negatives[cell] += w * (1 - y)
        positive_places[cell] += w * y * place
        negative_places[cell] += w * (1 - y) * place
        softplus = max(z, 0.0) + np.log1p(np.exp(-abs(z)))  # log(1 + e^z), which neither overflows nor loses digits
        sums[0] += w
        sums[1] += w * y
        sums[2] += w * (softplus - y * z)
        sums[3] += w * np.exp(z - softplus)


class Progressive:
    """Histograms of positives and negatives over the logit, mergeable by addition."""

    def __init__(self) -> None:
        self._positives = np.zeros(_BINS, np.float64)
        self._negatives = np.zeros(_BINS, np.float64)
        # Sums of the places in a bin, from -0.5 to 0.5 of its width.
        self._positive_places = np.zeros(_BINS, np.float64)
        self._negative_places = np.zeros(_BINS, np.float64)
        self._sums = np.zeros(4, np.float64)  # weight, positive weight, log loss, probability

    @classmethod
    def warm_up(cls) -> None:
        """Compile what counts, or read it from the cache."""
        cls().update(np.zeros(1, np.float32), np.zeros(1, np.float32))

    @property
    def count(self) -> float:
        """Weight of the examples met."""
        return float(self._sums[0])

    @property
    def positives(self) -> float:
        """Weight of those that were positive."""
        return float(self._sums[1])

    def update(self, logits: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Count predictions whose labels are known.

        Args:
            logits: float32[N], finite.
            labels: float32[N], 0 or 1.
            weight: float32[N]; 1 each when absent.

        Raises:
            ValueError: a logit is not finite, or there are not as many labels or weights; nothing has been counted then.
        """
        if logits.ndim != 1 or any(each is not None and each.shape != logits.shape for each in (labels, weight)):
            raise ValueError(f"logits of shape {logits.shape} with labels of {labels.shape}: give a label and a weight to each")
        if not np.isfinite(logits).all():
            raise ValueError("a logit that is not finite: leave such predictions out")
        each = np.zeros(0, np.float32) if weight is None else np.ascontiguousarray(weight, np.float32)
        counted = np.ascontiguousarray(logits, np.float32), np.ascontiguousarray(labels, np.float32), each
        _count(*counted, *self._histograms(), self._sums)

    def merge(self, other: Progressive) -> None:
        """Add another's examples."""
        for mine, others in zip(self._histograms(), other._histograms(), strict=True):
            mine += others
        self._sums += other._sums

    @property
    def auc(self) -> float:
        """Area under the ROC curve; NaN without both classes."""
        p, n = self._positives.sum(), self._negatives.sum()
        if p == 0 or n == 0:
            return float("nan")
        below = np.cumsum(self._negatives) - self._negatives
        # P(x > y) = 1/2 + E x - E y for x, y of densities that are linear over a bin of width 1.
        pairs = self._positives * self._negatives
        within = 0.5 * pairs + self._positive_places * self._negatives - self._negative_places * self._positives
        return float((self._positives * below + np.clip(within, 0, pairs)).sum() / (p * n))

    @property
    def logloss(self) -> float:
        """Mean logarithmic loss, in nats."""
        return float(self._sums[2] / self._sums[0]) if self._sums[0] else float("nan")

    @property
    def calibration(self) -> float:
        """Mean prediction over mean label: 1 is calibrated."""
        return float(self._sums[3] / self._sums[1]) if self._sums[1] else float("nan")

    def reliability(self, bins: int = 10) -> list[tuple[float, float, float]]:
        """(mean prediction, mean label, weight) of quantiles of the prediction."""
        total = self._positives + self._negatives
        if not total.sum():
            return []
        quantile = np.minimum((np.cumsum(total) - total) / total.sum() * bins, bins - 1).astype(int)
        sums = [np.bincount(quantile, x, bins) for x in (total, total * _PROBABILITY, self._positives)]
        return [(float(p / w), float(y / w), float(w)) for w, p, y in zip(*sums, strict=True) if w]

    def figures(self) -> dict[str, Any]:
        """AUC, logloss, calibration and counts."""
        return {
            "count": self.count,
            "positives": self.positives,
            "auc": self.auc,
            "logloss": self.logloss,
            "calibration": self.calibration,
        }

    def state(self) -> np.ndarray:
        """float64[4 bins + 4]."""
        return np.concatenate([*self._histograms(), self._sums])

    @classmethod
    def from_state(cls, state: np.ndarray) -> Progressive:
        """The inverse of `state`."""
        made = cls()
        parts = np.split(state, [_BINS, 2 * _BINS, 3 * _BINS, 4 * _BINS])
        for mine, given in zip((*made._histograms(), made._sums), parts, strict=True):
            mine[:] = given
        return made

    def _histograms(self) -> tuple[np.ndarray, ...]:
        return self._positives, self._negatives, self._positive_places, self._negative_places
