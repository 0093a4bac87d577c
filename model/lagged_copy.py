"""A read-only copy of the model, fed by deltas: it predicts as the trainer did at the version it stands at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from schemas.config import FeatureConfig, OptimizerConfig

from .deepfm import DeepFM
from .delta import Delta
from .predictor import Predictor
from .table import EmbeddingTable
from .table_rows import TableRows

_DENSE = "dense/"


class LaggedCopy:
    """Rows without optimizer state, and dense parameters.

    Args:
        config: feature configuration.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self._config = config
        # A copy learns nothing: its rows need no optimizer state.
        self._read_only = replace(config, slots=tuple(replace(slot, optimizer=OptimizerConfig("sgd")) for slot in config.slots))
        self._network = DeepFM(config)
        self._start()

    def _start(self) -> None:
        self._table = EmbeddingTable(self._read_only)
        self._predictor = Predictor(self._config, self._network, self._table.lookup_part)
        self._newest_event_ms = -1
        self.version = 0

    def apply(self, delta: Delta) -> None:
        """Take the next delta. One from version 0 holds everything: the copy starts anew from it. One that ends where the
        copy stands, or before, changes nothing.

        Raises:
            ValueError: deltas between this version and the delta's are missing, or it is of another feature configuration.
        """
        if delta.fingerprint != self._config.fingerprint:
            raise ValueError(
                f"a delta of feature configuration {delta.fingerprint} for a copy of {self._config.fingerprint}: "
                "use the configuration it was made with"
            )
        if delta.from_version > self.version:
            raise ValueError(
                f"a delta from version {delta.from_version} for a copy at {self.version}: apply those between first"
            )
        if delta.to_version <= self.version:
            return
        if delta.from_version == 0:
            self._start()
        self._put(delta.keys, delta.rows, delta.last_seen_ms, delta.removed)
        self._advance(delta.newest_event_ms)
        if delta.dense:
            self._network.set_dense(delta.dense)
        self.version = delta.to_version

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Logits float32[N, H] of ids int64[N, W].

        Raises:
            ValueError: ids are of a slot that the configuration lacks.
        """
        return self._predictor.predict(ids)

    def state(self) -> dict[str, np.ndarray]:
        """As arrays."""
        rows = self._table.export(self._table.touched_since(0))
        dense = {f"{_DENSE}{name}": array for name, array in self._network.dense.items()}
        numbers = np.array([self.version, self._newest_event_ms], np.int64)
        return {"keys": rows.keys, "values": rows.values, "last_seen_ms": rows.last_seen_ms, "numbers": numbers, **dense}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`, on a new copy."""
        self._put(state["keys"], state["values"], state["last_seen_ms"], np.zeros(0, np.int64))
        dense = {name: array for name, array in state.items() if name.startswith(_DENSE)}
        self._network.set_dense({name.removeprefix(_DENSE): array for name, array in dense.items()})
        self.version = int(state["numbers"][0])
        self._advance(int(state["numbers"][1]))

    def _advance(self, time_ms: int) -> None:
        # The trainer's clock: by it a row past its time reads its slot's default, whether or not it has been let go.
        self._newest_event_ms = self._table.advance(time_ms)

    def _put(self, keys: np.ndarray, values: np.ndarray, last_seen_ms: np.ndarray, removed: np.ndarray) -> None:
        n = len(keys)
        nothing, never = np.zeros(n, np.int32), np.zeros(n, np.int64)
        optimizer = np.zeros((n, self._table.optimizer_width), np.float32)
        seen = last_seen_ms if last_seen_ms.size else never
        self._table.load(TableRows(keys, values, optimizer, nothing, nothing, seen, never, nothing), removed)
        # Nobody asks a copy for what it was given: its journal stays empty.
        self._table.tick()
        self._table.trim(self._table.version)
