"""A parameter delta: what a model server needs to go from one version of the model to a later one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Delta:
    """Parameters touched after `from_version`, as they are at `to_version`.

    Attributes:
        shard: whose parameters.
        fingerprint: of the feature configuration that keys and rows are of.
        epoch: drawn at each restore of the shard; a newer epoch overrides an older one.
        from_version, to_version: model versions, counted in steps; a delta from version 0 holds everything, and replaces
            what a copy has.
        newest_event_ms: newest event time learned from, ms; what has outlived its time by then reads its slot's default row.
        keys: int64[R], feature ids; a slot's default row has its reserved negative key.
        rows: float32[R, 1 + dim], first-order weight and embedding.
        last_seen_ms: int64[R], event times; empty when no slot has a time to live.
        removed: int64[], keys that have left the table.
        dense: dense parameters by name, float32; empty when they did not change.
    """

    shard: int
    fingerprint: int
    epoch: int
    from_version: int
    to_version: int
    newest_event_ms: int
    keys: np.ndarray
    rows: np.ndarray
    removed: np.ndarray
    dense: dict[str, np.ndarray] = field(default_factory=dict)
    last_seen_ms: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = (self.keys, self.rows, self.removed, self.last_seen_ms, *self.dense.values())
        return sum(array.nbytes for array in arrays)

    def to_record(self) -> dict[str, Any]:
        """As a record of the parameter log (`delta.avsc`); arrays as little-endian bytes."""
        dense = [
            {"name": name, "shape": list(array.shape), "values": np.ascontiguousarray(array, "<f4").tobytes()}
            for name, array in self.dense.items()
        ]
        return {
            "shard": self.shard,
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "from_version": self.from_version,
            "to_version": self.to_version,
            "newest_event_ms": self.newest_event_ms,
            "width": int(self.rows.shape[1]),
            "keys": np.ascontiguousarray(self.keys, "<i8").tobytes(),
            "rows": np.ascontiguousarray(self.rows, "<f4").tobytes(),
            "last_seen": np.ascontiguousarray(self.last_seen_ms, "<i8").tobytes() or None,
            "removed": np.ascontiguousarray(self.removed, "<i8").tobytes(),
            "dense": dense,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Delta:
        """The inverse of `to_record`."""
        return cls(
            shard=record["shard"],
            fingerprint=record["fingerprint"],
            epoch=record["epoch"],
            from_version=record["from_version"],
            to_version=record["to_version"],
            newest_event_ms=record["newest_event_ms"],
            keys=np.frombuffer(record["keys"], "<i8"),
            rows=np.frombuffer(record["rows"], "<f4").reshape(-1, record["width"]),
            last_seen_ms=np.frombuffer(record["last_seen"] or b"", "<i8"),
            removed=np.frombuffer(record["removed"], "<i8"),
            dense={d["name"]: np.frombuffer(d["values"], "<f4").reshape(d["shape"]) for d in record["dense"]},
        )
