"""What could not be used, numbered, with its place, reason and bytes."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.avro import encode_body

from .batches import EventBatch, Kind
from .join import Join, Joined
from .join_kernel import FAULT, HELD, STALE
from .outputs import DeadLetter

_ORPHAN = "an action without an impression"


class DeadLetterBox:
    """Dead letters of one shard, in the order of the logs, and the actions that may yet become ones."""

    def __init__(self, actions: tuple[str, ...]) -> None:
        self.count = 0
        self._actions = actions
        self._letters: list[DeadLetter] = []
        #: Held actions by their number: (partition, offset, raw). They are few: features come first as a rule.
        self._held: dict[int, tuple[str, int, bytes]] = {}

    def collect(self, batch: EventBatch, joined: Joined, join: Join) -> None:
        """Take from a batch what was a fault, came too late, or waits for its features."""
        wanted = (joined.fate == FAULT) | (joined.fate == STALE) | (joined.fate == HELD)
        where = np.flatnonzero(wanted)
        rows = batch.events.take(pa.array(where)).to_pylist() if where.size else []
        for i, row in zip(where.tolist(), rows, strict=True):
            place = (batch.partitions[row["partition"]], row["offset"])
            if joined.fate[i] == FAULT:
                self._add(*place, row["reason"], row["raw"] or b"")
            elif joined.fate[i] == STALE:
                behind = (int(batch.column("order_ms")[i]) - row["time_ms"]) / 1000
                self._add(*place, f"{behind:.0f} s behind the stream, further back than the join remembers", self._raw(row))
            else:
                self._held[int(joined.held[i])] = (*place, self._raw(row))
        self.orphaned(joined.orphans, join)

    def orphaned(self, orphans: np.ndarray, join: Join) -> None:
        """Held actions that the join has given up; what it let go of otherwise has met its features."""
        for number in orphans.tolist():
            partition, offset, raw = self._held.pop(number)
            self._add(partition, offset, _ORPHAN, raw)
        if self._held and min(self._held) < join.held_first:
            self._held = {number: held for number, held in self._held.items() if number >= join.held_first}

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

    def _add(self, partition: str, offset: int, reason: str, raw: bytes) -> None:
        self._letters.append(DeadLetter(self.count, partition, offset, reason, raw))
        self.count += 1

    def _raw(self, row: dict[str, Any]) -> bytes:
        if row["kind"] == Kind.ACTION:
            return encode_body("actions", {**row, "action": self._actions[row["action"]]})
        return json.dumps({k: row[k] for k in ("request_id", "user_id", "item_id", "time_ms", "ids")}).encode()
