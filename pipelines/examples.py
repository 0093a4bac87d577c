"""What a shard has learned from, row by row, as it leaves for an archive: numbered, so that nobody keeps a row twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

#: Bytes of a message before it is compressed, about: below what a broker takes unless it is told otherwise.
MESSAGE_BYTES = 256 << 10
_DTYPES = {"keys": "<i8", "time_ms": "<i8", "ids": "<i8", "labels": "<f4", "mask": "<f4", "first": "|b1"}


@dataclass(frozen=True)
class Examples:
    """Rows that one shard learned from, in the order in which it did.

    Attributes:
        number: of the first row; counts the shard's learned rows, a function of the logs.
        fingerprint: of the feature configuration.
        keys: int64[N], 62-bit hash of user, request and item.
        time_ms: int64[N], event time of the request.
        ids: int64[N, W], feature ids, 0 pads.
        labels: float32[N, H].
        mask: float32[N, H], 1 where a head is learned by the row.
        first: bool[N], whether the impression comes for the first time: it comes back for a head decided later.
    """

    number: int
    fingerprint: int
    keys: np.ndarray
    time_ms: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return int(self.keys.size)

    @property
    def end(self) -> int:
        """Number of the row that comes next."""
        return self.number + len(self)

    def between(self, start: int, end: int) -> Examples:
        """Those whose numbers lie there, which may be none."""
        rows = slice(max(start - self.number, 0), max(end - self.number, 0))
        return replace(self, number=max(start, self.number), **{name: getattr(self, name)[rows] for name in _DTYPES})

    def messages(self) -> Iterator[Examples]:
        """Cut to what goes into a message each."""
        if not len(self):
            return
        row_bytes = sum(getattr(self, name).nbytes for name in _DTYPES) // len(self)
        rows = max(MESSAGE_BYTES // row_bytes, 1)
        for start in range(self.number, self.end, rows):
            yield self.between(start, start + rows)

    def to_record(self, shard: int) -> dict[str, Any]:
        """As a record of a topic (`examples.avsc`)."""
        columns = {name: np.ascontiguousarray(getattr(self, name), dtype).tobytes() for name, dtype in _DTYPES.items()}
        return {"shard": shard, "number": self.number, "rows": len(self), "fingerprint": self.fingerprint, **columns}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Examples:
        """The inverse of `to_record`."""
        columns = {name: np.frombuffer(record[name], dtype) for name, dtype in _DTYPES.items()}
        for name in ("ids", "labels", "mask"):
            columns[name] = columns[name].reshape(record["rows"], -1)
        return cls(record["number"], record["fingerprint"], **columns)
