"""The serving copy as a graph of stock TensorFlow operations, so that an unmodified TF Serving loads it.

Rows lie in one variable, the arena: first the padding row, then the slots' default rows, then live rows. A stock
DenseHashTable leads from a key, mixed by a bijection (packed ids as they are would crowd its buckets), to its arena row;
a miss reads its slot's default row. The graph follows from the configuration alone: no shape in it depends on how many
rows, users or videos there are, so every version of a model is the same graph with other variables.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from schemas.config import FeatureConfig

from .catalogue import NAME_BITS
from .deepfm_graphs import forward
from .dense import DenseLayout
from .feature_ids import SLOT_SHIFT, mix63_tf
from .graph_featuriser import graph_featurise, graph_featurise_user

#: Value of a key that is not in a hash table, and the two keys that none may hold.
ABSENT, EMPTY, DELETED = -1, -1, -2


class ServingModel(tf.Module):
    """The model as it is served; its variables are placeholders until a checkpoint is restored into them.

    Attributes:
        arena: float32[capacity, 1 + dim]; row 0 is zero, rows 1 to S are the slots' default rows in slot order.
        index: mixed key to arena row, `ABSENT` where there is none.
        rows: int64[], live rows.
        dense: dense parameters by name.
        versions, epochs: int64[shards].
        users: int64[users + 1, Wu], row 0 unused; user_index: hash of the user id to row.
        item_names: string[M]; items: int64[M, Wi].
    """

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(name="freshet")
        self._config = config
        self._layout = DenseLayout.of(config)
        self.arena = _variable("arena", tf.float32, 1 + config.model.dim)
        self.index = _hash_table()
        self.rows = tf.Variable(np.int64(0), trainable=False, name="rows")
        self.dense = {
            name: tf.Variable(np.zeros(shape, np.float32), trainable=False, name=name)
            for name, shape in self._layout.shapes.items()
        }
        self.versions = _variable("versions", tf.int64)
        self.epochs = _variable("epochs", tf.int64)
        self.users = _variable("users", tf.int64, config.user_width)
        self.user_index = _hash_table()
        self.item_names = _variable("item_names", tf.string)
        self.items = _variable("items", tf.int64, config.item_width)
        numbers = [slot.slot for slot in config.slot_order]
        self._default_row = np.zeros(max(numbers) + 2, np.int64)
        self._default_row[numbers] = np.arange(1, 1 + config.num_slots)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Concrete functions by signature name."""
        config = self._config
        ids = tf.TensorSpec([None, config.width], tf.int64, "ids")
        specs = {
            "serving_default": (self._from_examples, [tf.TensorSpec([None], tf.string, "examples")]),
            "predict": (self._from_ids, [ids]),
            "rank": (
                self._rank,
                [
                    tf.TensorSpec([config.user_width], tf.int64, "user_ids"),
                    tf.TensorSpec([None, config.item_width], tf.int64, "ids"),
                    tf.TensorSpec([], tf.int32, "k"),
                    tf.TensorSpec([], tf.int32, "head"),
                ],
            ),
            "status": (self._status, []),
            "catalogue": (self._catalogue, [tf.TensorSpec([], tf.string, "user_id")]),
        }
        return {name: tf.function(f, input_signature=s).get_concrete_function() for name, (f, s) in specs.items()}

    def _from_ids(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"scores": tf.sigmoid(self._logits(ids)), "version": tf.identity(self.versions)}

    def _from_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._from_ids(graph_featurise(self._config, examples))

    def _rank(self, user_ids: tf.Tensor, ids: tf.Tensor, k: tf.Tensor, head: tf.Tensor) -> dict[str, tf.Tensor]:
        candidates = tf.shape(ids)[0]
        both = tf.concat([tf.tile(user_ids[None, :], [candidates, 1]), ids], axis=1)
        scores = tf.gather(tf.sigmoid(self._logits(both)), head, axis=1)
        best = tf.math.top_k(scores, k=tf.minimum(k, candidates))
        return {"index": best.indices, "scores": best.values, "version": tf.identity(self.versions)}

    def _status(self) -> dict[str, tf.Tensor]:
        return {
            "epochs": tf.identity(self.epochs),
            "versions": tf.identity(self.versions),
            "rows": tf.identity(self.rows),
            "capacity": tf.shape(self.arena, tf.int64)[0],
            "fingerprint": tf.constant(self._config.fingerprint, tf.int64),
            "heads": tf.constant([head.name for head in self._config.heads]),
        }

    def _catalogue(self, user_id: tf.Tensor) -> dict[str, tf.Tensor]:
        row = self.user_index.lookup(tf.strings.to_hash_bucket_fast(user_id[None], 1 << NAME_BITS))[0]
        known = row != ABSENT
        stored = tf.gather(self.users, tf.maximum(row, 0))
        source = next((slot.source for slot in self._config.user_slots if slot.kind == "id"), None)
        given = {} if source is None else {source: user_id[None]}
        stranger = graph_featurise_user(self._config, given)[0]
        return {
            "user_ids": tf.where(known, stored, stranger),
            "known": known,
            "item_ids": tf.identity(self.item_names),
            "ids": tf.identity(self.items),
        }

    def _logits(self, ids: tf.Tensor) -> tf.Tensor:
        # A user's ids stand in every row: each distinct id is looked up once.
        unique, inverse = tf.unique(tf.reshape(ids, [-1]))
        found = self.index.lookup(mix63_tf(unique))
        # An id of a slot unknown here, or a negative one, reads the padding row, as if it were absent.
        slot = tf.bitwise.right_shift(unique, tf.constant(SLOT_SHIFT, tf.int64))
        slot = tf.clip_by_value(slot, 0, self._default_row.size - 1)
        default = tf.gather(tf.constant(self._default_row), slot)
        rows = tf.where((found == ABSENT) | (default == 0), default, found)
        weights = tf.gather(tf.gather(self.arena, rows), inverse)
        columns = tf.reshape(weights, [-1, self._config.width, 1 + self._layout.dim])
        pooled = self._pool(ids, columns)
        dense = {name: tf.convert_to_tensor(variable) for name, variable in self.dense.items()}
        return forward(dense, pooled[:, :, 0], pooled[:, :, 1:], len(self._layout.hidden)).logits

    def _pool(self, ids: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """float32[N, W, 1 + dim] to float32[N, S, 1 + dim]: sum or mean over the ids present in a slot's columns."""
        slots = self._config.slot_order
        if self._config.width == len(slots):
            return columns
        widths = [slot.max_length for slot in slots]
        pooled = []
        parts = zip(slots, tf.split(columns, widths, axis=1), tf.split(ids, widths, axis=1), strict=True)
        for slot, part, part_ids in parts:
            total = tf.reduce_sum(part, axis=1)
            if slot.max_length > 1 and slot.pooling == "mean":
                present = tf.reduce_sum(tf.cast(part_ids != 0, tf.float32), axis=1, keepdims=True)
                total /= tf.maximum(present, 1.0)
            pooled.append(total)
        return tf.stack(pooled, axis=1)


def buckets_for(entries: int) -> int:
    """Buckets of a hash table that is at most half full with so many entries: a power of two."""
    return max(1024, 1 << (2 * entries - 1).bit_length())


def _hash_table() -> tf.lookup.experimental.DenseHashTable:
    """int64 keys of 0 or more to int64 values, `ABSENT` for others; a checkpoint brings its own buckets."""
    return tf.lookup.experimental.DenseHashTable(
        tf.int64, tf.int64, ABSENT, empty_key=EMPTY, deleted_key=DELETED, initial_num_buckets=buckets_for(0)
    )


def _variable(name: str, dtype: tf.DType, *width: int) -> tf.Variable:
    """A variable whose first dimension a checkpoint may change."""
    initial = np.zeros((1, *width), dtype.as_numpy_dtype) if dtype != tf.string else np.array([b""])
    return tf.Variable(initial, trainable=False, name=name, dtype=dtype, shape=tf.TensorShape([None, *width]))
