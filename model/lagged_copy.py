"""A read-only copy of the model, fed by deltas: it predicts as the trainer did at the version it stands at."""

from __future__ import annotations

import numpy as np

from schemas.config import FeatureConfig

from .deepfm import LADDER, DeepFM, padded
from .delta import Delta
from .table import EmbeddingTable, TableRows


class LaggedCopy:
    """Rows without optimizer state, and dense parameters.

    Args:
        config: feature configuration.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self._config = config
        self._table = EmbeddingTable(config)
        self._network = DeepFM(config)
        self.version = 0

    def apply(self, delta: Delta) -> None:
        """Take the next delta.

        Raises:
            ValueError: if deltas between this version and the delta's are missing.
        """
        if delta.from_version > self.version:
            raise ValueError(f"a delta from version {delta.from_version} for a copy at {self.version}; a delta is missing")
        self._put(delta.keys, delta.rows, delta.removed)
        if delta.dense:
            self._network.set_dense(delta.dense)
        self.version = delta.to_version
        # Nobody asks a copy for deltas.
        self._table.tick()
        self._table.trim(self._table.version)

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Logits float32[N, H] of ids int64[N, W]."""
        parts = []
        for at in range(0, len(ids), LADDER[-1]):
            chunk = ids[at : at + LADDER[-1]]
            unique, inverse = self._table.dedup(chunk)
            pooled = self._table.pool(self._table.find(unique), inverse)
            embeddings = np.zeros((padded(len(chunk)), *pooled.shape[1:]), np.float32)
            embeddings[: len(chunk)] = pooled
            parts.append(self._network.predict(embeddings)[: len(chunk)])
        return np.concatenate(parts) if parts else np.zeros((0, len(self._config.heads)), np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """As arrays."""
        rows = self._table.export(self._table.touched_since(-1))
        dense = {f"dense/{name}": array for name, array in self._network.dense.items()}
        version = np.array([self.version], np.int64)
        return {"keys": rows.keys, "values": rows.values, "version": version, **dense}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`, on a new copy."""
        self._put(state["keys"], state["values"], np.zeros(0, np.int64))
        self._network.set_dense({name[6:]: array for name, array in state.items() if name.startswith("dense/")})
        self.version = int(state["version"][0])

    def _put(self, keys: np.ndarray, values: np.ndarray, removed: np.ndarray) -> None:
        n = len(keys)
        width = self._table.optimizer_width
        zeros = np.zeros(n, np.int32)
        rows = TableRows(keys, values, np.zeros((n, width), np.float32), zeros, zeros, np.zeros(n, np.int64))
        self._table.load(rows, removed)
