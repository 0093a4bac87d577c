"""Raw features to feature ids, a batch at a time: the one featuriser that training, serving and tests share.

Columns of a side follow its slots, ``max_length`` columns each. A scalar that is missing (None, NaN, an empty string) has
its slot's own id, value 2^48 - 1; an empty bag has none. Numbers become float32 before they are bucketised, and strings are
hashed and split by the TensorFlow operations that the exported graph uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numba import njit

from schemas.config import FeatureConfig
from schemas.slots import LOG_COUNT_BOUNDARIES, ConfigError, Side, Slot

from .feature_ids import SLOT_SHIFT, VALUE_MASK, hash_strings, pack_ids

#: Value of a scalar that is missing.
MISSING = VALUE_MASK


class Featuriser:
    """Batches of raw columns to id matrices, and id matrices to the packed bytes of the logs.

    Args:
        config: feature configuration.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self._config = config
        self._layout = {side: _layout(config.slots_of(side)) for side in ("user", "item")}

    def featurise(self, columns: Mapping[str, Any], side: Side | None = None) -> np.ndarray:
        """Ids int64[N, W] of a side's slots (of all, user first, when ``side`` is None).

        Args:
            columns: raw values by source, N each: numbers, strings, or lists of them for bags.

        Raises:
            ConfigError: if a source is absent or holds another type than the configuration says.
        """
        slots = self._config.slots_of(side)
        parts = []
        for slot in slots:
            if slot.source not in columns:
                raise ConfigError(f"slot {slot.name!r}: no column {slot.source!r} among the raw features; add it")
            parts.append(_slot_ids(slot, columns[slot.source]))
        return np.concatenate(parts, axis=1)

    def pack(self, ids: np.ndarray) -> list[bytes]:
        """Rows of int64[N, W] as ragged bytes: the ids that are present, little-endian."""
        present = ids != 0
        flat = np.ascontiguousarray(ids[present], "<i8").tobytes()
        ends = np.cumsum(8 * present.sum(axis=1)).tolist()
        return [flat[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def unpack(self, packed: Sequence[bytes], side: Side) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of :meth:`pack` for one side.

        Returns:
            ids int64[N, W] and bool[N], true for rows that are no packed ids of this side: bytes left over, an unknown
            slot, more ids of a slot than it has columns.
        """
        first, lengths = self._layout[side]
        sizes = np.fromiter((len(row) for row in packed), np.int64, len(packed))
        bad = sizes % 8 != 0
        rows = [b"" if b else row for row, b in zip(packed, bad.tolist(), strict=True)] if bad.any() else packed
        values = np.frombuffer(b"".join(rows), "<i8")
        counts = np.where(bad, 0, sizes // 8)
        ids = np.zeros((len(packed), int(lengths.sum())), np.int64)
        _spread(values, counts, first, lengths, ids, bad)
        return ids, bad


def _layout(slots: Sequence[Slot]) -> tuple[np.ndarray, np.ndarray]:
    """First column and columns by slot number; 0 columns for numbers of no slot."""
    first = np.zeros(max((slot.slot for slot in slots), default=0) + 1, np.int64)
    lengths = np.zeros_like(first)
    at = 0
    for slot in slots:
        first[slot.slot], lengths[slot.slot] = at, slot.max_length
        at += slot.max_length
    return first, lengths


@njit(nogil=True, cache=True)
def _spread(values, counts, first, lengths, ids, bad):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Put each row's ids into their slots' columns."""
    at = 0
    for i in range(counts.size):
        for k in range(at, at + counts[i]):
            slot = values[k] >> SLOT_SHIFT
            if slot <= 0 or slot >= first.size or lengths[slot] == 0:
                bad[i] = True
                continue
            c = first[slot]
            end = c + lengths[slot]
            while c < end and ids[i, c] != 0:
                c += 1
            if c == end:
                bad[i] = True
            else:
                ids[i, c] = values[k]
        at += counts[i]


def _slot_ids(slot: Slot, column: Any) -> np.ndarray:
    """int64[N, max_length]."""
    if slot.kind == "text":
        return _bag_ids(slot, _words(column))
    if slot.kind == "bag":
        return _bag_ids(slot, [[] if bag is None else list(bag) for bag in column])
    if slot.kind in ("bucket", "log_count"):
        values = _buckets(slot, column)
    elif slot.type == "int":
        values = _int_values(slot, column)
    else:
        values = _string_values(slot, column)
    return pack_ids(slot.slot, values)[:, None]


def boundaries_of(slot: Slot) -> np.ndarray:
    """float32 boundaries of a number's buckets."""
    return LOG_COUNT_BOUNDARIES if slot.kind == "log_count" else np.asarray(slot.boundaries, np.float32)


def _buckets(slot: Slot, column: Any) -> np.ndarray:
    try:
        numbers = np.array([np.nan if x is None else x for x in column], np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"slot {slot.name!r}: {slot.source!r} holds something that is not a number: {error}") from error
    values = np.searchsorted(boundaries_of(slot), numbers, side="right").astype(np.int64)
    return np.where(np.isnan(numbers), MISSING, values)


def _int_values(slot: Slot, column: Any) -> np.ndarray:
    array = np.asarray(column)
    missing = np.zeros(len(array), bool)
    if array.dtype.kind not in "iu":
        array = np.asarray(column, object)
        missing = np.array([x is None or (isinstance(x, float) and np.isnan(x)) for x in array], bool)
        wrong = [x for x in array[~missing] if isinstance(x, bool | str | bytes) or int(x) != x]
        if wrong:
            raise ConfigError(f"slot {slot.name!r}: {slot.source!r} is of type int but holds {wrong[0]!r}; convert it, or say string")
        array = np.array([0 if m else int(x) for x, m in zip(array, missing, strict=True)], object)
    outside = (array < 0) | (array > VALUE_MASK - 1)
    values = np.where(outside, 0, array).astype(np.int64)
    if outside.any():
        values[outside.astype(bool)] = hash_strings([str(x) for x in array[outside.astype(bool)]])
    return np.where(missing, MISSING, values)


def _string_values(slot: Slot, column: Any) -> np.ndarray:
    array = np.asarray(column, object)
    missing = np.array([x is None or x != x or x == "" for x in array], bool)
    wrong = [x for x in array[~missing] if not isinstance(x, str | bytes)]
    if wrong:
        raise ConfigError(f"slot {slot.name!r}: {slot.source!r} is of type string but holds {wrong[0]!r}; convert it, or say int")
    values = np.full(len(array), MISSING, np.int64)
    values[~missing] = hash_strings(array[~missing])
    return values


def _words(column: Any) -> list[list[bytes]]:
    texts = tf.constant(["" if x is None or x != x else x for x in column], tf.string)
    words = tf.strings.split(tf.strings.lower(texts, encoding="utf-8"))
    return [row.tolist() for row in words.numpy()] if words.shape[0] else []


def _bag_ids(slot: Slot, bags: list[list[Any]]) -> np.ndarray:
    """The first ``max_length`` members of each bag."""
    kept = [bag[: slot.max_length] for bag in bags]
    flat = [member for bag in kept for member in bag]
    values = _int_values(slot, flat) if slot.type == "int" else _string_values(slot, flat)
    ids = np.zeros((len(kept), slot.max_length), np.int64)
    counts = np.fromiter((len(bag) for bag in kept), np.int64, len(kept))
    ids[np.arange(slot.max_length) < counts[:, None]] = pack_ids(slot.slot, values)
    return ids
