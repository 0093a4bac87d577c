"""What an EmbeddingTable refuses, and what it does at its limits: nothing changes where something is refused."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from model.feature_ids import default_key
from model.table import EmbeddingTable
from model.walk import Walk
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot
from tests.model.table_checks import CONFIG, NUMBERS, USER, admit, everything, feature_id, put, table_of

ALL = [OptimizerConfig("sgd"), OptimizerConfig("adagrad"), OptimizerConfig("adam"), OptimizerConfig("ftrl", l1=0.1)]


def config_of(optimizer: OptimizerConfig, **slot) -> FeatureConfig:
    video = Slot("video", 1, "video", "item", "id", "int", **{"optimizer": optimizer, **slot})
    user = Slot("user", 2, "user", "user", "id", "int", optimizer=optimizer)
    return FeatureConfig("limits", (video, user), (Head("click", "click", 1.0),), ModelConfig(dim=4))


def full_table(**slot) -> EmbeddingTable:
    """A table without room for another row, all of video ids 1 and on."""
    config = config_of(ALL[0], **slot)
    sketch = EmbeddingTable(config, capacity=0)._sketch.nbytes
    table = EmbeddingTable(config, capacity=16, table_bytes=sketch + 60_000)
    table.tick()
    put(table, [feature_id(1, value) for value in range(1, table._arena.most - 2)], time_ms=1_000, times=100)
    assert len(table) == table._arena.most - 3 and table.evicted == table.refused == 0
    table.tick()
    return table


@pytest.mark.parametrize("optimizer", ALL, ids=lambda optimizer: optimizer.kind)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_default_row_keeps_values_and_state_where_no_gradient_is_finite(optimizer, bad):
    table = EmbeddingTable(config_of(optimizer, admission=9), capacity=16)
    table.tick()
    rows = put(table, [feature_id(1, 1), feature_id(1, 2)])
    assert rows[0] == rows[1] and not len(table)
    table.update(rows, np.ones((2, 5), np.float32))  # a default row that has learned: Adam and FTRL would go on by themselves
    table.tick()
    before, gradients = everything(table), np.ones((2, 5), np.float32)
    gradients[:, 3] = bad
    assert table.update(rows, gradients) == 2
    assert everything(table) == before and not table.touched_since(table.version - 1).size
    gradients[0] = 1.0
    assert table.update(rows, gradients) == 1
    assert everything(table) != before


def test_occurrences_need_a_mark_for_each_row():
    table = table_of()
    ids = np.zeros((3, CONFIG.width), np.int64)
    for of, counted in ((ids, np.ones(2, np.bool_)), (ids, np.ones((3, 1), np.bool_)), (ids[0], np.ones(3, np.bool_))):
        with pytest.raises(ValueError, match=r"ids of shape .* to count: pass int64\[N, W\] and bool\[N\]"):
            table.dedup(of, counted)


def test_the_key_of_a_default_row_is_no_id():
    table = table_of()
    ids = np.zeros((1, CONFIG.width), np.int64)
    ids[0, 0] = default_key(USER)
    with pytest.raises(ValueError, match=str(default_key(USER))):
        table.find(ids[0])
    slots = len(CONFIG.slots)
    with pytest.raises(ValueError, match=str(default_key(USER))):
        table.lookup(ids, np.zeros((1, slots), np.float32), np.zeros((1, slots, CONFIG.model.dim), np.float32))


def test_a_table_needs_a_capacity_of_zero_or_more():
    with pytest.raises(ValueError, match="a table with room for -1 rows"):
        EmbeddingTable(CONFIG, capacity=-1)
    table = EmbeddingTable(CONFIG, capacity=0)
    put(table, [feature_id(USER, 1)])
    assert len(table) == 1


def test_rows_that_have_a_key_twice_are_refused_before_anything_changes():
    source, target = table_of(), table_of()
    rows = source.export(put(source, [feature_id(USER, value) for value in (1, 2, 3)]))
    put(target, [feature_id(USER, 9)])
    before = everything(target)
    for twice in (feature_id(USER, 1), feature_id(USER, 9)):
        bad = replace(rows, keys=np.array([twice, feature_id(USER, 5), twice]))
        with pytest.raises(ValueError, match="a key occurs twice"):
            target.load(bad, np.array([feature_id(USER, 9)]))
        assert everything(target) == before


def test_rows_that_do_not_fit_are_refused_before_anything_changes():
    table, source = full_table(), EmbeddingTable(config_of(ALL[0]), capacity=16)
    before = everything(table)
    rows = source.export(put(source, [feature_id(1, value) for value in (1, 60_001, 60_002)]))
    leaving = np.array([feature_id(1, value) for value in (2, 2, 60_003)])  # makes room for one alone
    with pytest.raises(MemoryError, match="do not fit"):
        table.load(rows, leaving)
    assert everything(table) == before
    table.load(rows, np.array([feature_id(1, 2), feature_id(1, 3)]))
    assert len(table) == len(before) - 2 and set(rows.keys) <= set(everything(table))


def test_nothing_is_evicted_for_ids_that_do_not_pass():
    table = full_table(admission=100)
    new = [feature_id(1, value) for value in range(60_001, 60_021)]
    put(table, new, time_ms=2_000, times=99)
    assert table.evicted == table.refused == 0
    put(table, new, time_ms=2_000)
    assert table.refused == 0 and table.evicted >= len(new)
    assert (table.find(np.array(new)) > 2).all()
    assert table.export(table.find(np.array(new))).counts.tolist() == [100] * len(new)


def test_a_slots_last_rows_are_evicted_only_where_nothing_else_is_left():
    table = full_table(min_rows=10_000)
    users = [feature_id(2, value) for value in range(1, 11)]
    put(table, users[:1], time_ms=2_000)
    assert table.evicted > 0  # all there is are videos
    put(table, users, time_ms=2_000)
    table.tick()
    kept = {key for key in everything(table) if key >> 48 == 1}
    room = table._arena.most - 3 - len(table)
    put(table, [feature_id(2, value) for value in range(101, 102 + room)], time_ms=3_000)
    after = everything(table)
    assert kept <= set(after) and not set(users) <= set(after)  # though the videos are older
    assert table.refused == 0


def test_a_walk_from_the_beginning_brings_no_removed_row_back():
    table, copy = EmbeddingTable(config_of(ALL[0], ttl_s=10), capacity=16), EmbeddingTable(config_of(ALL[0]), capacity=16)
    walk, chunks = Walk(table, chunk=8), []
    for step in range(20):
        if (chunk := walk.step()) is not None:
            chunks.append(chunk)
        table.tick()
        put(table, [feature_id(1, 10 * step + value) for value in range(1, 11)], time_ms=4_000 * step)
        table.expire(4_000 * step, 100)
    assert table.expired > 0
    for chunk in chunks:
        copy.load(chunk, np.zeros(0, np.int64))
    copy.load(table.export(table.touched_since(walk.reached)), table.removed_since(walk.since))
    assert everything(copy) == everything(table)


def test_a_walk_and_lookups_go_on_beside_a_thread_that_writes():
    short = replace(CONFIG, slots=tuple(replace(slot, ttl_s=3) for slot in CONFIG.slots))
    table, rng = EmbeddingTable(short, capacity=1), np.random.default_rng(1)
    batches = (rng.integers(1, 3_000, (60, 500, CONFIG.width)) | (NUMBERS << 48)).astype(np.int64)
    failures: list[BaseException] = []
    ended = threading.Event()
    table.tick()

    def read() -> None:
        first = np.empty((500, len(CONFIG.slots)), np.float32)
        v = np.empty((500, len(CONFIG.slots), CONFIG.model.dim), np.float32)
        try:
            while not ended.is_set():
                table.lookup(batches[0], first, v)
                for _ in Walk(table, chunk=100):
                    pass
        except BaseException as error:  # told below: a thread's own would only be printed
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for step, ids in enumerate(batches):
        table.tick()
        admit(table, ids, 1_000 * step)
        table.expire(1_000 * step, 2_000)
    ended.set()
    reader.join()
    assert not failures and table.expired > 0
