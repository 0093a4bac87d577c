"""The joiner: pairs what the model was asked (features) with what the user then did (actions).

A row is one video of one request. It waits, in memory, until each head is decided: positive when an action of the head's
kind comes within its attribution window, negative when the window passes. With ``early`` a decided head leaves at once
and the undecided ones are masked, so each head of each row is learned exactly once. Event time alone decides: the clock
is the running maximum of the events' time, never the wall's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from schemas.config import FeatureConfig

from . import join_kernel as kernel
from .batches import EVENTS, EventBatch, Kind
from .join_kernel import DUPLICATE, EMPTY, FAULT, HELD, LATE, STALE, TAKEN, UNUSED

#: How long after its last window a row is remembered, to tell repetitions from news.
LATENESS_MS = 600_000

_MIN_RING = 1 << 12
_ROW_FIELDS = (("key", np.int64), ("time_ms", np.int64), ("arrival_ms", np.int64), ("decided", np.int64), ("label", np.int64))
_HELD_FIELDS = (
    ("key", np.int64),
    ("action", np.int64),
    ("time_ms", np.int64),
    ("arrival_ms", np.int64),
    ("previous", np.int64),
    ("alive", np.int64),
)


@dataclass(frozen=True)
class Decisions:
    """Heads decided by a batch, in the order of their decision; one entry may decide several heads of a row.

    Attributes:
        seq: int64[D], sequence number of the row.
        mask: int64[D], bit h is set when head h was decided here.
        label: int64[D], bit h is set when it was decided positive.
        event: int64[D], index of the event that brought the clock this far (N: the watermark after the batch).
        rows: int64[D], the next sequence number at that moment: rows below it had arrived.
        time_ms: int64[D], event time of the decision.
    """

    seq: np.ndarray
    mask: np.ndarray
    label: np.ndarray
    event: np.ndarray
    rows: np.ndarray
    time_ms: np.ndarray

    def __len__(self) -> int:
        return self.seq.size

    def bits(self, name: str, heads: int) -> np.ndarray:
        """``mask`` or ``label`` as float32[D, heads]."""
        bits: np.ndarray = getattr(self, name)
        return ((bits[:, None] >> np.arange(heads)) & 1).astype(np.float32)

    def take(self, where: slice) -> Decisions:
        """A stretch of the decisions."""
        return Decisions(*(getattr(self, f)[where] for f in ("seq", "mask", "label", "event", "rows", "time_ms")))

    @staticmethod
    def concat(parts: list[Decisions]) -> Decisions:
        """Several stretches as one."""
        names = ("seq", "mask", "label", "event", "rows", "time_ms")
        return Decisions(*(np.concatenate([getattr(p, f) for p in parts]) for f in names))


@dataclass
class Joined:
    """What a batch did to the join.

    Attributes:
        decisions: heads decided, in order.
        fate: int8[N], per event one of ``TAKEN``, ``DUPLICATE``, ``HELD``, ``LATE``, ``UNUSED``, ``FAULT``, ``STALE``.
        rows_before: int64[N], the next sequence number before each event.
        orphans: int64[K], held numbers of the actions that never met their features.
        orphaned: int64[K], index of the event whose time ended each one's wait (N: the watermark after the batch).
        held: int64[N], the held number of each event whose fate is ``HELD`` (-1 elsewhere).
    """

    decisions: Decisions
    fate: np.ndarray
    rows_before: np.ndarray
    orphans: np.ndarray
    orphaned: np.ndarray
    held: np.ndarray


@dataclass
class JoinCounts:
    """Running totals, part of every snapshot."""

    rows: int = 0
    actions: int = 0
    duplicates: int = 0
    late: int = 0
    unmatched: int = 0
    unused: int = 0
    stale: int = 0


@dataclass
class Join:
    """Waiting rows and held actions of one shard.

    Args:
        config: heads, their actions and windows.
        early: a decided head leaves at once; otherwise all heads leave together when the longest window ends.
        lateness_ms: how long beyond the longest window a row is remembered.
    """

    config: FeatureConfig
    early: bool = True
    lateness_ms: int = LATENESS_MS
    clock: int = -1
    first: int = 0  # the oldest row remembered
    next: int = 0  # the next row's number
    held_first: int = 0
    held_next: int = 0
    counts: JoinCounts = field(default_factory=JoinCounts)

    def __post_init__(self) -> None:
        heads = self.config.heads
        self.actions = tuple(dict.fromkeys(head.action for head in heads))
        self._head_action = np.array([self.actions.index(head.action) for head in heads], np.int64)
        self._head_window = np.array([round(head.window_s * 1000) for head in heads], np.int64)
        longest = int(self._head_window.max())
        self.horizon = longest + self.lateness_ms
        windows = sorted(set(self._head_window.tolist())) if self.early else [longest]
        self._group_window = np.array(windows, np.int64)
        self._group_mask = np.array(
            [sum(1 << h for h, w in enumerate(self._head_window) if not self.early or w == window) for window in windows],
            np.int64,
        )
        self._cursor = np.zeros(len(windows), np.int64)
        self._held_wait = longest
        self._ring = tuple(np.zeros(_MIN_RING, dtype) for _, dtype in _ROW_FIELDS)
        self._held = tuple(np.zeros(_MIN_RING, dtype) for _, dtype in _HELD_FIELDS)
        self._index_rows()
        self._index_held()

    @property
    def capacity(self) -> int:
        """Rows the ring has room for; row ``seq`` lies at ``seq % capacity``."""
        return self._ring[0].size

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' ring with its index, full or not; held actions are few."""
        return sum(array.nbytes for array in (*self._ring, self._index_key, self._index_value))

    @staticmethod
    def capacity_for(rows: int) -> int:
        """Of a ring that holds so many rows at once."""
        return max(_MIN_RING, 1 << rows.bit_length())

    @property
    def waiting(self) -> int:
        """Rows with an undecided head."""
        return self.next - int(self._cursor.min())

    def warm_up(self) -> None:
        """Compile every kernel, or read it from the cache, by the work of one batch on a join that is thrown away."""
        join = Join(self.config, self.early, self.lateness_ms)
        # An action before its features, its features, an action after them; columns as batches have them, read-only.
        kinds = (Kind.ACTION, Kind.FEATURES, Kind.ACTION)
        rows = [{"kind": kind, "key": 1, "action": 0, "time_ms": 0, "order_ms": 0} for kind in kinds]
        batch = EventBatch(0, (), {}, pa.RecordBatch.from_pylist(rows, schema=EVENTS), 0)
        kind, key, action, time_ms, order_ms = (batch.column(name) for name in ("kind", "key", "action", "time_ms", "order_ms"))
        join.apply(kind, key, action, time_ms, order_ms, batch.watermark_ms)
        join.close()
        join.release(join.next)

    def apply(self, kind: np.ndarray, key: np.ndarray, action: np.ndarray, time_ms: np.ndarray, order_ms: np.ndarray,
              watermark_ms: int) -> Joined:  # fmt: skip
        """Apply N events in order, then let time pass up to ``watermark_ms``."""
        n = kind.size
        self._make_room(n)
        fate = np.full(n, FAULT, np.int8)
        rows_before = np.zeros(n, np.int64)
        held_fates = np.zeros(STALE + 1, np.int64)
        clock_before, held_before = self.clock, self.held_next
        out = self._decision_buffers(n)
        decided, self.next, self.held_next, self.clock = kernel.advance(
            kind, key, action, time_ms, order_ms, self.clock, self.horizon, self._held_wait, self.early,
            self._head_action, self._head_window, self._group_window, self._group_mask,
            self.next, self._cursor, self._ring, self._index_key, self._index_value,
            self.held_next, self.held_first, self._held, self._held_key, self._held_value,
            fate, held_fates, rows_before, out,
        )  # fmt: skip
        clock_ms = np.maximum.accumulate(np.concatenate([[clock_before], order_ms]))[1:]
        self.clock = max(self.clock, watermark_ms)
        decided = self._expire(decided, self.clock, n, out)
        orphans, deadline = self._release_held(self.clock)
        orphaned = np.searchsorted(clock_ms, deadline, side="right")
        held = np.full(n, -1, np.int64)
        held[fate == HELD] = np.arange(held_before, self.held_next)
        self._count(kind, fate, held_fates, orphans.size)
        return Joined(Decisions(*(a[:decided].copy() for a in out)), fate, rows_before, orphans, orphaned, held)

    def close(self) -> Joined:
        """Close every window, at the end of the logs. The clock stays: what is appended later is still in time."""
        out = self._decision_buffers(0)
        decided = self._expire(0, np.iinfo(np.int64).max, 0, out)
        orphans, _ = self._release_held(np.iinfo(np.int64).max)
        self.counts.unmatched += orphans.size
        none = np.zeros(0, np.int64)
        decisions = Decisions(*(a[:decided].copy() for a in out))
        return Joined(decisions, none.astype(np.int8), none, orphans, np.zeros(orphans.size, np.int64), none)

    def newly_joined(self, decisions: Decisions) -> int:
        """How many rows a batch's decisions, all of them, are the first positive ones of; before rows are released."""
        positive = decisions.label != 0
        seq, where = np.unique(decisions.seq[positive], return_inverse=True)
        now = np.zeros(seq.size, np.int64)
        np.bitwise_or.at(now, where, decisions.label[positive])
        at = seq & (self.capacity - 1)
        _, _, _, decided, label = self._ring
        return int(np.count_nonzero(label[at] & decided[at] & ~now == 0))

    def release(self, keep_from: int) -> None:
        """Forget rows beyond the horizon, but none from ``keep_from`` on (their examples are still to be learned)."""
        last = min(keep_from, int(self._cursor.min()))
        ring_key, _, ring_arrival, _, _ = self._ring
        self.first = kernel.release_rows(
            self.first, last, self.clock, self.horizon, ring_key, ring_arrival, self._index_key, self._index_value
        )

    def times(self, seq: np.ndarray) -> np.ndarray:
        """Event time of rows, int64[D] ms."""
        return self._ring[1][seq & (self.capacity - 1)]

    def keys(self, seq: np.ndarray) -> np.ndarray:
        """Hash of request and item of rows, int64[D]."""
        return self._ring[0][seq & (self.capacity - 1)]

    def state(self) -> dict[str, np.ndarray]:
        """All of it as arrays, rows and held actions in order of their numbers."""
        rows = np.arange(self.first, self.next) & (self.capacity - 1)
        held = np.arange(self.held_first, self.held_next) & (self._held[0].size - 1)
        state = {f"row_{name}": array[rows] for (name, _), array in zip(_ROW_FIELDS, self._ring, strict=True)}
        state |= {f"held_{name}": array[held] for (name, _), array in zip(_HELD_FIELDS, self._held, strict=True)}
        state["cursor"] = self._cursor.copy()
        state["numbers"] = np.array([self.clock, self.first, self.next, self.held_first, self.held_next], np.int64)
        state["counts"] = np.array(list(vars(self.counts).values()), np.int64)
        return state

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        self.clock, self.first, self.next, self.held_first, self.held_next = (int(x) for x in state["numbers"])
        self._cursor = state["cursor"].copy()
        self.counts = JoinCounts(*(int(x) for x in state["counts"]))
        self._ring = self._refill(self.first, self.next, [state[f"row_{name}"] for name, _ in _ROW_FIELDS])
        self._held = self._refill(self.held_first, self.held_next, [state[f"held_{name}"] for name, _ in _HELD_FIELDS])
        self._index_rows()
        self._index_held()

    @staticmethod
    def _refill(first: int, last: int, columns: list[np.ndarray], room: int = 0) -> tuple[np.ndarray, ...]:
        capacity = Join.capacity_for(int(last - first + room))
        at = np.arange(first, last) & (capacity - 1)
        ring = []
        for column in columns:
            array = np.zeros(capacity, np.int64)
            array[at] = column
            ring.append(array)
        return tuple(ring)

    def _make_room(self, events: int) -> None:
        state_rows = np.arange(self.first, self.next)
        if state_rows.size + events > self.capacity:
            at = state_rows & (self.capacity - 1)
            self._ring = self._refill(self.first, self.next, [a[at] for a in self._ring], room=events)
            self._index_rows()
        held = np.arange(self.held_first, self.held_next)
        if held.size + events > self._held[0].size:
            at = held & (self._held[0].size - 1)
            self._held = self._refill(self.held_first, self.held_next, [a[at] for a in self._held], room=events)
            self._index_held()

    def _index_rows(self) -> None:
        self._index_key, self._index_value = self._index(self._ring[0], np.arange(self.first, self.next))

    def _index_held(self) -> None:
        numbers = np.arange(self.held_first, self.held_next)
        alive = self._held[5][numbers & (self._held[5].size - 1)] > 0
        # In order, so that the newest of a key stays in the index: the chain starts there.
        self._held_key, self._held_value = self._index(self._held[0], numbers[alive])

    @staticmethod
    def _index(keys: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index_key = np.full(2 * keys.size, EMPTY, np.int64)
        index_value = np.zeros(2 * keys.size, np.int64)
        kernel.index_fill(index_key, index_value, keys[numbers & (keys.size - 1)], numbers)
        return index_key, index_value

    def _decision_buffers(self, events: int) -> tuple[np.ndarray, ...]:
        # A row is decided at most once per head; untouched pages of np.empty cost nothing.
        most = (self.waiting + events) * len(self.config.heads)
        return tuple(np.empty(most, np.int64) for _ in range(6))

    def _expire(self, decided: int, clock: int, event: int, out: tuple[np.ndarray, ...]) -> int:
        return kernel.expire(
            decided, clock, event, self.next, self._cursor, self._group_window, self._group_mask, self._ring, out
        )

    def _release_held(self, clock: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the held actions that are given up, and the last moment each could have been met."""
        orphans = np.empty(self.held_next - self.held_first, np.int64)
        self.held_first, n = kernel.release_held(
            self.held_first, self.held_next, clock - self._held_wait, self._held, self._held_key, self._held_value, orphans
        )
        orphans = orphans[:n]
        return orphans, self._held[3][orphans & (self._held[3].size - 1)] + self._held_wait

    def _count(self, kind: np.ndarray, fate: np.ndarray, held_fates: np.ndarray, orphans: int) -> None:
        became = np.bincount(fate, minlength=STALE + 1)
        rows = int(np.count_nonzero((fate == TAKEN) & (kind == kernel.FEATURES)))
        self.counts.rows += rows
        self.counts.actions += int(became[TAKEN]) - rows + int(held_fates[TAKEN])
        self.counts.duplicates += int(became[DUPLICATE] + held_fates[DUPLICATE])
        self.counts.late += int(became[LATE] + held_fates[LATE])
        self.counts.unused += int(became[UNUSED] + held_fates[UNUSED])
        self.counts.stale += int(became[STALE])
        self.counts.unmatched += orphans
