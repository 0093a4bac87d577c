"""A small model with Freshet's signatures, of stock ops only, and what it must answer, in NumPy."""

import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

USER_WIDTH = 2
ITEM_WIDTH = 3
WIDTH = USER_WIDTH + ITEM_WIDTH
HEADS = ("click", "long_view")
ITEMS = 40
KEYS = 500  # ids 1 to 500 have a row; any other reads the default row, 0


def item_name(number: int) -> str:
    return f"vidéo-{number}"


def item_ids(number: int) -> np.ndarray:
    return 1 + (number * 7 + np.arange(ITEM_WIDTH)) % KEYS


def user_ids(number: int) -> np.ndarray:
    return 1 + (number * 11 + np.arange(USER_WIDTH)) % KEYS


def arena(step: int) -> np.ndarray:
    """Weights that differ from step to step, so that an answer shows which version gave it."""
    values = np.random.default_rng(step).normal(0, 0.5, (KEYS + 1, len(HEADS)))
    return values.astype(np.float32)


def expected_scores(ids: np.ndarray, step: int) -> np.ndarray:
    rows = np.where((ids >= 1) & (ids <= KEYS), ids, 0)
    return 1 / (1 + np.exp(-arena(step)[rows].sum(axis=1)))


class SmallModel(tf.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.arena = tf.Variable(arena(step))
        self.step = tf.Variable([step], dtype=tf.int64)
        self.index = tf.lookup.experimental.DenseHashTable(
            tf.int64, tf.int32, 0, empty_key=-1, deleted_key=-2, initial_num_buckets=2048
        )
        self.index.insert(tf.range(1, KEYS + 1, dtype=tf.int64), tf.range(1, KEYS + 1))
        self.items = tf.constant([item_name(n) for n in range(ITEMS)])
        self.items_ids = tf.constant(np.stack([item_ids(n) for n in range(ITEMS)]))

    def scores(self, ids: tf.Tensor) -> tf.Tensor:
        rows = tf.reshape(self.index.lookup(tf.reshape(ids, [-1])), tf.shape(ids))
        return tf.sigmoid(tf.reduce_sum(tf.gather(self.arena, rows), axis=1))

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], tf.int64, "ids")])
    def predict(self, ids):
        return {"scores": self.scores(ids), "version": tf.identity(self.step)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
    def examples(self, examples):
        spec = {"ids": tf.io.FixedLenFeature([WIDTH], tf.int64, default_value=[0] * WIDTH)}
        return self.predict(tf.io.parse_example(examples, spec)["ids"])

    @tf.function(
        input_signature=[
            tf.TensorSpec([USER_WIDTH], tf.int64, "user_ids"),
            tf.TensorSpec([None, ITEM_WIDTH], tf.int64, "ids"),
            tf.TensorSpec([], tf.int32, "k"),
            tf.TensorSpec([], tf.int32, "head"),
        ]
    )
    def rank(self, user_ids, ids, k, head):
        users = tf.tile(user_ids[tf.newaxis], [tf.shape(ids)[0], 1])
        scores = tf.gather(self.scores(tf.concat([users, ids], axis=1)), head, axis=1)
        best, index = tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[0]))
        return {"index": index, "scores": best, "version": tf.identity(self.step)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, "user_id")])
    def catalogue(self, user_id):
        known = tf.strings.regex_full_match(user_id, "u[0-9]+")
        number = tf.cond(
            known,
            lambda: tf.strings.to_number(tf.strings.substr(user_id, 1, -1), tf.int64),
            lambda: tf.constant(0, tf.int64),
        )
        ids = 1 + (number * 11 + tf.range(USER_WIDTH, dtype=tf.int64)) % KEYS
        return {
            "user_ids": tf.where(known, ids, tf.zeros_like(ids)),
            "known": known,
            "item_ids": tf.identity(self.items),
            "ids": tf.identity(self.items_ids),
        }

    @tf.function(input_signature=[])
    def status(self):
        return {"heads": tf.constant(HEADS), "versions": tf.identity(self.step)}


def save(path: Path, step: int) -> Path:
    """Write the model of `step` to `path`, a version folder."""
    model = SmallModel(step)
    signatures = {
        "serving_default": model.examples,
        "predict": model.predict,
        "rank": model.rank,
        "catalogue": model.catalogue,
        "status": model.status,
    }
    tf.saved_model.save(model, str(path), signatures=signatures)
    return path


def publish(source: Path, model_dir: Path, version: int) -> Path:
    """Copy a written model to its version folder as the exporter does: aside first, then renamed."""
    aside = model_dir / f".{version}.tmp"
    shutil.copytree(source, aside)
    return aside.rename(model_dir / str(version))
