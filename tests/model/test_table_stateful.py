"""The table against plain NumPy, whatever is done to it in whatever order: nothing is lost, merged, or missed by a reader.

Once with as much memory as it wants, and once held to so little that rows are evicted and ids refused.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.snapshot import FileEntry, Increment, KeyedPart, merge, read_increment, write_chunks, write_increment
from model.table import EmbeddingTable
from model.threads import threads, use_threads
from model.trainer import _rows_to_table, _table_to_rows
from model.walk import Walk
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot
from tests.model.held_model import HeldModel, bytes_for, most_ids
from tests.model.table_model import TableModel

SGD, ADAGRAD, ADAM = (OptimizerConfig(kind) for kind in ("sgd", "adagrad", "adam"))
FTRL = OptimizerConfig("ftrl", l1=0.001, l2=0.001)
CONFIG = FeatureConfig(
    "stateful",
    (
        Slot("user", 1, "user", "user", "id", "int", ttl_s=20, optimizer=SGD),
        Slot("tags", 3, "tags", "user", "bag", "string", max_length=3, pooling="mean", admission=3, ttl_s=9, optimizer=ADAGRAD),
        Slot("video", 7, "video", "item", "id", "int", admission=2, admission_mode="probability", optimizer=ADAM),
        Slot("kept", 900, "kept", "item", "id", "int", ttl_s=5, min_rows=4, init="uniform", optimizer=FTRL),
    ),
    (Head("click", "click", 60.0),),
    ModelConfig(dim=3),
)
# Of a table with little memory, see `HeldModel`.
HELD = replace(CONFIG, slots=tuple(replace(slot, ttl_s=None) if slot.min_rows else slot for slot in CONFIG.slots))
COLUMNS = np.array(CONFIG.column_slot)
MEAN = np.array([slot.pooling == "mean" for slot in CONFIG.slot_order])
NOTHING = np.zeros(0, np.int64)
VALUES, SEED, DIM = 40, 5, CONFIG.model.dim
IDS = TableModel(CONFIG, VALUES, SEED).ids

places = st.lists(st.integers(-1, IDS.size - 1), min_size=1, max_size=60)  # -1 pads


def everything(table: EmbeddingTable) -> dict[int, tuple]:
    """All rows by key, but for what is the table's own: where they lie, and when they were touched."""
    rows = table.export(table.touched_since(0))
    columns = (rows.values, rows.optimizer, rows.steps, rows.counts, rows.last_seen_ms)
    return {int(key): tuple(column[i].tobytes() for column in columns) for i, key in enumerate(rows.keys)}


def matrix(places: list[int]) -> np.ndarray:
    """Ids int64[N, W] at places in `IDS`, the last row padded."""
    ids = np.zeros((-(-len(places) // CONFIG.width), CONFIG.width), np.int64)
    ids.flat[: len(places)] = np.append(IDS, 0)[places]
    return ids


class TableMachine(RuleBasedStateMachine):
    """One table, a model of it, two readers that keep copies by deltas, a snapshot that grows by increments, and a walk that
    copies it chunk by chunk."""

    config = CONFIG

    @initialize(capacity=st.sampled_from([0, 1, 64]), batches=st.integers(0, 6), seed=st.integers(0, 999))
    def start(self, capacity, batches, seed):
        self.set_up(capacity, None)
        self.model = TableModel(CONFIG, VALUES, SEED)
        self.live(seed, batches, count=2)

    def set_up(self, capacity, table_bytes):
        self.patch, self.threads_before = pytest.MonkeyPatch(), threads()
        # Batches as small as these would not be shared by threads.
        for least in ("table._LEAST", "pooled_rows._LEAST", "pooled_rows._LEAST_SUMMED", "row_copies._LEAST"):
            self.patch.setattr(f"model.{least}", 4)
        self.table_bytes = table_bytes
        self.table = EmbeddingTable(self.config, capacity, SEED, table_bytes)
        self.copies = [EmbeddingTable(self.config, 1) for _ in range(2)]
        self.positions = [0, 0]
        self.walk, self.chunks = None, []
        self.folder = tempfile.TemporaryDirectory()
        self.files: list[list[FileEntry]] = []  # of increments
        self.saved = 0  # version up to which they go
        self.time_ms = 0
        self.table.tick()

    def teardown(self):
        if hasattr(self, "table"):
            self.patch.undo()
            use_threads(self.threads_before)
            self.folder.cleanup()

    def admitted(self, unique, occurrences):
        return self.model.admit(unique, occurrences, self.time_ms, self.table.version)

    @rule(seed=st.integers(0, 999), batches=st.integers(2, 8), count=st.sampled_from([1, 2, 3]))
    def live(self, seed, batches, count):
        """Some batches at once: ids by hand are too few to fill a table."""
        use_threads(count)
        rng = np.random.default_rng(seed)
        for _ in range(batches):
            drawn = rng.integers(-1, IDS.size, rng.integers(1, 120)).tolist()
            self.learn(drawn, int(rng.integers(-1, 6)), int(rng.integers(99)), rng.random() < 0.9, rng.random() < 0.2)
            self.model.check(self.table)

    @rule(places=places, seconds=st.integers(-3, 12), seed=st.integers(0, 99), counted=st.booleans(), spoilt=st.booleans())
    def learn(self, places, seconds, seed, counted, spoilt):
        self.time_ms = max(0, self.time_ms + 1000 * seconds)
        rng, ids = np.random.default_rng(seed), matrix(places)
        unique, inverse, occurrences = self.table.dedup(ids, np.full(len(ids), counted))
        assert sorted(unique.tolist()) == np.union1d(ids, [0]).tolist() and (unique[inverse] == ids).all()
        assert occurrences.tolist() == [counted * int(key != 0) * np.count_nonzero(ids == key) for key in unique.tolist()]
        self.table.tick()
        rows, values = self.table.admit(unique, occurrences, self.time_ms)
        entries = self.admitted(unique, occurrences)
        self.same_keys(rows, entries)
        first, v = self.rows_of_nan(len(ids))
        assert not values[0].any() and (values[1:] == self.table.export(rows[1:]).values).all()
        self.table.pool(values, inverse, first, v)
        self.same_pooled(first, v, entries[inverse])
        gradients = self.scattered(rng, rows, unique, ids, inverse)
        if spoilt:
            gradients[rng.integers(rows.size), rng.integers(1 + DIM)] = rng.choice([np.nan, np.inf, -(2.0**61)])
        assert self.table.update(rows, gradients) == self.model.update(entries, gradients)

    def scattered(self, rng, rows, unique, ids, inverse):
        """Gradients by distinct id, of random ones of the pooled slots."""
        grad_first = rng.normal(size=len(ids)).astype(np.float32)
        grad_v = rng.normal(size=(len(ids), MEAN.size, DIM)).astype(np.float32)
        gradients = self.table.scatter([(grad_first, grad_v, inverse)], rows).copy()
        present = (ids != 0).astype(np.int64) @ (COLUMNS[:, None] == np.arange(MEAN.size))
        shares = np.where(MEAN, np.maximum(1, present), 1)[:, COLUMNS]
        whole = (
            np.concatenate([np.repeat(grad_first[:, None, None], COLUMNS.size, 1), grad_v[:, COLUMNS]], 2) / shares[..., None]
        )
        expected = np.zeros((unique.size, 1 + DIM))
        np.add.at(expected, inverse[ids != 0], whole[ids != 0])
        np.testing.assert_allclose(gradients[unique != 0], expected[unique != 0], rtol=1e-5, atol=1e-5)
        return gradients

    @rule(places=places, count=st.sampled_from([1, 2, 3]))
    def look_up(self, places, count):
        use_threads(count)
        ids = matrix(places)
        entries = self.model.read(ids.reshape(-1))
        self.same_keys(self.table.find(ids.reshape(-1)), entries)
        first, v = self.rows_of_nan(len(ids))
        self.table.lookup(ids, first, v)
        self.same_pooled(first, v, entries.reshape(ids.shape))

    @rule(seconds=st.integers(0, 30), budget=st.sampled_from([-1, 0, 1, 7, 1000]))
    def expire(self, seconds, budget):
        self.time_ms += 1000 * seconds
        self.table.tick()
        before = everything(self.table)
        let_go = self.table.expire(self.time_ms, budget)
        gone = np.array(sorted(before.keys() - everything(self.table).keys()), np.int64)
        assert let_go == gone.size
        self.model.expire(self.time_ms, budget, gone)

    @rule(reader=st.sampled_from([0, 1]))
    def take(self, reader):
        """A reader takes what has changed since it last did; what all have is forgotten."""
        since, copy = self.positions[reader], self.copies[reader]
        copy.load(self.table.export(self.table.touched_since(since)), self.table.removed_since(since))
        assert everything(copy) == everything(self.table)
        self.positions[reader] = self.table.version
        self.table.tick()
        held = [] if self.walk is None else [self.walk.since]
        self.table.trim(min(*self.positions, self.saved, *held))

    @precondition(lambda self: self.walk is None)
    @rule(chunk=st.sampled_from([1, 5, 60]))
    def begin_to_walk(self, chunk):
        self.walk, self.chunks = Walk(self.table, chunk), []
        self.table.tick()

    @precondition(lambda self: self.walk is not None)
    @rule(capacity=st.sampled_from([0, 3, 500]))
    def walk_on(self, capacity):
        """At its end the walk is written to files, and the table goes on from them."""
        rows = self.walk.step()
        if rows is not None:
            self.chunks.append(_rows_to_table(rows))
            return
        with tempfile.TemporaryDirectory() as folder:
            walked = [write_chunks(folder, "walked", "table", self.chunks)]
            closing = write_increment(folder, "closing", self.increment(self.walk.reached, self.walk.since))
            state = merge([read_increment(folder, entries) for entries in (walked, closing)])
        self.walk = None
        self.go_on_from(state, capacity)

    @rule()
    def save(self):
        """What has changed since the last increment, as a file beside the others."""
        if self.saved == self.table.version:
            return
        increment = self.increment(self.saved, self.saved)
        self.files.append(write_increment(self.folder.name, f"{len(self.files):06d}", increment))
        self.saved = self.table.version
        self.table.tick()

    @precondition(lambda self: self.walk is None)
    @rule(capacity=st.sampled_from([0, 3, 500]))
    def restore(self, capacity):
        """The table goes on from its snapshot, in another of any capacity; its readers do not notice."""
        version = self.table.version
        self.save()
        assert sorted(path.name for path in Path(self.folder.name).iterdir()) == sorted(
            entry.name for entries in self.files for entry in entries
        )
        state = merge([read_increment(self.folder.name, entries) for entries in self.files])
        self.go_on_from(state, capacity, version)

    def increment(self, touched_since, removed_since):
        rows = self.table.export(self.table.touched_since(touched_since))
        part = KeyedPart(_rows_to_table(rows), self.table.removed_since(removed_since))
        return Increment({"table": part}, {"table": self.table.state()})

    def go_on_from(self, state, capacity, version=None):
        restored = EmbeddingTable(self.config, capacity, SEED, self.table_bytes)
        restored.restore(
            _table_to_rows(state.keyed["table"].rows), state.whole["table"], self.table.version if version is None else version
        )
        assert everything(restored) == everything(self.table)
        for counter in ("expired", "evicted", "refused"):
            assert getattr(restored, counter) == getattr(self.table, counter)
        restored.tick()
        self.table = restored

    def rows_of_nan(self, n):
        return np.full((n, MEAN.size), np.nan, np.float32), np.full((n, MEAN.size, DIM), np.nan, np.float32)

    def same_pooled(self, first, v, entries):
        expected = self.model.pool(entries, COLUMNS, MEAN)
        np.testing.assert_allclose(first, expected[..., 0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(v, expected[..., 1:], rtol=1e-4, atol=1e-5)

    def same_keys(self, rows, entries):
        assert ((rows == 0) == (entries < 0)).all()
        keys = self.table.export(rows[rows > 0]).keys
        assert (keys == self.model.keys[entries[entries >= 0]]).all()

    @invariant()
    def same(self):
        if hasattr(self, "model"):
            self.model.check(self.table)


class HeldMachine(TableMachine):
    """The same of a table with room for a few ids."""

    config = HELD

    @initialize(
        capacity=st.sampled_from([0, 1, 64]),
        batches=st.integers(0, 6),
        seed=st.integers(0, 999),
        room=st.sampled_from([1, 7, 30, 90]),
    )
    def start(self, capacity, batches, seed, room):
        self.set_up(capacity, bytes_for(HELD, room))
        self.model = HeldModel(HELD, VALUES, SEED, most_ids(self.table))
        assert room <= most_ids(self.table) <= room + 1
        self.live(seed, batches, count=2)

    def admitted(self, unique, occurrences):
        there = self.table.export(self.table.touched_since(0)).keys
        return self.model.admit(unique, occurrences, self.time_ms, self.table.version, there)


TestTable = TableMachine.TestCase
TestHeldTable = HeldMachine.TestCase
TestTable.settings = TestHeldTable.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
