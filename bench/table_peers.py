"""The peers of `bench.table`, each in a process of its own: `.venv-peers/bin/python bench/table_peers.py`.

It stands alone, since it runs in an environment that the rest of the repository does not (see `make bench-peers`). A task comes
as one line of JSON on standard input; then each line asks for a round of an operation and gets its seconds a batch back.

    {"table": "tfra", "optimizer": "adam", "keys": 1000000, "threads": 2, "seed": 0}
    {"batch": 4096, "ids": "zipf", "operation": "learn", "batches": 20}
    {"fill": 1100000}                                     answered by {"bytes": resident bytes}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

DIM = 16
RATE = 0.05
_FILLED_AT_ONCE = 4096


class Table(Protocol):
    """What a peer can do: `put` new ids int64[N], `lookup` ids, and `learn` from a gradient of each."""

    def put(self, ids: np.ndarray) -> None: ...
    def lookup(self, ids: Any) -> object: ...
    def learn(self, ids: Any, gradients: Any) -> object: ...


def _dict_table() -> Table:
    class DictTable:
        """A Python dict over a NumPy matrix that doubles."""

        def __init__(self) -> None:
            self.rows: dict[int, int] = {}
            self.matrix = np.zeros((1024, DIM), np.float32)

        def _rows(self, ids: np.ndarray) -> np.ndarray:
            rows = self.rows
            return np.fromiter((rows.setdefault(i, len(rows)) for i in ids.tolist()), np.int64, ids.size)

        def put(self, ids: np.ndarray) -> None:
            found = self._rows(ids)
            while len(self.rows) > len(self.matrix):
                self.matrix = np.concatenate([self.matrix, np.zeros_like(self.matrix)])
            self.matrix[found] = 0.01

        def lookup(self, ids: np.ndarray) -> object:
            return self.matrix[self._rows(ids)]

        def learn(self, ids: np.ndarray, gradients: np.ndarray) -> object:
            unique, inverse = np.unique(ids, return_inverse=True)
            sums = np.zeros((unique.size, DIM), np.float32)
            np.add.at(sums, inverse, gradients)
            rows = self._rows(unique)
            values = self.matrix[rows]
            self.matrix[rows] = values - RATE * sums
            return values[inverse]

    return DictTable()


def _tf_table(kind: str) -> Table:
    import tensorflow as tf

    class TensorFlowTable:
        """TensorFlow's own tables: found, summed by id, updated and put back."""

        def __init__(self) -> None:
            default = tf.zeros(DIM)
            if kind == "dense":
                self.table = tf.lookup.experimental.DenseHashTable(tf.int64, tf.float32, default, -1, -2)
            else:
                self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, default)

        def put(self, ids: np.ndarray) -> None:
            self.table.insert(ids, np.full((ids.size, DIM), 0.01, np.float32))

        @tf.function(reduce_retracing=True)
        def lookup(self, ids: Any) -> object:
            return self.table.lookup(ids)

        @tf.function(reduce_retracing=True)
        def learn(self, ids: Any, gradients: Any) -> object:
            unique, inverse = tf.unique(ids)
            sums = tf.math.unsorted_segment_sum(gradients, inverse, tf.size(unique))
            values = self.table.lookup(unique)
            self.table.insert(unique, values - RATE * sums)
            return tf.gather(values, inverse)

    return TensorFlowTable()


def _tfra_table(optimizer: str) -> Table:
    import tensorflow as tf
    import tensorflow_recommenders_addons as tfra

    de = tfra.dynamic_embedding

    class TfraTable:
        """TFRA's cuckoo table, with its own optimizers."""

        def __init__(self) -> None:
            self.variable = de.get_variable(
                "peer", tf.int64, tf.float32, dim=DIM, initializer=0.01, trainable=True, devices=["/CPU:0"], init_size=1024
            )
            kinds = {"sgd": tf.keras.optimizers.legacy.SGD, "adam": tf.keras.optimizers.legacy.Adam}
            self.shadow = de.shadow_ops.ShadowVariable(self.variable, name="peer_shadow")
            self.optimizer = de.DynamicEmbeddingOptimizer(kinds[optimizer](RATE))

        def put(self, ids: np.ndarray) -> None:
            self.variable.upsert(tf.constant(ids), tf.fill((ids.size, DIM), 0.01))

        @tf.function(reduce_retracing=True)
        def lookup(self, ids: Any) -> object:
            return self.variable.lookup(ids)

        @tf.function(reduce_retracing=True)
        def learn(self, ids: Any, gradients: Any) -> object:
            unique, inverse = tf.unique(ids)
            sums = tf.math.unsorted_segment_sum(gradients, inverse, tf.size(unique))
            with tf.GradientTape() as tape:
                values = de.shadow_ops.embedding_lookup(self.shadow, unique)
                loss = tf.reduce_sum(values * sums)  # its gradient is `sums`
            self.optimizer.apply_gradients([(tape.gradient(loss, self.shadow), self.shadow)])
            return tf.gather(values, inverse)

    return TfraTable()


def draw(rng: np.random.Generator, distribution: str, count: int, size: int) -> np.ndarray:
    """Numbers int64[size] below `count`, each as likely, or in proportion to 1 / rank (Zipf), ranks spread over them."""
    if distribution == "uniform":
        return rng.integers(0, count, size)
    ranks = np.exp(rng.random(size) * np.log(count)).astype(np.int64)
    return ranks * 7_368_787 % count


def ids_of(numbers: np.ndarray, packed: bool) -> np.ndarray:
    """Numbers int64[N] as ids int64[N], of a user and of an item in turn: each two make an example.

    Packed, the slot is in the high bits, as in a feature id. For DenseHashTable that would be the worst case, a hundred times
    slower: peers have users and items numbered through.
    """
    slots = np.arange(2)
    pairs = numbers.reshape(-1, 2)
    return (pairs + 1 | (1 + slots) << 48 if packed else 1 + 2 * pairs + slots).reshape(-1)


def resident_bytes() -> int:
    """RSS of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def serve(make: Callable[[dict[str, Any]], tuple[Table, Callable[[np.ndarray], Any]]], packed: bool) -> None:
    """Answers lines of JSON on standard input until it ends.

    Args:
        make: gives a task's table, and what it takes arrays as.
        packed: see `ids_of`.
    """
    task = json.loads(sys.stdin.readline())
    rng = np.random.default_rng(task["seed"])
    table, convert = make(task)
    filled = 0

    def fill(upto: int) -> None:
        nonlocal filled
        for start in range(filled, upto, _FILLED_AT_ONCE):
            table.put(ids_of(np.arange(start // 2, min(start + _FILLED_AT_ONCE, upto) // 2).repeat(2), packed))
        filled = max(filled, upto)

    for line in sys.stdin:
        asked = json.loads(line)
        if "fill" in asked:
            fill(asked["fill"])
            answer: dict[str, object] = {"bytes": resident_bytes()}
        else:
            fill(task["keys"])
            size, seconds = asked["batch"], []
            gradients = convert(rng.normal(size=(size, DIM)).astype(np.float32))
            for _ in range(asked["batches"]):
                ids = convert(ids_of(draw(rng, asked["ids"], task["keys"] // 2, size), packed))
                start = time.perf_counter()
                table.lookup(ids) if asked["operation"] == "lookup" else table.learn(ids, gradients)
                seconds.append(time.perf_counter() - start)
            answer = {"seconds": float(np.median(seconds))}
        print(json.dumps(answer), flush=True)


def make_peer(task: dict[str, Any]) -> tuple[Table, Callable[[np.ndarray], Any]]:
    """The table that a task names, on as many threads as it says, and what it takes arrays as."""
    if task["table"] == "dict":
        return _dict_table(), lambda array: array
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(task["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(task["threads"])
    table = _tfra_table(task["optimizer"]) if task["table"] == "tfra" else _tf_table(task["table"])
    return table, tf.constant


if __name__ == "__main__":
    serve(make_peer, packed=False)
