"""Join, score, learn: the working state of one shard, and what a batch does to it.

``apply`` runs a batch through the join, then goes along its decisions: rows are scored with the model as it is when they
arrive, examples are learned from in steps of a fixed count, in the order of their decision. The model is thus a function
of the logs, however they were cut into batches.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from model.catalogue import Catalogue
from model.delta import Delta
from model.evaluation import Progressive
from model.snapshot import Increment
from model.threads import use_threads
from model.trainer import ExampleBatch, Trainer
from model.widening import Widening
from schemas.config import FeatureConfig
from schemas.process import UserError

from .arms import Arms
from .batches import EventBatch, Final, Kind
from .counts import Counts
from .dead_letters import DeadLetterBox
from .examples import Examples
from .growth import Growth
from .join import Decisions, Join, Joined
from .join_kernel import TAKEN
from .learn_config import LearnConfig
from .monitoring import Monitoring, ShardMonitor
from .outputs import Outputs, Predictions
from .progress import Progress
from .rows import RowStore

log = logging.getLogger(__name__)

_NONE = Decisions(*(np.zeros(0, np.int64) for _ in range(6)))


class Learned(NamedTuple):
    """How far the model has come: steps learned, and the newest event time in them. One tuple, so that another thread
    never sees the one without the other."""

    model_version: int
    event_ms: int


class JoinAndLearn:
    """The working state that batches are applied to; a :class:`pipelines.step.Step`.

    Args:
        config: feature configuration.
        learn: how it learns.
        monitor: what it is watched by; None: nothing.
    """

    def __init__(self, config: FeatureConfig, learn: LearnConfig, monitor: ShardMonitor | None = None) -> None:
        self.config, self.learn_config = config, learn
        self.monitor = monitor or Monitoring().shard(learn.shard)
        self.fingerprint = config.fingerprint
        self.readable_fingerprints = config.readable_fingerprints
        self.join = Join(config, early=learn.early)
        if learn.threads is not None:
            use_threads(learn.threads)
        try:
            self.trainer = Trainer(config, seed=learn.seed, table_bytes=learn.table_bytes)
        except ValueError as error:
            raise UserError(f"--table_bytes: {error}") from error
        started = time.monotonic()
        self.trainer.warm_up((learn.step,))
        self.join.warm_up()
        Progressive.warm_up()
        log.info("kernels and steps compiled", extra={"seconds": round(time.monotonic() - started, 1)})
        self.arms = Arms(config, learn.arms, warm_start_ms=round(learn.warm_start_s * 1000))
        self.rows = RowStore(config.width, 1 + len(learn.arms), len(config.heads))
        self.catalogue = Catalogue(config)
        self.progress = Progress(config.heads, ("continuous", *(arm.name for arm in learn.arms)), learn.window)
        self.growth = Growth(learn.window)
        self.dead = DeadLetterBox(config, self.join.actions)
        self._pending = _NONE
        self._scored = self._scored_by_arms = 0
        self._synced = 0  # model version of the last delta
        self._durable = 0  # model version of the last durable increment
        self._cut = 0
        self._learned_rows = 0  # by the shard, ever: numbers of its examples
        self._joined = 0  # since this process has the shard
        self._outputs = Outputs()
        self.learned = Learned(0, -1)

    @property
    def newest_event_ms(self) -> int:
        """Newest event time applied."""
        return self.join.clock

    @property
    def publishable(self) -> bool:
        """Whether the model, as it is, may be served."""
        return self.progress.healthy

    def apply(self, batch: EventBatch) -> Outputs:
        """Join, score and learn from one batch."""
        self._outputs = outputs = Outputs()
        totals = self._totals()
        kind, key, time_ms = batch.column("kind"), batch.column("key"), batch.column("time_ms")
        before = self.join.next
        joined = self.join.apply(kind, key, batch.column("action"), time_ms, batch.column("order_ms"), batch.watermark_ms)
        self.rows.resize(self.join.capacity, self.join.first, before)
        taken = (joined.fate == TAKEN) & (kind == Kind.FEATURES)
        ids = batch.ids(self.config.width)[taken[kind == Kind.FEATURES]] if taken.any() else None
        if ids is not None:
            self.rows.put(before, ids)
            self._remember(batch, taken, ids)
        self.dead.collect(batch, joined, self.join)
        self._replay(joined, batch.column("order_ms"))
        if batch.final is Final.END:
            self._close()
        pending_from = int(self._pending.seq.min()) if len(self._pending) else self.join.next
        self.join.release(min(pending_from, self._scored))
        self.rows.let_go(self.join.first, self.join.next)
        outputs.dead_letters = self.dead.drain()
        if batch.sync and self.trainer.version > self._synced and self.publishable:
            outputs.deltas.append(self._delta())
        outputs.counts = self._added(totals, batch, outputs)
        if self.progress.news() or batch.final is not Final.NO:
            outputs.metrics = self.figures()
        return outputs

    def figures(self) -> dict[str, Any]:
        """Running figures for people and programs."""
        evaluated_from_ms = self.arms.evaluated_from_ms
        warm_start_ms = round(self.learn_config.warm_start_s * 1000)
        return self.progress.figures() | {
            "dead_letters": self.dead.count,
            **{name: value for name, value in vars(self.join.counts).items() if name != "rows"},
            "impressions": self.join.counts.rows,
            "waiting": self.join.waiting,
            "table_rows": len(self.trainer.table),
            "table_bytes": self.trainer.table.nbytes,
            "table_expired": self.trainer.table.expired,
            "table_evicted": self.trainer.table.evicted,
            "table_refused": self.trainer.table.refused,
            "growth": self.growth.figures(),
            "model_version": self.learned.model_version,
            "first_event_ms": evaluated_from_ms - warm_start_ms if evaluated_from_ms else -1,
            "evaluated_from_ms": evaluated_from_ms,
            "newest_event_ms": self.join.clock,
            "newest_learned_ms": self.learned.event_ms,
        }

    def _totals(self) -> Counts:
        """Of what is counted in totals."""
        join, table = self.join.counts, self.trainer.table
        return Counts(
            impressions=join.rows,
            actions=join.actions,
            joined=self._joined,
            examples=self.progress.examples,
            learned=self._learned_rows,
            duplicates=join.duplicates,
            late=join.late,
            unmatched=join.unmatched,
            dead_letters=self.dead.count,
            admitted=len(table) + table.expired + table.evicted,
            expired=table.expired,
            evicted=table.evicted,
        )

    def _added(self, before: Counts, batch: EventBatch, outputs: Outputs) -> Counts:
        """What a batch added to the totals; the monitor learns where things stand."""
        self.monitor.stands(
            table_rows=len(self.trainer.table),
            table_bytes=self.trainer.table.nbytes,
            waiting_rows=self.join.waiting,
            model_version=self.trainer.version,
            auc=self.progress.auc_last_window,
            healthy=self.publishable,
        )
        return replace(
            self._totals().since(before),
            events=len(batch),
            deltas=len(outputs.deltas),
            delta_rows=sum(delta.keys.size for delta in outputs.deltas),
            delta_bytes=sum(delta.nbytes for delta in outputs.deltas),
        )

    # The order of things within a batch

    def _replay(self, joined: Joined, order_ms: np.ndarray) -> None:
        """Go through a batch's steps and the arms' syncs in the order of their events."""
        decisions = Decisions.concat([self._pending, joined.decisions])
        step = self.learn_config.step
        moments: list[tuple[int, int, int, int]] = []
        # Fewer than a step were pending, so each step's last decision is one of this batch.
        for end in range(step, len(decisions) + 1, step):
            last = end - 1
            moments.append((int(decisions.event[last]), 1, int(decisions.rows[last]), end))
        moments += [(at, 0, int(joined.rows_before[at]), 0) for at in self.arms.due(order_ms)]
        for event, learns, rows, end in sorted(moments):
            self._score(rows)
            if learns:
                self._learn(decisions.take(slice(end - step, end)))
            else:
                self._score_arms()
                self.arms.sync(int(order_ms[event]), self.trainer)
        self._score(self.join.next)
        self._score_arms()
        self._pending = decisions.take(slice(len(decisions) - len(decisions) % step, None))
        self._meet(joined.decisions)

    def _score(self, upto: int) -> None:
        """Score the rows that have arrived and were not scored yet, with the model as it is."""
        if upto <= self._scored:
            return
        at = self.rows.at(np.arange(self._scored, upto))
        self.rows.logits[at, 0] = self.trainer.predict(self.rows.ids[at])
        self._scored = upto

    def _score_arms(self) -> None:
        """Score by the arms what the model has scored since: they change at their syncs only, so larger chunks do."""
        if self._scored_by_arms >= self._scored:
            return
        at = self.rows.at(np.arange(self._scored_by_arms, self._scored))
        for number, _ in enumerate(self.learn_config.arms):
            self.rows.logits[at, 1 + number] = self.arms.predict(number, self.rows.ids[at], self.rows.logits[at, 0])
        self._scored_by_arms = self._scored

    def _learn(self, examples: Decisions) -> None:
        """One step of the model."""
        heads = len(self.config.heads)
        seq = examples.seq
        labels, mask = examples.bits("label", heads), examples.bits("mask", heads)
        first, times = self.rows.first_time(seq), self.join.times(seq)
        batch = ExampleBatch(self.rows.ids[self.rows.at(seq)], labels, mask, first, times)
        started = time.perf_counter()
        metrics = self.trainer.learn(batch)
        self.learned = Learned(self.trainer.version, self.trainer.newest_event_ms)
        self.monitor.stepped(metrics, time.perf_counter() - started, self.learned.event_ms)
        if self.learn_config.examples:
            columns = (batch.time_ms, batch.ids, batch.labels, batch.mask, batch.first)
            self._outputs.examples.append(Examples(self._learned_rows, self.fingerprint, self.join.keys(seq), *columns))
        self._learned_rows += len(examples)
        before = self.progress.examples
        evaluated = mask * (times >= self.arms.evaluated_from_ms)[:, np.newaxis]
        self.progress.learned(metrics, labels, evaluated, fresh=int(first.sum()))
        self.growth.learned(before, self.progress.examples, self.learned.event_ms, self.trainer.table)

    def _meet(self, decisions: Decisions) -> None:
        """Predictions made at the request meet their labels."""
        if not len(decisions):
            return
        self._joined += self.join.newly_joined(decisions)
        heads = len(self.config.heads)
        labels, mask = decisions.bits("label", heads), decisions.bits("mask", heads)
        logits = self.rows.logits[self.rows.at(decisions.seq)]
        times = self.join.times(decisions.seq)
        counted = times >= self.arms.evaluated_from_ms
        self.progress.met(logits[counted], labels[counted], mask[counted], decisions.time_ms[counted])
        if self.learn_config.predictions:
            keys = self.join.keys(decisions.seq)
            names = self.progress.arms
            for h, head in enumerate(self.config.heads):
                rows = (mask[:, h] > 0) & counted
                if rows.any():
                    by_arm = {name: logits[rows, a, h] for a, name in enumerate(names)}
                    self._outputs.predictions.append(Predictions(head.name, keys[rows], times[rows], labels[rows, h], by_arm))

    def _delta(self) -> Delta:
        """What was learned since the last one."""
        started = time.perf_counter()
        delta = self.trainer.delta(self._synced, shard=self.learn_config.shard)
        self._synced = self.trainer.version
        self._trim()
        self.monitor.cut(delta, time.perf_counter() - started)
        return delta

    def _close(self) -> None:
        """The logs have ended: close the windows and learn from what is left, the last step being a short one."""
        closing = self.join.close()
        self.dead.close(closing, self.join)
        self._meet(closing.decisions)
        left = Decisions.concat([self._pending, closing.decisions])
        for start in range(0, len(left), self.learn_config.step):
            self._learn(left.take(slice(start, start + self.learn_config.step)))
        self._pending = _NONE

    def _remember(self, batch: EventBatch, taken: np.ndarray, ids: np.ndarray) -> None:
        """Keep the newest features of users and videos for the exported catalogue."""
        rows = batch.events.select(["user_id", "item_id", "time_ms"]).filter(pa.array(taken))
        users = self.config.user_width
        self.catalogue.update(
            rows.column("user_id").to_numpy(zero_copy_only=False), ids[:, :users],
            rows.column("item_id").to_numpy(zero_copy_only=False), ids[:, users:],
            rows.column("time_ms").to_numpy(),
        )  # fmt: skip

    # State

    def increment(self) -> Increment:
        """What changed since the last durable increment: touched rows of the table, all of the (small) rest."""
        increment = self.trainer.increment(self._durable)
        self._cut = self.trainer.version
        increment.keyed |= self.catalogue.increment().keyed
        pending = {name: getattr(self._pending, name) for name in ("seq", "mask", "label", "event", "rows", "time_ms")}
        increment.whole |= {
            "join": self.join.state(),
            "rows": self.rows.state(self.join.first, self.join.next),
            "pending": pending,
            "arms": self.arms.state(),
            "progress": self.progress.state(),
            "growth": self.growth.state(),
            "dead_letters": self.dead.state(),
            "learn": {
                "numbers": np.array([self._scored, self._synced, self._learned_rows], np.int64),
                "options": np.frombuffer(json.dumps(self.learn_config.lasting).encode(), np.uint8),
            },
        }
        return increment

    def committed(self) -> None:
        """The last increment is durable: the next one starts where it ended."""
        self._durable = self._cut
        self.catalogue.committed()
        self._trim()

    def load(self, state: Increment) -> None:
        """Restore a merged increment, which may be of the configuration before slots were appended.

        Raises:
            UserError: it was made with other options.
        """
        whole = state.whole
        self.learn_config.check(json.loads(whole["learn"]["options"].tobytes()))
        widening = Widening.of(state, self.config)
        try:
            self.trainer.load(state)
        except MemoryError as error:
            raise UserError(str(error)) from error
        self.catalogue.load(widening.catalogue(state), durable=not widening.grown)
        self.join.load(whole["join"])
        rows = whole["rows"] | {"ids": widening.ids(whole["rows"]["ids"])}
        self.rows.load(rows, self.join.capacity, self.join.first, self.join.next)
        # Decided before any event to come: with another --step than before, some of them may complete a step.
        event = np.full_like(whole["pending"]["event"], -1)
        self._pending = Decisions(**whole["pending"] | {"event": event})
        self.arms.load(widening.copies(whole["arms"]))
        self.progress.load(whole["progress"])
        self.growth.load(whole["growth"])
        self.dead.load(whole["dead_letters"])
        # A state of before examples were numbered has two of these: they are counted from there on.
        self._scored, self._synced, self._learned_rows = (*map(int, whole["learn"]["numbers"]), 0)[:3]
        if widening.grown:
            self._synced = 0  # a copy of the configuration before cannot follow, and one of this has nothing yet
        self._scored_by_arms = self._scored
        self.learned = Learned(self.trainer.version, self.trainer.newest_event_ms)
        self._cut = self.trainer.version

    def _trim(self) -> None:
        self.trainer.trim(min(self._durable, self._synced, self.arms.oldest_version(self.trainer.version)))
