"""The table against plain NumPy, whatever is done to it in whatever order: nothing is lost, merged, or missed by a reader."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.table import EmbeddingTable
from model.walk import Walk
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot
from tests.model.table_model import TableModel

SGD, ADAGRAD, ADAM = (OptimizerConfig(kind) for kind in ("sgd", "adagrad", "adam"))
FTRL = OptimizerConfig("ftrl", l1=0.001, l2=0.001)
CONFIG = FeatureConfig(
    "stateful",
    (
        Slot("user", 1, "user", "user", "id", "int", ttl_s=20, optimizer=SGD),
        Slot("tags", 3, "tags", "user", "bag", "string", max_length=3, admission=3, ttl_s=9, optimizer=ADAGRAD),
        Slot("video", 7, "video", "item", "id", "int", admission=2, admission_mode="probability", optimizer=ADAM),
        Slot("kept", 900, "kept", "item", "id", "int", ttl_s=5, min_rows=4, init="uniform", optimizer=FTRL),
    ),
    (Head("click", "click", 60.0),),
    ModelConfig(dim=3),
)
VALUES, SEED = 40, 5
IDS = TableModel(CONFIG, VALUES, SEED).ids

places = st.lists(st.integers(-1, IDS.size - 1), min_size=1, max_size=60)  # -1 pads


def everything(table: EmbeddingTable) -> dict[int, tuple]:
    """All rows by key, but for what is the table's own: where they lie, and when they were touched."""
    rows = table.export(table.touched_since(0))
    columns = (rows.values, rows.optimizer, rows.steps, rows.counts, rows.last_seen_ms)
    return {int(key): tuple(column[i].tobytes() for column in columns) for i, key in enumerate(rows.keys)}


class TableMachine(RuleBasedStateMachine):
    """One table, a model of it, two readers that keep copies by deltas, and a walk that copies it chunk by chunk."""

    @initialize(capacity=st.sampled_from([0, 1, 64]))
    def start(self, capacity):
        self.table, self.model = EmbeddingTable(CONFIG, capacity, SEED), TableModel(CONFIG, VALUES, SEED)
        self.copies = [EmbeddingTable(CONFIG, 1) for _ in range(2)]
        self.positions = [0, 0]
        self.walk, self.walked = None, EmbeddingTable(CONFIG, 1)
        self.time_ms = 0
        self.table.tick()

    @rule(places=places, seconds=st.integers(-3, 12), seed=st.integers(0, 99), counted=st.booleans(), spoilt=st.booleans())
    def learn(self, places, seconds, seed, counted, spoilt):
        self.time_ms = max(0, self.time_ms + 1000 * seconds)
        rng, width = np.random.default_rng(seed), CONFIG.width
        ids = np.zeros((-(-len(places) // width), width), np.int64)
        ids.flat[: len(places)] = np.append(IDS, 0)[places]
        unique, inverse = self.table.dedup(ids)
        assert sorted(unique.tolist()) == np.union1d(ids, [0]).tolist() and (unique[inverse] == ids).all()
        occurrences = self.table.count(inverse, np.full(len(ids), counted), unique.size)
        assert occurrences.tolist() == [counted * int(key != 0) * np.count_nonzero(ids == key) for key in unique.tolist()]
        self.table.tick()
        rows = self.table.admit(unique, occurrences, self.time_ms)
        entries = self.model.admit(unique, occurrences, self.time_ms, self.table.version)
        self.same_keys(rows, entries)
        gradients = rng.normal(size=(rows.size, 4)).astype(np.float32)
        if spoilt:
            gradients[rng.integers(rows.size), rng.integers(4)] = rng.choice([np.nan, np.inf, -(2.0**61)])
        assert self.table.update(rows, gradients) == self.model.update(entries, gradients)

    @rule(places=places)
    def find(self, places):
        ids = np.append(IDS, 0)[places]
        self.same_keys(self.table.find(ids), self.model.read(ids))

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
        self.table.trim(min(*self.positions, *held))

    @precondition(lambda self: self.walk is None)
    @rule(chunk=st.sampled_from([1, 5, 60]))
    def begin_to_walk(self, chunk):
        self.walk, self.walked = Walk(self.table, chunk), EmbeddingTable(CONFIG, 1)
        self.table.tick()

    @precondition(lambda self: self.walk is not None)
    @rule()
    def walk_on(self):
        rows = self.walk.step()
        if rows is not None:
            self.walked.load(rows, np.zeros(0, np.int64))
            return
        since = self.walk.since
        self.walked.load(self.table.export(self.table.touched_since(since)), self.table.removed_since(since))
        assert everything(self.walked) == everything(self.table)
        self.walk = None

    @precondition(lambda self: self.walk is None)
    @rule(capacity=st.sampled_from([0, 3, 500]))
    def restore(self, capacity):
        """The table goes on from a snapshot, in another of any capacity; its readers do not notice."""
        rows, state = self.table.export(self.table.touched_since(0)), self.table.state()
        restored = EmbeddingTable(CONFIG, capacity, SEED)
        restored.restore(rows, state, self.table.version)
        assert everything(restored) == everything(self.table)
        self.table = restored

    def same_keys(self, rows, entries):
        assert ((rows == 0) == (entries < 0)).all()
        keys = self.table.export(rows[rows > 0]).keys
        assert (keys == self.model.keys[entries[entries >= 0]]).all()

    @invariant()
    def same(self):
        if hasattr(self, "table"):
            self.model.check(self.table)


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
