"""The joiner: pairs what the model was asked (features) with what the user then did (actions).

A row is one video of one request. It waits, in memory, until each head is decided: positive when an action of the head's
kind comes within its attribution window, negative when the window passes. With ``early`` a decided head leaves at once
and the undecided ones are masked, so each head of each row is learned exactly once. Event time alone decides: the clock
is the running maximum of the events' time, never the wall's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

from schemas.config import FeatureConfig

from . import join_kernel as kernel
from .batches import EVENTS, EventBatch, Kind
from .join_kernel import DUPLICATE, EMPTY, FAULT, HELD, LATE, STALE, TAKEN, UNUSED
from .ring import MIN_ROWS, Column, Ring, capacity_for

#: How long after its last window a row is remembered, to tell repetitions from news.
LATENESS_MS = 600_000

#: Of an index, for each row there is room for: at most half of them are taken.
_SLOTS = 2
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
        self._rows = Ring(_columns(_ROW_FIELDS), MIN_ROWS)
        self._held = Ring(_columns(_HELD_FIELDS), MIN_ROWS)
        self._index_rows()
        self._index_held()

    @property
    def capacity(self) -> int:
        """Rows the ring has room for; row ``seq`` lies at ``seq % capacity``."""
        return self._rows.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of the rows remembered, with their index; held actions are few."""
        return self._rows.nbytes(self.next) + self._index.nbytes

    @staticmethod
    def bytes_for(rows: int) -> int:
        """Of a join that remembers so many rows."""
        row_nbytes = sum(np.dtype(dtype).itemsize for _, dtype in _ROW_FIELDS)
        return rows * row_nbytes + _SLOTS * capacity_for(rows) * EMPTY.itemsize

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
            self.next, self._cursor, self._rows.arrays, self._index,
            self.held_next, self.held_first, self._held.arrays, self._held_index,
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
        _, _, _, decided, label = self._rows.arrays
        return int(np.count_nonzero(label[at] & decided[at] & ~now == 0))

    def release(self, keep_from: int) -> None:
        """Forget rows beyond the horizon, but none from ``keep_from`` on (their examples are still to be learned)."""
        last = min(keep_from, int(self._cursor.min()))
        ring_key, _, ring_arrival, _, _ = self._rows.arrays
        self.first = kernel.release_rows(self.first, last, self.clock, self.horizon, ring_key, ring_arrival, self._index)
        self._rows.let_go(self.first, self.next)

    def times(self, seq: np.ndarray) -> np.ndarray:
        """Event time of rows, int64[D] ms."""
        return self._rows.arrays[1][seq & (self.capacity - 1)]

    def keys(self, seq: np.ndarray) -> np.ndarray:
        """Hash of request and item of rows, int64[D]."""
        return self._rows.arrays[0][seq & (self.capacity - 1)]

    def state(self) -> dict[str, np.ndarray]:
        """All of it as arrays, rows and held actions in order of their numbers."""
        rows, held = self._rows.rows(self.first, self.next), self._held.rows(self.held_first, self.held_next)
        state = {f"row_{name}": column for (name, _), column in zip(_ROW_FIELDS, rows, strict=True)}
        state |= {f"held_{name}": column for (name, _), column in zip(_HELD_FIELDS, held, strict=True)}
        state["cursor"] = self._cursor.copy()
        state["numbers"] = np.array([self.clock, self.first, self.next, self.held_first, self.held_next], np.int64)
        state["counts"] = np.array(list(vars(self.counts).values()), np.int64)
        return state

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        self.clock, self.first, self.next, self.held_first, self.held_next = (int(x) for x in state["numbers"])
        self._cursor = state["cursor"].copy()
        self.counts = JoinCounts(*(int(x) for x in state["counts"]))
        self._rows = _filled(_ROW_FIELDS, "row_", state, self.first, self.next)
        self._held = _filled(_HELD_FIELDS, "held_", state, self.held_first, self.held_next)
        self._index_rows()
        self._index_held()

    def _make_room(self, events: int) -> None:
        rows, held = self.next - self.first + events, self.held_next - self.held_first + events
        if rows > self.capacity:
            self._rows = self._rows.relaid(capacity_for(rows), self.first, self.next)
            self._index_rows()
        if held > self._held.capacity:
            self._held = self._held.relaid(capacity_for(held), self.held_first, self.held_next)
            self._index_held()

    def _index_rows(self) -> None:
        self._index = _indexed(self._rows, np.arange(self.first, self.next))

    def _index_held(self) -> None:
        numbers = np.arange(self.held_first, self.held_next)
        alive = self._held.arrays[5][self._held.at(self.held_first, self.held_next)] > 0
        # In order, so that the newest of a key stays in the index: the chain starts there.
        self._held_index = _indexed(self._held, numbers[alive])

    def _decision_buffers(self, events: int) -> tuple[np.ndarray, ...]:
        # A row is decided at most once per head; untouched pages of np.empty cost nothing.
        most = (self.waiting + events) * len(self.config.heads)
        return tuple(np.empty(most, np.int64) for _ in range(6))

    def _expire(self, decided: int, clock: int, event: int, out: tuple[np.ndarray, ...]) -> int:
        return kernel.expire(
            decided, clock, event, self.next, self._cursor, self._group_window, self._group_mask, self._rows.arrays, out
        )

    def _release_held(self, clock: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the held actions that are given up, and the last moment each could have been met."""
        orphans = np.empty(self.held_next - self.held_first, np.int64)
        self.held_first, n = kernel.release_held(
            self.held_first, self.held_next, clock - self._held_wait, self._held.arrays, self._held_index, orphans
        )
        orphans = orphans[:n]
        return orphans, self._held.arrays[3][orphans & (self._held.capacity - 1)] + self._held_wait

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


def _columns(fields: Sequence[tuple[str, DTypeLike]]) -> list[Column]:
    return [((), dtype) for _, dtype in fields]


def _filled(fields: Sequence[tuple[str, DTypeLike]], prefix: str, state: dict[str, np.ndarray], first: int, last: int) -> Ring:
    ring = Ring(_columns(fields), capacity_for(last - first), first)
    ring.put(first, [state[prefix + name] for name, _ in fields])
    return ring


def _indexed(ring: Ring, numbers: np.ndarray) -> np.ndarray:
    """An index of the places of the entries with these numbers, by their key, the first column."""
    index = np.full(_SLOTS * ring.capacity, EMPTY, EMPTY.dtype)
    kernel.index_fill(index, ring.arrays[0], numbers & (ring.capacity - 1))
    return index
