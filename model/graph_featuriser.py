"""The featuriser as a graph of stock TensorFlow operations, so that a client may send raw features.

Equal to `model/featuriser.py` on the same raw values; see there for what becomes of each kind.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from model.feature_ids import MISSING_VALUE, SLOT_SHIFT
from model.raw_columns import MISSING_INT
from schemas.config import FeatureConfig, Slot

_DTYPES = {"int": tf.int64, "float": tf.float32, "string": tf.string}
_MISSING = {"int": MISSING_INT, "float": float("nan"), "string": ""}
# More digits might not fit an int64, which would fail the request; they are hashed as text in any case.
_DECIMAL = "-?[0-9]{1,18}"
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)

_Raw = Mapping[str, tf.Tensor | tf.RaggedTensor]


def graph_featurise(config: FeatureConfig, examples: tf.Tensor) -> tf.Tensor:
    """Feature ids int64[N, W] of serialised `tf.Example`, string[N].

    Features are named by source: int64, float or bytes as the source's type says, one value each but for
    bags; an absent one is missing. One of another type, or several values of a scalar, fails with
    InvalidArgumentError.
    """
    spec = {
        slot.source: tf.io.RaggedFeature(_DTYPES[slot.type])
        if slot.kind == "bag"
        else tf.io.FixedLenFeature([], _DTYPES[slot.type], _MISSING[slot.type])
        for slot in config.slots
    }
    return _featurise(config.slot_order, tf.io.parse_example(examples, spec))


def graph_featurise_user(config: FeatureConfig, given: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Feature ids int64[N, Wu] of users of whom only some ids are known, as text: string[N] by source.

    An id of type int is read from decimal text; other text, a guest's name, is hashed, so that it reads the
    slot's default row as any unknown id does. What is not given is missing; N is 1 if nothing is.
    """
    rows = tf.shape(next(iter(given.values())))[0] if given else 1
    raw: dict[str, tf.Tensor | tf.RaggedTensor] = {}
    for slot in config.user_slots:
        text = given.get(slot.source)
        if text is not None:
            raw[slot.source] = _read_text(text, slot)
        elif slot.kind == "bag":
            nothing = tf.zeros([0], _DTYPES[slot.type])
            raw[slot.source] = tf.RaggedTensor.from_row_lengths(nothing, tf.zeros([rows], tf.int64))
        else:
            raw[slot.source] = tf.fill([rows], tf.constant(_MISSING[slot.type], _DTYPES[slot.type]))
    return _featurise(config.user_slots, raw)


def _read_text(text: tf.Tensor, slot: Slot) -> tf.Tensor:
    if slot.type == "string":
        return text
    decimal = tf.strings.regex_full_match(text, _DECIMAL)
    number = tf.strings.to_number(tf.where(decimal, text, "0"), tf.int64)
    missing = tf.constant(MISSING_INT, tf.int64)
    return tf.where(decimal, number, tf.where(text == "", missing, _hashed(text)))


def _featurise(slots: Sequence[Slot], raw: _Raw) -> tf.Tensor:
    columns: dict[str, tf.Tensor] = {}
    columns |= _together(slots, raw, "int", _int_values)
    columns |= _together(slots, raw, "string", _string_values)
    for slot in slots:
        if slot.is_bag:
            columns[slot.name] = _bag(raw[slot.source], slot)
        elif slot.kind in ("bucket", "log_count"):
            columns[slot.name] = _packed(_bucket_values(raw[slot.source], slot), [slot])
    return tf.concat([columns[slot.name] for slot in slots], axis=1)


def _together(
    slots: Sequence[Slot], raw: _Raw, type_: str, values_of: Callable[[tf.Tensor], tf.Tensor]
) -> dict[str, tf.Tensor]:
    """int64[N, 1] by slot of all ids and categories of one type, computed as one matrix."""
    alike = [slot for slot in slots if slot.kind in ("id", "category") and slot.type == type_]
    if not alike:
        return {}
    packed = _packed(values_of(tf.stack([raw[slot.source] for slot in alike], axis=1)), alike)
    columns = tf.split(packed, len(alike), axis=1)
    return {slot.name: column for slot, column in zip(alike, columns, strict=True)}


def _packed(values: tf.Tensor, slots: Sequence[Slot]) -> tf.Tensor:
    prefixes = np.array([slot.slot << SLOT_SHIFT for slot in slots], np.int64)
    return tf.bitwise.bitwise_or(values, prefixes)


def _hashed(strings: tf.Tensor) -> tf.Tensor:
    return tf.strings.to_hash_bucket_fast(strings, 1 << SLOT_SHIFT)


def _int_values(whole: tf.Tensor) -> tf.Tensor:
    # Text costs more than all the rest, so only the few that need it are spelt out.
    where = tf.where((whole < 0) | (whole >= MISSING_VALUE))
    beyond = tf.gather_nd(whole, where)
    missing = tf.constant(MISSING_VALUE, tf.int64)
    values = tf.where(beyond == MISSING_INT, missing, _hashed(tf.strings.as_string(beyond)))
    return tf.tensor_scatter_nd_update(whole, where, values)


def _string_values(strings: tf.Tensor) -> tf.Tensor:
    return tf.where(strings == "", tf.constant(MISSING_VALUE, tf.int64), _hashed(strings))


def _bucket_values(numbers: tf.Tensor, slot: Slot) -> tf.Tensor:
    """int64[N, 1]."""
    missing = numbers == MISSING_INT if slot.type == "int" else tf.math.is_nan(numbers)
    numbers = tf.cast(numbers, tf.float32)
    # TensorFlow flushes subnormal numbers on some threads; here and in NumPy they are zero always.
    numbers = tf.where(tf.abs(numbers) < _SMALLEST_NORMAL, tf.zeros_like(numbers), numbers)
    bucket = tf.raw_ops.Bucketize(input=numbers, boundaries=slot.buckets.tolist())
    values = tf.where(missing, tf.constant(MISSING_VALUE, tf.int64), tf.cast(bucket, tf.int64))
    return tf.expand_dims(values, 1)


def _bag(elements: tf.Tensor | tf.RaggedTensor, slot: Slot) -> tf.Tensor:
    """int64[N, max_length]."""
    if slot.kind == "text":
        elements = tf.strings.split(tf.strings.lower(elements, encoding="utf-8"))
    else:
        present = tf.ragged.map_flat_values(tf.not_equal, elements, _MISSING[slot.type])
        elements = tf.ragged.boolean_mask(elements, present)
    kept = elements[:, : slot.max_length]
    values = _int_values(kept.values) if slot.type == "int" else _hashed(kept.values)
    return kept.with_values(_packed(values, [slot])).to_tensor(default_value=0, shape=[None, slot.max_length])
