"""The featuriser as stock TensorFlow operations: the same ids from ``tf.Example`` inside the exported graph."""

from __future__ import annotations

import tensorflow as tf

from schemas.config import FeatureConfig
from schemas.slots import Slot

from .feature_ids import SLOT_SHIFT, VALUE_MASK
from .featuriser import MISSING, boundaries_of

_DTYPES = {"int": tf.int64, "float": tf.float32, "string": tf.string}


def graph_featurise(config: FeatureConfig, examples: tf.Tensor) -> tf.Tensor:
    """Ids int64[N, W] of serialised ``tf.Example`` string[N]; raw features by their source's name.

    Int sources are int64 lists, float ones float lists, strings bytes lists; a feature that is absent is missing.
    """
    features = {slot.source: tf.io.RaggedFeature(_DTYPES[slot.type]) for slot in config.slot_order}
    parsed = tf.io.parse_example(examples, features)
    rows = tf.size(examples)
    return tf.concat([_slot_ids(slot, parsed[slot.source], rows) for slot in config.slot_order], axis=1)


def graph_featurise_user(config: FeatureConfig, given: dict[str, tf.Tensor]) -> tf.Tensor:
    """Ids int64[N, Wu] of users of whom only some sources are known, as string[N] each; all else is missing."""
    rows = tf.size(next(iter(given.values()))) if given else tf.constant(1)
    parts = []
    for slot in config.user_slots:
        if slot.source in given:
            text = given[slot.source]
            if slot.type == "int":
                digits = tf.strings.regex_full_match(text, "[0-9]{1,18}")
                number = tf.strings.to_number(tf.where(digits, text, tf.fill(tf.shape(text), "-1")), tf.int64)
                # What is no number at all is hashed, as a number too large would be.
                values = tf.where(digits, _int_values(number), tf.strings.to_hash_bucket_fast(text, 1 << SLOT_SHIFT))
            else:
                values = tf.strings.to_hash_bucket_fast(text, 1 << SLOT_SHIFT)
            parts.append(_pack(slot, values)[:, None])
        elif slot.kind in ("bag", "text"):
            parts.append(tf.zeros([rows, slot.max_length], tf.int64))
        else:
            parts.append(tf.fill([rows, 1], tf.constant((slot.slot << SLOT_SHIFT) | MISSING, tf.int64)))
    return tf.concat(parts, axis=1)


def _slot_ids(slot: Slot, ragged: tf.RaggedTensor, rows: tf.Tensor) -> tf.Tensor:
    if slot.kind == "text":
        text = tf.strings.reduce_join(ragged, axis=-1, separator=" ")
        ragged = tf.strings.split(tf.strings.lower(text, encoding="utf-8"))
    if slot.kind in ("bag", "text"):
        flat = ragged.flat_values
        values = _int_values(flat) if slot.type == "int" else tf.strings.to_hash_bucket_fast(flat, 1 << SLOT_SHIFT)
        if slot.type == "string":
            values = tf.where(flat == "", tf.constant(MISSING, tf.int64), values)
        ids = ragged.with_flat_values(_pack(slot, values)).to_tensor(0, shape=[None, slot.max_length])
        return tf.ensure_shape(ids, [None, slot.max_length])
    present = ragged.row_lengths() > 0
    blank = tf.constant("" if slot.type == "string" else 0, _DTYPES[slot.type])
    value = ragged.to_tensor(blank, shape=[None, 1])[:, 0]
    if slot.kind in ("bucket", "log_count"):
        number = tf.cast(value, tf.float32)
        values = tf.cast(tf.raw_ops.Bucketize(input=number, boundaries=boundaries_of(slot).tolist()), tf.int64)
        present &= ~tf.math.is_nan(number)
    elif slot.type == "int":
        values = _int_values(value)
    else:
        values = tf.strings.to_hash_bucket_fast(value, 1 << SLOT_SHIFT)
        present &= value != ""
    return _pack(slot, tf.where(present, values, tf.constant(MISSING, tf.int64)))[:, None]


def _int_values(numbers: tf.Tensor) -> tf.Tensor:
    outside = (numbers < 0) | (numbers > VALUE_MASK - 1)
    return tf.where(outside, tf.strings.to_hash_bucket_fast(tf.strings.as_string(numbers), 1 << SLOT_SHIFT), numbers)


def _pack(slot: Slot, values: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_or(tf.constant(slot.slot << SLOT_SHIFT, tf.int64), values)
