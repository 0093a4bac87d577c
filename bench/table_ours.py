"""Freshet's side of `bench.table`, in a process of its own: `python -m bench.table_ours`, spoken to as the peers are.

All that the trainer has a table do for a batch is done: distinct ids, occurrences, admission, last-seen times, the touched set
with a reader that takes what was touched, gradients added by id, and expiry.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.table_peers import DIM, RATE, serve
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot
from schemas.quiet import quiet_imports

with quiet_imports():
    from model.table import EmbeddingTable
    from model.threads import use_threads

_MOST = 65_536  # ids a batch
_READ_EVERY = 50  # batches between two visits of a reader of what was touched
_NOW_MS = 1_000_000


def config_of(optimizer: str, admission: int = 2, ttl_s: int = 10**6) -> FeatureConfig:
    """A user and an item make an example; all slots are alike."""
    rows = OptimizerConfig(optimizer, learning_rate=RATE)  # type: ignore[arg-type]
    user = Slot("user", 1, "user", "user", "id", "int", admission=admission, ttl_s=ttl_s, optimizer=rows)
    item = Slot("item", 2, "item", "item", "id", "int", admission=admission, ttl_s=ttl_s, optimizer=rows)
    return FeatureConfig("bench.table", (user, item), (Head("click", "click", 1.0),), ModelConfig(dim=DIM))


class OurTable:
    """An `EmbeddingTable` used as the trainer uses it; of N ids, each two make an example.

    Args:
        config: from `config_of`.
        table_bytes: see `EmbeddingTable`.
    """

    def __init__(self, config: FeatureConfig, table_bytes: int | None = None) -> None:
        self.table = EmbeddingTable(config, capacity=1024, table_bytes=table_bytes)
        self.table.warm_up()
        self.time_ms = _NOW_MS
        # Buffers are kept, as the trainer keeps its own.
        self._first, self._v = np.zeros((_MOST // 2, 2), np.float32), np.zeros((_MOST // 2, 2, DIM), np.float32)
        self._grad_first = np.zeros(_MOST // 2, np.float32)
        self._read = 0

    def put(self, ids: np.ndarray) -> None:
        """Occurrences enough for a row."""
        self._admit(ids.reshape(-1, 2), times=2)
        self.visit()

    def lookup(self, ids: np.ndarray) -> np.ndarray:
        """Embeddings of ids int64[N], float32[N, dim], which hold until the next call."""
        n = ids.size // 2
        self.table.lookup(ids.reshape(n, 2), self._first[:n], self._v[:n])
        return self._v[:n].reshape(-1, DIM)

    def learn(self, ids: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        """A whole step of ids int64[N] with gradients float32[N, dim], and the reader's visits; embeddings before it."""
        values = self.step(ids, gradients)
        self.visit()
        return values

    def step(self, ids: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        """A step alone."""
        n = ids.size // 2
        rows, values, inverse = self._admit(ids.reshape(n, 2), times=1)
        self.table.pool(values, inverse, self._first[:n], self._v[:n])
        part = (self._grad_first[:n], gradients.reshape(n, 2, DIM), inverse)
        self.table.update(rows, self.table.scatter([part], rows))
        self.table.expire(self.time_ms, ids.size)
        return self._v[:n].reshape(-1, DIM)

    def _admit(self, ids: np.ndarray, times: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        unique, inverse, occurrences = self.table.dedup(ids)
        self.table.tick()
        return *self.table.admit(unique, occurrences * np.int32(times), self.time_ms), inverse

    def visit(self) -> None:
        """A reader takes what was touched, if it is time."""
        if self.table.version - self._read >= _READ_EVERY:
            self.table.touched_since(self._read)
            self._read = self.table.version
            self.table.trim(self._read)


def make(task: dict[str, Any]) -> tuple[OurTable, Any]:
    """The table of a task."""
    use_threads(task["threads"])
    return OurTable(config_of(task["optimizer"])), lambda array: array


if __name__ == "__main__":
    serve(make, packed=True)
