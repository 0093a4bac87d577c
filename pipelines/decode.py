"""From the records of one log partition to rows of events: checked, packed, in the partition's order.

What breaks the schema or cannot be true becomes a fault row with its reason and raw bytes; nothing is raised and nothing
is dropped. The only Python loops are those over the records that Avro hands out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from model.feature_ids import hash_strings
from model.featuriser import Featuriser
from schemas.avro import encode_body
from schemas.config import FeatureConfig
from schemas.log_files import Chunk
from schemas.slots import Side

from .batches import EVENTS, Kind, empty_events

#: Raw bytes kept of what cannot be used: enough to see what it was.
RAW_LIMIT = 64 << 10
#: The end of the year 9999: a time beyond it is not in milliseconds.
MAX_TIME_MS = 253_402_300_799_999
_HASH_BITS = 62

Record = dict[str, Any]
Reasons = list[str | None]


def row_keys(user_id: Sequence[str], request_id: Sequence[str], item_id: Sequence[str]) -> np.ndarray:
    """62-bit hashes of (user, request, item): int64[N]. Two of n waiting rows meet with probability n^2 / 2^63.

    The user is part of it because the logs are keyed by user: another user's action would be in another shard's log.
    """
    parts = zip(user_id, request_id, item_id, strict=True)
    return hash_strings(["\x1f".join(part) for part in parts], bits=_HASH_BITS)


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

    def events(self, records: list[Record], offsets: np.ndarray, partition: int, reasons: Reasons) -> pa.RecordBatch:
        """Rows of all videos of all records, faults included, in order; ``reasons`` why are added to."""
        user_ids, user_bad = self._unpack([r["user_ids"] for r in records], "user")
        items = [item for r in records for item in r["items"]]
        counts = np.array([len(r["items"]) for r in records], np.int64)
        item_ids, item_bad = self._unpack([item["ids"] for item in items], "item")
        owner = np.repeat(np.arange(len(records)), counts)
        fingerprints = np.array([r["fingerprint"] for r in records], np.int64)
        current = fingerprints == self._config.fingerprint
        known = np.isin(fingerprints, list(self._config.readable_fingerprints))
        missing_user = (user_ids[:, self._required["user"]] == 0).any(axis=1)
        missing_item = (item_ids[:, self._required["item"]] == 0).any(axis=1)
        _blame(reasons, ~known, "written with another feature configuration")
        _blame(reasons, user_bad, "user_ids are not packed feature ids of this configuration")
        _blame(reasons, missing_user & current, "a user feature is missing")
        _blame(
            reasons, _any_of(item_bad, owner, len(records)), "an item's ids are not packed feature ids of this configuration"
        )
        _blame(reasons, _any_of(missing_item & current[owner], owner, len(records)), "an item's feature is missing")
        _blame(reasons, np.array([not (r["request_id"] and r["user_id"]) for r in records]), "no request id or user id")
        _blame(reasons, counts == 0, "a request without items")
        _blame(reasons, np.array([not all(i["item_id"] for i in r["items"]) for r in records]), "an item without an id")
        _blame(reasons, np.array([_bad_scores(r) for r in records]), "scores are not finite float32[items, heads]")
        times = np.array([r["time_ms"] for r in records], np.int64)
        _blame_times(reasons, times)
        bad = np.array([reason is not None for reason in reasons])
        good = ~bad[owner]
        rows = owner[good]
        request = [records[r]["request_id"] for r in rows]
        item = [i["item_id"] for i, keep in zip(items, good, strict=True) if keep]
        ids = np.concatenate([user_ids[rows], item_ids[good]], axis=1)
        events = _events(
            Kind.FEATURES, partition, offsets[rows], times[rows], request,
            [records[r]["user_id"] for r in rows], item, ids=ids,
        )  # fmt: skip
        return _with_faults(events, records, reasons, offsets, partition, self.topic)

    def _unpack(self, packed: list[bytes], side: Side) -> tuple[np.ndarray, np.ndarray]:
        return self._featuriser.unpack(packed, side)


class ActionsDecoder:
    """Actions records to one row each."""

    topic = "actions"

    def __init__(self, actions: Sequence[str]) -> None:
        self._number = {action: n for n, action in enumerate(actions)}

    def events(self, records: list[Record], offsets: np.ndarray, partition: int, reasons: Reasons) -> pa.RecordBatch:
        """Rows of all records, faults included, in order; ``reasons`` why are added to."""
        _blame(
            reasons,
            np.array([not (r["request_id"] and r["item_id"] and r["user_id"]) for r in records]),
            "no request id, user id or item id",
        )
        _blame(
            reasons,
            np.array([r["value"] is not None and not math.isfinite(r["value"]) for r in records]),
            "value is not finite",
        )
        times = np.array([r["time_ms"] for r in records], np.int64)
        _blame_times(reasons, times)
        good = [i for i, reason in enumerate(reasons) if reason is None]
        kept = [records[i] for i in good]
        events = _events(
            Kind.ACTION, partition, offsets[good], times[good],
            [r["request_id"] for r in kept], [r["user_id"] for r in kept], [r["item_id"] for r in kept],
            action=np.array([self._number.get(r["action"], -1) for r in kept], np.int8),
            value=[r["value"] for r in kept],
        )  # fmt: skip
        return _with_faults(events, records, reasons, offsets, partition, self.topic)


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
    events = decoder.events(chunk.records, chunk.offsets, partition, reasons) if chunk.records else empty_events()
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
    events = _events(Kind.FAULT, partition, np.array(offsets, np.int64), none - 1, [""] * n, [""] * n, [""] * n)
    return _replace(events, reason=pa.array(reasons, pa.string()), raw=pa.array(raw, pa.binary()))


def _events(
    kind: Kind, partition: int, offsets: np.ndarray, times: np.ndarray, request: list[str], user: list[str], item: list[str],
    *, ids: np.ndarray | None = None, action: np.ndarray | None = None, value: list[float | None] | None = None,
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
        pa.array(np.full(n, -1, np.int8) if action is None else action),
        pa.array(request, pa.string()),
        pa.array(user, pa.string()),
        pa.array(item, pa.string()),
        pa.array([None] * n if value is None else value, pa.float64()),
        pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * width), pa.array(values)),
        pa.nulls(n, pa.string()),
        pa.nulls(n, pa.binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=EVENTS)


def _with_faults(
    events: pa.RecordBatch, records: list[Record], reasons: Reasons, offsets: np.ndarray, partition: int, topic: str
) -> pa.RecordBatch:
    bad = [i for i, reason in enumerate(reasons) if reason is not None]
    if not bad:
        return events
    faults = fault_events(
        partition,
        offsets[bad].tolist(),
        [str(reasons[i]) for i in bad],
        [encode_body(topic, records[i])[:RAW_LIMIT] for i in bad],
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


def _bad_scores(record: Record) -> bool:
    scores = record["scores"]
    if scores is None:
        return False
    if len(scores) % 4 or not record["items"] or (len(scores) // 4) % len(record["items"]):
        return True
    return not bool(np.isfinite(np.frombuffer(scores, "<f4")).all())
