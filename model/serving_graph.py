"""The serving copy as a graph of stock TensorFlow operations, so that an unmodified TF Serving loads it.

Rows lie in one variable, the arena: first the padding row, then the slots' default rows, then live rows. A stock
DenseHashTable leads from a key, mixed by a bijection (packed ids as they are would crowd its buckets), to its arena row; a
miss reads its slot's default row. Both are sized at export for more rows than there are: neither ever grows.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import tensorflow as tf

from schemas.config import FeatureConfig

from .catalogue import Entries
from .deepfm import DenseLayout, forward
from .feature_ids import SLOT_SHIFT, hash_strings, mix63, mix63_tf
from .graph_featuriser import graph_featurise, graph_featurise_user

ABSENT = -1


class ServingArrays(TypedDict):
    """What a serving copy is filled with.

    keys int64[R] (live rows, no defaults), rows float32[R, 1 + dim], defaults float32[S, 1 + dim] in slot order,
    dense by name, versions and epochs int64[shards].
    """

    keys: np.ndarray
    rows: np.ndarray
    defaults: np.ndarray
    dense: dict[str, np.ndarray]
    versions: np.ndarray
    epochs: np.ndarray


class ServingModel(tf.Module):
    """The model as it is served.

    Args:
        config: feature configuration.
        arrays: parameters.
        users, items: the catalogue.
    """

    def __init__(self, config: FeatureConfig, arrays: ServingArrays, users: Entries, items: Entries) -> None:
        super().__init__(name="freshet")
        self._config = config
        self._layout = DenseLayout.of(config)
        first_live = 1 + config.num_slots
        live = len(arrays["keys"])
        self._capacity = first_live + max(1024, 1 << int(2 * live).bit_length())
        arena = np.zeros((self._capacity, 1 + config.model.dim), np.float32)
        arena[1:first_live] = arrays["defaults"]
        arena[first_live : first_live + live] = arrays["rows"]
        self.arena = tf.Variable(arena, trainable=False, name="arena")
        self.index = _table(self._capacity)
        self.index.insert(mix63(arrays["keys"]), np.arange(first_live, first_live + live))
        self.rows = tf.Variable(np.int64(live), trainable=False, name="rows")
        self.dense = {name: tf.Variable(a, trainable=False, name=name) for name, a in arrays["dense"].items()}
        self.versions = tf.Variable(arrays["versions"], trainable=False, name="versions")
        self.epochs = tf.Variable(arrays["epochs"], trainable=False, name="epochs")
        self.users = tf.Variable(np.concatenate([np.zeros((1, config.user_width), np.int64), users.ids]), trainable=False)
        self.user_index = _table(2 * len(users.names) + 1024)
        self.user_index.insert(hash_strings(users.names, bits=62), np.arange(1, 1 + len(users.names)))
        self.item_names = tf.Variable(tf.constant(items.names, tf.string), trainable=False)
        self.items = tf.Variable(items.ids, trainable=False)
        slots = [slot.slot for slot in config.slot_order]
        default_row = np.zeros(max(slots) + 2, np.int64)
        default_row[slots] = np.arange(1, first_live)
        self._default_row = default_row

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
            "capacity": tf.constant(self._capacity, tf.int64),
            "heads": tf.constant([head.name for head in self._config.heads]),
        }

    def _catalogue(self, user_id: tf.Tensor) -> dict[str, tf.Tensor]:
        row = self.user_index.lookup(tf.strings.to_hash_bucket_fast(user_id[None], 2**62))[0]
        known = row >= 0
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
        slot = tf.clip_by_value(
            tf.bitwise.right_shift(unique, tf.constant(SLOT_SHIFT, tf.int64)), 0, self._default_row.size - 1
        )
        rows = tf.where(found == ABSENT, tf.gather(tf.constant(self._default_row), slot), found)
        rows = tf.where(unique == 0, tf.zeros_like(rows), rows)
        columns = tf.reshape(tf.gather(tf.gather(self.arena, rows), inverse), [-1, self._config.width, 1 + self._layout.dim])
        dense = {name: tf.convert_to_tensor(variable) for name, variable in self.dense.items()}
        return forward(dense, self._pool(ids, columns), len(self._layout.hidden))

    def _pool(self, ids: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """float32[N, W, 1 + dim] to float32[N, S, 1 + dim]: sum or mean over the ids present in a slot's columns."""
        widths = [slot.max_length for slot in self._config.slot_order]
        pooled = []
        parts = zip(self._config.slot_order, tf.split(columns, widths, axis=1), tf.split(ids, widths, axis=1), strict=True)
        for slot, part, part_ids in parts:
            total = tf.reduce_sum(part, axis=1)
            if slot.max_length > 1 and slot.pooling == "mean":
                present = tf.reduce_sum(tf.cast(part_ids != 0, tf.float32), axis=1, keepdims=True)
                total /= tf.maximum(present, 1.0)
            pooled.append(total)
        return tf.stack(pooled, axis=1)


def _table(entries: int) -> tf.lookup.experimental.DenseHashTable:
    """Sized so that it stays at most half full."""
    buckets = 1 << int(2 * entries).bit_length()
    return tf.lookup.experimental.DenseHashTable(
        tf.int64, tf.int64, default_value=ABSENT, empty_key=-1, deleted_key=-2, initial_num_buckets=buckets
    )
