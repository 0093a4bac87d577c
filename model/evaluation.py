"""Progressive evaluation of one head from mergeable histograms of the logit.

AUC is exact up to pairs that share one of 30,000 bins, logarithmic loss and calibration are sums. A prediction counts as
of its request: the caller hands over logits made then, once their labels are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_LIMIT = 15.0  # logits beyond it share the outermost bins
_BINS = 30_000


class Progressive:
    """Histograms of positives and negatives over the logit, mergeable by addition."""

    def __init__(self) -> None:
        self._positives = np.zeros(_BINS, np.float64)
        self._negatives = np.zeros(_BINS, np.float64)
        self._sums = np.zeros(4, np.float64)  # weight, positive weight, log loss, probability

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
            ValueError: a logit is not finite; nothing has been counted then.
        """
        if not np.isfinite(logits).all():
            raise ValueError("a logit that is not finite: leave such predictions out")
        z = logits.astype(np.float64)
        w = np.ones_like(z) if weight is None else weight.astype(np.float64)
        bins = np.clip((z + _LIMIT) * (_BINS / (2 * _LIMIT)), 0, _BINS - 1).astype(np.int64)
        # Not bincount: a step has a hundred predictions, and its result would have a bin for each of 30,000.
        np.add.at(self._positives, bins, w * labels)
        np.add.at(self._negatives, bins, w * (1 - labels))
        # log(1 + e^z) - y z, which neither overflows nor loses digits.
        softplus = np.logaddexp(0.0, z)
        loss = softplus - labels * z
        self._sums += (w.sum(), (w * labels).sum(), (w * loss).sum(), (w * np.exp(z - softplus)).sum())

    def merge(self, other: Progressive) -> None:
        """Add another's examples."""
        self._positives += other._positives
        self._negatives += other._negatives
        self._sums += other._sums

    @property
    def auc(self) -> float:
        """Area under the ROC curve; NaN without both classes."""
        p, n = self._positives.sum(), self._negatives.sum()
        if p == 0 or n == 0:
            return float("nan")
        below = np.cumsum(self._negatives) - self._negatives
        return float((self._positives * (below + 0.5 * self._negatives)).sum() / (p * n))

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
        centre = (np.arange(_BINS) + 0.5) * (2 * _LIMIT / _BINS) - _LIMIT
        probability = 1 / (1 + np.exp(-centre))
        quantile = np.minimum((np.cumsum(total) - total) / total.sum() * bins, bins - 1).astype(int)
        sums = [np.bincount(quantile, x, bins) for x in (total, total * probability, self._positives)]
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
        """float64[2 bins + 4]."""
        return np.concatenate([self._positives, self._negatives, self._sums])

    @classmethod
    def from_state(cls, state: np.ndarray) -> Progressive:
        """The inverse of `state`."""
        made = cls()
        made._positives, made._negatives, made._sums = (x.copy() for x in np.split(state, [_BINS, 2 * _BINS]))
        return made
