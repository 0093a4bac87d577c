"""From the records of one log partition to rows of events: checked, packed, in the partition's order.

What breaks the schema or cannot be true becomes a fault row with its reason and raw bytes; nothing is raised and nothing
is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.feature_ids import hash_strings
from model.featuriser import Featuriser
from schemas.config import FeatureConfig
from schemas.log_files import Chunk
from schemas.records import Records
from schemas.slots import Side

from .batches import EVENTS, Kind, empty_events

#: Raw bytes kept of what cannot be used: enough to see what it was.
RAW_LIMIT = 64 << 10
#: The end of the year 9999: a time beyond it is not in milliseconds.
MAX_TIME_MS = 253_402_300_799_999
_HASH_BITS = 62

Reasons: TypeAlias = list[str | None]
Texts: TypeAlias = Sequence[str] | pa.StringArray


def row_keys(user_id: Texts, request_id: Texts, item_id: Texts) -> np.ndarray:
    """62-bit hashes of (user, request, item): int64[N]. Two of n waiting rows meet with probability n^2 / 2^63.

    The user is part of it because the logs are keyed by user: another user's action would be in another shard's log.
    """
    parts = (pa.array(part, pa.string()) if not isinstance(part, pa.Array) else part for part in (user_id, request_id, item_id))
    joined = pc.binary_join_element_wise(*parts, "\x1f")
    return hash_strings(joined.cast(pa.binary()).to_numpy(zero_copy_only=False), bits=_HASH_BITS)


class FeaturesDecoder:
    """Features records to one row a video.

    Args:
        config: the feature configuration that ids are checked against.
    """

    topic = "features"

    def __init__(self, config: FeatureConfig) -> None:
        self._config = config
        self._featuriser = Featuriser(config)
        #: Columns of slots that always have an id in a record of this very configuration.
        self._required = {side: self._scalar_columns(side) for side in ("user", "item")}

    def _scalar_columns(self, side: Side) -> np.ndarray:
        slots = self._config.user_slots if side == "user" else self._config.item_slots
        columns, at = [], 0
        for slot in slots:
            if slot.kind not in ("bag", "text"):
                columns.append(at)
            at += slot.max_length
        return np.array(columns, np.int64)

    def events(self, records: Records, offsets: np.ndarray, partition: int, reasons: Reasons) -> pa.RecordBatch:
        """Rows of all videos of all records, faults included, in order; ``reasons`` why are added to."""
        columns = records.columns
        items = columns.items
        assert items is not None
        n, counts = len(records), columns.counts("items")
        user_ids, user_bad = self._featuriser.unpack(columns.binary("user_ids"), "user")
        item_ids, item_bad = self._featuriser.unpack(items.binary("ids"), "item")
        request_id, user_id, item_id = columns.strings("request_id"), columns.strings("user_id"), items.strings("item_id")
        owner = np.repeat(np.arange(n), counts)
        fingerprints = columns.longs("fingerprint")
        current = fingerprints == self._config.fingerprint
        known = np.isin(fingerprints, list(self._config.readable_fingerprints))
        missing_user = (user_ids[:, self._required["user"]] == 0).any(axis=1)
        missing_item = (item_ids[:, self._required["item"]] == 0).any(axis=1)
        _blame(reasons, ~known, "written with another feature configuration")
        _blame(reasons, user_bad, "user_ids are not packed feature ids of this configuration")
        _blame(reasons, missing_user & current, "a user feature is missing")
        _blame(reasons, _any_of(item_bad, owner, n), "an item's ids are not packed feature ids of this configuration")
        _blame(reasons, _any_of(missing_item & current[owner], owner, n), "an item's feature is missing")
        _blame(reasons, _empty(request_id) | _empty(user_id), "no request id or user id")
        _blame(reasons, counts == 0, "a request without items")
        _blame(reasons, _any_of(_empty(item_id), owner, n), "an item without an id")
        _blame(reasons, _bad_scores(columns.binary("scores"), counts), "scores are not finite float32[items, heads]")
        times = columns.longs("time_ms")
        _blame_times(reasons, times)
        bad = np.array([reason is not None for reason in reasons], bool)
        good = ~bad[owner]
        rows = owner[good]
        ids = np.concatenate([user_ids[rows], item_ids[good]], axis=1)
        request_id, user_id, item_id = request_id.take(rows), user_id.take(rows), item_id.filter(pa.array(good))
        events = _events(Kind.FEATURES, partition, offsets[rows], times[rows], request_id, user_id, item_id, ids=ids)
        return _with_faults(events, records, reasons, offsets, partition)


class ActionsDecoder:
    """Actions records to one row each."""

    topic = "actions"

    def __init__(self, actions: Sequence[str]) -> None:
        self._actions = pa.array(actions, pa.string())

    def events(self, records: Records, offsets: np.ndarray, partition: int, reasons: Reasons) -> pa.RecordBatch:
        """Rows of all records, faults included, in order; ``reasons`` why are added to."""
        columns = records.columns
        ids = [columns.strings(name) for name in ("request_id", "user_id", "item_id")]
        empty = np.logical_or.reduce([_empty(each) for each in ids])
        _blame(reasons, empty, "no request id, user id or item id")
        value, times = columns.doubles("value"), columns.longs("time_ms")
        _blame(reasons, ~pc.is_finite(value).fill_null(True).to_numpy(zero_copy_only=False), "value is not finite")
        _blame_times(reasons, times)
        good = np.flatnonzero([reason is None for reason in reasons])
        request_id, user_id, item_id = (each.take(good) for each in ids)
        action = pc.index_in(columns.strings("action").take(good), self._actions).fill_null(-1).cast(pa.int8())
        rows = Kind.ACTION, partition, offsets[good], times[good], request_id, user_id, item_id
        return _with_faults(_events(*rows, action=action, value=value.take(good)), records, reasons, offsets, partition)


Decoder = FeaturesDecoder | ActionsDecoder


def decode_chunk(decoder: Decoder, chunk: Chunk, partition: int, reasons: Reasons) -> pa.RecordBatch:
    """Events of a chunk of a partition's log: its records and its unreadable stretches, in order of offset.

    Args:
        decoder: of the log's topic.
        chunk: what was read.
        partition: number that the events carry.
        reasons: by record, why it cannot be used, if that is known already.

    ``order_ms`` is not set yet: it needs the events before.
    """
    events = decoder.events(chunk.records, chunk.offsets, partition, reasons) if len(chunk.records) else empty_events()
    if not chunk.faults:
        return events
    faults = fault_events(
        partition, [f.offset for f in chunk.faults], [f.reason for f in chunk.faults], [f.raw[:RAW_LIMIT] for f in chunk.faults]
    )
    both = pa.Table.from_batches([events, faults]).combine_chunks().to_batches()[0]
    return both.take(pa.array(np.argsort(both.column("offset").to_numpy(), kind="stable")))


def fault_events(partition: int, offsets: Sequence[int], reasons: Sequence[str], raw: Sequence[bytes]) -> pa.RecordBatch:
    """Fault rows."""
    n = len(offsets)
    none = np.zeros(n, np.int64)
    no_text = pa.array([""] * n, pa.string())
    events = _events(Kind.FAULT, partition, np.array(offsets, np.int64), none - 1, no_text, no_text, no_text)
    return _replace(events, reason=pa.array(reasons, pa.string()), raw=pa.array(raw, pa.binary()))


def _events(
    kind: Kind, partition: int, offsets: np.ndarray, times: np.ndarray,
    request: pa.StringArray, user: pa.StringArray, item: pa.StringArray,
    *, ids: np.ndarray | None = None, action: pa.Int8Array | None = None, value: pa.DoubleArray | None = None,
) -> pa.RecordBatch:  # fmt: skip
    n = len(request)
    width = 0 if ids is None else ids.shape[1]
    values = np.zeros(0, np.int64) if ids is None else np.ascontiguousarray(ids).reshape(-1)
    keys = row_keys(user, request, item) if n and kind is not Kind.FAULT else np.zeros(n, np.int64)
    columns = [
        pa.array(np.full(n, kind, np.int8)),
        pa.array(np.full(n, partition, np.int16)),
        pa.array(offsets.astype(np.int64)),
        pa.array(times),
        pa.array(times),
        pa.array(keys),
        pa.array(np.full(n, -1, np.int8)) if action is None else action,
        request,
        user,
        item,
        pa.nulls(n, pa.float64()) if value is None else value,
        pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * width), pa.array(values)),
        pa.nulls(n, pa.string()),
        pa.nulls(n, pa.binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=EVENTS)


def _with_faults(
    events: pa.RecordBatch, records: Records, reasons: Reasons, offsets: np.ndarray, partition: int
) -> pa.RecordBatch:
    bad = [i for i, reason in enumerate(reasons) if reason is not None]
    if not bad:
        return events
    faults = fault_events(
        partition,
        offsets[bad].tolist(),
        [str(reasons[i]) for i in bad],
        [records.body(i)[:RAW_LIMIT] for i in bad],
    )
    both = pa.Table.from_batches([events, faults]).combine_chunks().to_batches()[0]
    return both.take(pa.array(np.argsort(both.column("offset").to_numpy(), kind="stable")))


def _replace(events: pa.RecordBatch, **columns: pa.Array) -> pa.RecordBatch:
    for name, column in columns.items():
        events = events.set_column(EVENTS.get_field_index(name), EVENTS.field(name), column)
    return events


def _blame_times(reasons: Reasons, times: np.ndarray) -> None:
    _blame(reasons, times < 0, "negative time")
    _blame(reasons, times > MAX_TIME_MS, "a time beyond the year 9999: times are in milliseconds")


def _blame(reasons: Reasons, where: np.ndarray, reason: str) -> None:
    for i in np.flatnonzero(where):
        if reasons[i] is None:
            reasons[i] = reason


def _any_of(bad: np.ndarray, owner: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(owner[bad], minlength=n) > 0


def _empty(texts: pa.StringArray) -> np.ndarray:
    return pc.binary_length(texts).to_numpy() == 0


def _bad_scores(scores: pa.BinaryArray, counts: np.ndarray) -> np.ndarray:
    """Which records' scores are there and are no finite float32[items, heads]: bool[N]."""
    sizes = pc.binary_length(scores).fill_null(0).to_numpy()
    there = scores.is_valid().to_numpy(zero_copy_only=False)
    bad = there & ((sizes % 4 != 0) | (counts == 0) | (sizes // 4 % np.maximum(counts, 1) != 0))
    whole = np.flatnonzero(there & ~bad)
    values = np.frombuffer(b"".join(scores.take(whole).to_pylist()), "<f4")
    return bad | _any_of(~np.isfinite(values), np.repeat(whole, sizes[whole] // 4), counts.size)
