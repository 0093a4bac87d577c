"""Predictions of a network over what ids read in a table: the trainer's, or a lagged copy's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from schemas.config import FeatureConfig

from .deepfm import DeepFM
from .slices import LADDER, PREDICTED_SLICE, Buffers, cut
from .threads import run

#: `lookup(ids, first_out, v_out)`: ids int64[N, W] into float32[>= N, S] and float32[>= N, S, dim]; called from several
#: threads at once.
Lookup = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


class Predictor:
    """Cuts a batch into slices, looks up and predicts each in a thread of its own.

    Args:
        config: slots, dimension, heads.
        network: the dense part.
        lookup: how ids become slots.
    """

    def __init__(self, config: FeatureConfig, network: DeepFM, lookup: Lookup) -> None:
        self._heads = len(config.heads)
        self._network, self._lookup = network, lookup
        self._buffers = Buffers(first=(config.num_slots,), v=(config.num_slots, config.model.dim))

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Logits float32[N, H] of ids int64[N, W]."""

        def slice_of(part: slice) -> np.ndarray:
            size = part.stop - part.start
            pooled = self._buffers.take(size)
            self._lookup(ids[part], pooled["first"], pooled["v"])
            return self._network.predict(pooled)[:size]

        parts = run(slice_of, cut(len(ids), PREDICTED_SLICE))
        return np.concatenate(parts) if parts else np.zeros((0, self._heads), np.float32)

    def warm_up(self) -> None:
        """Compile predictions of any number of rows."""
        for rows in LADDER:
            if rows <= PREDICTED_SLICE:
                self._network.predict(self._buffers.take(rows))
