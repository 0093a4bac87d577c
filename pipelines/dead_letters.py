"""What could not be used, numbered, with its place, reason and bytes."""

from __future__ import annotations

import base64
import json
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from schemas.avro import encode_body
from schemas.config import FeatureConfig

from .batches import EventBatch, Kind
from .decode import RAW_LIMIT
from .join import Join, Joined
from .join_kernel import FAULT, HELD, STALE
from .outputs import DeadLetter

#: Characters kept of a reason: what an error says of a record may be as long as the record.
REASON_LIMIT = 1_000

_ORPHAN = "an action without an impression"


class _Found(NamedTuple):
    event: int
    rank: int
    partition: str
    offset: int
    reason: str
    raw: bytes


class DeadLetterBox:
    """Dead letters of one shard, in the order of the logs, and the actions that may yet become ones.

    Args:
        config: feature configuration of the rows.
        actions: action names in the order of their codes.
    """

    def __init__(self, config: FeatureConfig, actions: tuple[str, ...]) -> None:
        self.count = 0
        self._config = config
        self._actions = actions
        self._letters: list[DeadLetter] = []
        #: Held actions by their number: (partition, offset, raw). They are few: features come first as a rule.
        self._held: dict[int, tuple[str, int, bytes]] = {}

    def collect(self, batch: EventBatch, joined: Joined, join: Join) -> None:
        """Take from a batch what was a fault, came too late, or waits for its features."""
        wanted = (joined.fate == FAULT) | (joined.fate == STALE) | (joined.fate == HELD)
        where = np.flatnonzero(wanted)
        rows = batch.events.take(pa.array(where)).to_pylist() if where.size else []
        found: list[_Found] = []
        for i, row in zip(where.tolist(), rows, strict=True):
            place = (batch.partitions[row["partition"]], row["offset"])
            if joined.fate[i] == FAULT:
                found.append(_Found(i, 1, *place, row["reason"], row["raw"] or b""))
            elif joined.fate[i] == STALE:
                behind = (int(batch.column("order_ms")[i]) - row["time_ms"]) / 1000
                reason = f"{behind:.0f} s behind the stream, further back than the join remembers"
                found.append(_Found(i, 1, *place, reason, self._raw(row)))
            else:
                self._held[int(joined.held[i])] = (*place, self._raw(row))
        self._number(found, joined, join)

    def close(self, joined: Joined, join: Join) -> None:
        """Take the held actions that the join has given up at the end of the logs."""
        self._number([], joined, join)

    def _number(self, found: list[_Found], joined: Joined, join: Join) -> None:
        """Number what was found and the orphans by the event that made them letters, wherever batches end."""
        for number, event in zip(joined.orphans.tolist(), joined.orphaned.tolist(), strict=True):
            partition, offset, raw = self._held.pop(number)
            found.append(_Found(event, 0, partition, offset, _ORPHAN, raw))
        for each in sorted(found, key=lambda f: (f.event, f.rank)):
            reason, raw = each.reason[:REASON_LIMIT], each.raw[:RAW_LIMIT]
            self._letters.append(DeadLetter(self.count, each.partition, each.offset, reason, raw))
            self.count += 1
        # What the join let go of otherwise has met its features; numbers ascend, as the actions came.
        for number in list(takewhile(lambda number: number < join.held_first, self._held)):
            del self._held[number]

    def drain(self) -> list[DeadLetter]:
        """The letters since the last call."""
        letters, self._letters = self._letters, []
        return letters

    def state(self) -> dict[str, np.ndarray]:
        """As arrays."""
        held: dict[str, Any] = {str(n): (p, o, base64.b64encode(raw).decode()) for n, (p, o, raw) in self._held.items()}
        text = json.dumps({"count": self.count, "held": held}).encode()
        return {"json": np.frombuffer(text, np.uint8)}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        fields = json.loads(state["json"].tobytes())
        self.count = fields["count"]
        self._held = {int(n): (p, o, base64.b64decode(raw)) for n, (p, o, raw) in fields["held"].items()}

    def _raw(self, row: dict[str, Any]) -> bytes:
        """The record of an event, as far as it is kept; of a request with several videos, the part of this one."""
        if row["kind"] == Kind.ACTION:
            return encode_body("actions", {**row, "action": self._actions[row["action"]]})[:RAW_LIMIT]
        ids = np.array(row["ids"], "<i8")
        user, item = (part[part != 0].tobytes() for part in np.split(ids, [self._config.user_width]))
        own = {"user_ids": user, "items": [{"item_id": row["item_id"], "ids": item}]}
        return encode_body("features", {**row, "fingerprint": self._config.fingerprint, **own})[:RAW_LIMIT]
