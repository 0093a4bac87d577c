"""Raw features to feature ids, batch-wise, and ids to and from the bytes that the features log holds.

Training, serving and tests share it; `model/graph_featuriser.py` does the same in a graph, and a test keeps
the two equal.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from numba import njit
from numpy.typing import NDArray

from model.feature_ids import MISSING_VALUE, SLOT_SHIFT, hash_strings, pack_ids
from model.raw_columns import MISSING_INT, Column, bag_column, float_column, int_column, string_column
from schemas.config import ConfigError, FeatureConfig, Side, Slot


class Featuriser:
    """Feature ids of raw columns by a feature configuration.

    | kind | value (48 bits) of an id |
    |---|---|
    | id, category | an integer in [0, 2^48 - 1) as it is; other integers hashed as decimal text; strings hashed |
    | bucket, log_count | the number of boundaries at or below the number as float32 |
    | bag | as id, for each of the first `max_length` elements that are not missing |
    | text | hashes of the first `max_length` words: lower-cased, split on white space |

    Missing (None, NaN, "") is value 2^48 - 1 of a scalar slot, and no id at all in a bag.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self._config = config
        self._layouts = {side: _Layout(config.slots_of(side)) for side in (None, "user", "item")}

    def featurise(self, columns: Mapping[str, Column], side: Side | None) -> NDArray[np.int64]:
        """Feature ids int64[N, W_side] of raw columns by source name; `side` None means both sides.

        Raises:
            ConfigError: a source is missing, of the wrong type, or of another length than the others.
        """
        layout = self._layouts[side]
        for slot in layout.slots:
            if slot.source not in columns:
                raise ConfigError(
                    f"slot {slot.name!r}: source {slot.source!r} is not among the columns: "
                    "add it, with None where a value is missing"
                )
        rows = len(columns[layout.slots[0].source])
        ids = np.zeros((rows, layout.width), np.int64)
        for slot, start in zip(layout.slots, layout.starts, strict=True):
            values = columns[slot.source]
            if len(values) != rows:
                raise ConfigError(
                    f"slot {slot.name!r}: source {slot.source!r} has {len(values)} rows where the first "
                    f"has {rows}: give all columns the same length"
                )
            if slot.is_bag:
                _fill_bag(ids[:, start : start + slot.max_length], values, slot)
            else:
                ids[:, start] = pack_ids(slot.slot, _scalar_values(values, slot))
        return ids

    def pack(self, ids: NDArray[np.int64]) -> list[bytes]:
        """Each row's ids (int64[N, W]) without padding, int64 little-endian: what the features log holds."""
        present = ids != 0
        packed = ids[present].astype("<i8").tobytes()
        edges = np.concatenate([[0], np.cumsum(8 * np.count_nonzero(present, axis=1))]).tolist()
        return [packed[start:end] for start, end in pairwise(edges)]

    def unpack(self, packed: pa.BinaryArray, side: Side | None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Packed ids (binary[N], without nulls) to (ids int64[N, W_side], bad bool[N]); a slot without an id is padding.

        A row is bad, and all padding, if it is not a whole number of int64, names a slot that the side lacks,
        or has more ids of a slot than its `max_length`.
        """
        layout = self._layouts[side]
        sizes = pc.binary_length(packed).to_numpy()
        bad = sizes % 8 != 0
        if bad.any():
            packed = pc.if_else(pa.array(bad), pa.scalar(b""), packed)
            sizes = np.where(bad, 0, sizes)
        ids = np.zeros((len(packed), layout.width), np.int64)
        _scatter_rows(_joined_ids(packed), sizes // 8, layout.first_column, layout.end_column, ids, bad)
        return ids, bad


def _joined_ids(packed: pa.BinaryArray) -> NDArray[np.int64]:
    """What whole rows hold, one behind the other."""
    _, offsets, values = packed.buffers()
    if values is None or not len(packed):
        return np.zeros(0, np.int64)
    edges = np.frombuffer(offsets, np.int32)[[packed.offset, packed.offset + len(packed)]]
    # A copy: values need not lie where an int64 may.
    return np.frombuffer(values, np.uint8)[edges[0] : edges[1]].copy().view("<i8")


class _Layout:
    """Where the slots of a side lie in its columns."""

    def __init__(self, slots: tuple[Slot, ...]) -> None:
        lengths = [slot.max_length for slot in slots]
        self.slots = slots
        self.width = sum(lengths)
        self.starts = [sum(lengths[:i]) for i in range(len(slots))]
        # By slot number; a slot the side lacks has no columns.
        self.first_column = np.zeros(1 + max(slot.slot for slot in slots), np.int32)
        self.end_column = self.first_column.copy()
        for slot, start in zip(slots, self.starts, strict=True):
            self.first_column[slot.slot] = start
            self.end_column[slot.slot] = start + slot.max_length


def _scalar_values(values: Column, slot: Slot) -> NDArray[np.int64]:
    """int64[N]: the 48-bit value of each row."""
    if slot.kind in ("bucket", "log_count"):
        return _bucket_values(values, slot)
    return _int_values(int_column(values, slot)) if slot.type == "int" else _string_values(values, slot)


def _bucket_values(values: Column, slot: Slot) -> NDArray[np.int64]:
    if slot.type == "int":
        whole = int_column(values, slot)
        numbers, missing = whole.astype(np.float32), whole == MISSING_INT
    else:
        numbers = float_column(values, slot)
        missing = np.isnan(numbers)
    # TensorFlow flushes subnormal numbers on some threads; here and in the graph they are zero always.
    numbers = np.where(np.abs(numbers) < np.finfo(np.float32).tiny, np.float32(0), numbers)
    return np.where(missing, MISSING_VALUE, np.searchsorted(slot.buckets, numbers, side="right"))


def _int_values(whole: NDArray[np.int64]) -> NDArray[np.int64]:
    beyond = (whole < 0) | (whole >= MISSING_VALUE)
    if not beyond.any():
        return whole
    values = whole.copy()
    unlike, where = np.unique(whole[beyond], return_inverse=True)
    hashed = hash_strings(list(map(str, unlike.tolist())))
    values[beyond] = np.where(unlike == MISSING_INT, MISSING_VALUE, hashed)[where]
    return values


def _string_values(values: Column, slot: Slot) -> NDArray[np.int64]:
    strings = string_column(values, slot)
    return np.where(_is_empty(strings), MISSING_VALUE, _hashed(_tensor(strings, slot)))


def _is_empty(strings: NDArray[np.object_]) -> NDArray[np.bool_]:
    return np.fromiter(map(len, strings), np.int64, len(strings)) == 0


def _tensor(strings: NDArray[np.object_], slot: Slot) -> tf.Tensor:
    try:
        return tf.constant(strings, tf.string)
    except ValueError as error:
        raise ConfigError(
            f"slot {slot.name!r}: source {slot.source!r} holds a string that UTF-8 cannot spell: "
            "give strings without lone surrogates"
        ) from error


def _hashed(strings: tf.Tensor) -> NDArray[np.int64]:
    return tf.strings.to_hash_bucket_fast(strings, 1 << SLOT_SHIFT).numpy()


def _fill_bag(columns: NDArray[np.int64], values: Column, slot: Slot) -> None:
    """Write ids into `columns`, int64[N, max_length], a view that is all padding."""
    rows, elements = _words(values, slot) if slot.kind == "text" else _elements(values, slot)
    counts = np.bincount(rows, minlength=len(columns))
    place = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    fits = place < slot.max_length
    columns[rows[fits], place[fits]] = pack_ids(slot.slot, elements[fits])


def _elements(values: Column, slot: Slot) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row int64[E], value int64[E]) of the elements of all bags that are not missing, in order."""
    flat, lengths = bag_column(values, slot)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    if slot.type == "int":
        whole = int_column(flat, slot)
        present = whole != MISSING_INT
        return rows[present], _int_values(whole[present])
    strings = string_column(flat, slot)
    present = ~_is_empty(strings)
    return rows[present], _hashed(_tensor(strings[present], slot))


def _words(values: Column, slot: Slot) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same of the words of texts, by the operations that the graph uses."""
    texts = tf.strings.lower(_tensor(string_column(values, slot), slot), encoding="utf-8")
    words = tf.strings.split(texts)
    return words.value_rowids().numpy(), _hashed(words.values)


@njit(nogil=True, cache=True)
def _scatter_rows(flat, counts, first_column, end_column, ids, bad):  # type: ignore[no-untyped-def]
    at = 0
    for row in range(counts.size):
        for i in range(at, at + counts[row]):
            slot = flat[i] >> SLOT_SHIFT
            if slot <= 0 or slot >= first_column.size:
                bad[row] = True
                break
            column, end = first_column[slot], end_column[slot]
            while column < end and ids[row, column] != 0:
                column += 1
            if column == end:
                bad[row] = True
                break
            ids[row, column] = flat[i]
        if bad[row]:
            ids[row] = 0
        at += counts[row]
