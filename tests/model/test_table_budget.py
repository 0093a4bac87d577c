"""What an EmbeddingTable does where memory is short, and how else ids come in and go."""

from dataclasses import replace

import numpy as np
import pytest

from model.keyed_rows import KeyedRows
from model.table import EmbeddingTable
from model.walk import Walk
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot
from tests.model.table_checks import everything, feature_id, put

SGD = OptimizerConfig("sgd")


def config_of(**slot) -> FeatureConfig:
    video = Slot("video", 1, "video", "item", "id", "int", **{"optimizer": SGD, **slot})
    user = Slot("user", 2, "user", "user", "id", "int", optimizer=SGD)
    return FeatureConfig("budget", (video, user), (Head("click", "click", 1.0),), ModelConfig(dim=4))


def videos(first: int, last: int) -> list[int]:
    return [feature_id(1, value) for value in range(first, last)]


def fill(table: EmbeddingTable, first: int, last: int, time_ms: int, at_once: int = 50) -> None:
    for start in range(first, last, at_once):
        table.tick()
        put(table, videos(start, min(start + at_once, last)), time_ms)
        table.trim(table.version)


def test_a_budget_holds_and_the_oldest_leave_first():
    table = EmbeddingTable(config_of(), capacity=16, table_bytes=100_000)
    fill(table, 1, 401, time_ms=1_000_000)
    fill(table, 401, 601, time_ms=2_000_000)
    room = table._arena.most - 3
    assert 600 < room < 2_500 and table.evicted == 0
    fill(table, 601, room + 1, time_ms=3_000_000)
    fill(table, room + 1, room + 301, time_ms=4_000_000)
    assert table.nbytes <= 100_000
    assert len(table) <= room and table.evicted >= 300
    kept = {key & 0xFFFF for key in everything(table) if key > 0}
    assert set(range(601, room + 301)) <= kept  # only the oldest had to go
    assert table.refused == 0


def test_the_oldest_leave_first_wherever_they_lie():
    table = EmbeddingTable(config_of(), capacity=16, table_bytes=500_000)
    room = table._arena.most - 3
    cut = room * 9 // 10
    fill(table, 1, room + 1, time_ms=1_000, at_once=1_000)
    fill(table, 1, cut, time_ms=100_000_000, at_once=1_000)  # the hand stands before all of these
    gone = room // 64
    fill(table, room + 1, room + 1 + gone, time_ms=100_000_000, at_once=gone)
    found = table.find(np.array(videos(1, room + 1))) > 2
    assert table.evicted >= gone and found[: cut - 1].all() and np.count_nonzero(~found[cut - 1 :]) == table.evicted


def test_rows_that_a_slot_keeps_are_not_looked_at_until_it_has_more():
    table = EmbeddingTable(config_of(min_rows=2_000), capacity=16, table_bytes=500_000)
    room = table._arena.most - 3
    fill(table, 1, 2_001, time_ms=1_000_000, at_once=1_000)
    for first in range(1, room, 50):
        table.tick()
        put(table, [feature_id(2, value) for value in range(first, first + 50)], time_ms=2_000_000)
    kept = np.array(videos(1, 2_001))
    assert table.evicted > 1_000 and (table.find(kept) > 2).all()
    stretches = table._arena.arrays().oldest[1 : 2_000 >> 8]
    assert stretches.size and (stretches > 2_000).all()  # none of their rows was last seen by then, but for those kept
    fill(table, 5_001, 5_101, time_ms=9_000_000)
    left = np.count_nonzero(table.find(kept) > 2)
    assert 1_900 <= left < 2_000  # the oldest of all, of which it has more now


def test_a_batch_keeps_its_own_rows_and_what_does_not_fit_is_refused():
    table = EmbeddingTable(config_of(), capacity=16, table_bytes=100_000)
    room = table._arena.most - 3
    fill(table, 1, room + 1, time_ms=1_000)
    table.tick()
    rows = put(table, videos(10_001, 10_001 + room + 7), time_ms=2_000)
    assert table.refused == 7 and table.evicted == room
    assert np.unique(rows[rows > 2]).size == room
    assert (rows[-7:] == table.find(np.array(videos(60_000, 60_001)))).all()  # the slot's default row


def test_an_outlived_row_of_a_batch_may_be_evicted_by_that_batch():
    table = EmbeddingTable(config_of(ttl_s=10), capacity=16, table_bytes=100_000)
    room = table._arena.most - 3
    fill(table, 1, room + 1, time_ms=1_000)
    table.tick()
    ids = [*videos(10_001, 10_001 + room // 2), *videos(1, 1 + room // 4)]
    rows = put(table, ids, time_ms=60_000)
    assert table.evicted > room // 2 - 64 and table.refused == 0
    assert np.unique(rows).size == len(ids)
    assert table.export(rows).keys.tolist() == ids
    assert table.export(rows).counts.tolist() == [1] * len(ids)


def test_evicted_rows_leave_tombstones_and_a_replay_is_the_same():
    tables = [EmbeddingTable(config_of(), capacity=16, table_bytes=60_000) for _ in range(2)]
    for table in tables:
        table.tick()
        rng = np.random.default_rng(4)
        for step in range(60):
            table.tick()
            put(table, rng.choice(videos(1, 3000), 40, replace=False).tolist(), 1000 * step)
    assert tables[0].evicted > 100
    assert everything(tables[0]) == everything(tables[1])
    removed = tables[0].removed_since(1)
    assert removed.size and (tables[0].find(removed) <= 2).all()


def test_a_table_goes_on_from_a_snapshot_under_its_budget():
    tables = [EmbeddingTable(config_of(), capacity=16, table_bytes=60_000) for _ in range(2)]
    fill(tables[0], 1, 1500, time_ms=9_000)
    rows = tables[0].export(tables[0].touched_since(0))
    tables[1].restore(rows, tables[0].state(), tables[0].version)
    for table in tables:
        fill(table, 2000, 2400, time_ms=20_000)
    assert everything(tables[0]) == everything(tables[1])
    assert tables[0].evicted == tables[1].evicted > 0


def test_too_small_a_budget_is_refused_with_the_least_that_will_do():
    with pytest.raises(ValueError, match=r"table_bytes = 100 does not hold a single id: give at least (\d+)") as said:
        EmbeddingTable(config_of(), table_bytes=100)
    least = int(str(said.value).rsplit(" ", 1)[1])
    table = EmbeddingTable(config_of(), capacity=16, table_bytes=least)
    table.tick()
    assert put(table, videos(1, 2))[0] == 3


def test_draws_admit_nineteen_in_twenty_within_the_threshold_and_the_same_again():
    tables = [EmbeddingTable(config_of(admission=20, admission_mode="probability"), seed=3) for _ in range(2)]
    ids, admitted = videos(1, 4001), []
    for _ in range(20):
        for table in tables:
            table.tick()
            put(table, ids)
        admitted.append(len(tables[0]))
    assert abs(admitted[-1] / 4000 - 0.95) < 0.02
    assert abs(admitted[0] / 4000 - (1 - 0.05 ** (1 / 20))) < 0.02
    assert everything(tables[0]) == everything(tables[1])
    at_once = EmbeddingTable(config_of(admission=20, admission_mode="probability"))
    put(at_once, ids, times=20)
    assert abs(len(at_once) / 4000 - 0.95) < 0.02


@pytest.mark.parametrize(("init", "deviation"), [("zeros", 0.0), ("uniform", 0.5 / np.sqrt(3)), ("normal", 0.5)])
def test_rows_start_as_their_slot_has_it(init, deviation):
    table = EmbeddingTable(config_of(init=init, init_scale=0.5))
    values = table.export(put(table, videos(1, 5001))).values[:, 1:]
    assert abs(values.mean()) < 0.01 and abs(values.std() - deviation) < 0.01
    if init == "uniform":
        assert np.abs(values).max() <= 0.5


def test_the_last_rows_of_a_slot_stay():
    table = EmbeddingTable(config_of(ttl_s=10, min_rows=30))
    put(table, videos(1, 101), time_ms=1_000)
    assert table.expire(10**7, 1000) == 70 and table.expired == 70
    assert table.expire(10**8, 1000) == 0 and len(table) == 30
    left = [key for key in everything(table) if key > 0]
    assert (table.find(np.array(left)) > 2).all()
    put(table, left[:1], time_ms=10**8)
    assert len(table) == 30


def test_a_walk_and_what_changed_meanwhile_are_the_table():
    table, copy = EmbeddingTable(config_of(ttl_s=50), capacity=16), EmbeddingTable(config_of(ttl_s=50), capacity=4)
    fill(table, 1, 500, time_ms=1_000)
    walk, chunks, step = Walk(table, chunk=64), [], 0
    while len(chunks) == step:
        table.tick()
        step += 1
        rows = put(table, videos(400 + 20 * step, 430 + 20 * step), time_ms=1_000 + 9_000 * step)
        if (chunk := walk.step()) is not None:  # in the middle of a batch
            chunks.append(chunk)
        table.update(rows, np.full((30, 5), 0.1 * step, np.float32))
        table.expire(1_000 + 9_000 * step, 100)
    assert step > 12 and table.expired > 0
    touched = table.touched_since(walk.reached)
    assert touched.size <= 64 + 30 < table.touched_since(walk.since).size  # the last pass was whole, few are left to the end
    rows, removed = table.export(touched), table.removed_since(walk.since)
    for chunk in chunks:
        copy.load(chunk, np.zeros(0, np.int64))
    copy.load(rows, removed)
    assert everything(copy) == everything(table)


def test_bad_input_is_refused_in_words():
    table = EmbeddingTable(config_of(), capacity=0)
    assert [part.size for part in table.admit(np.zeros(0, np.int64), np.zeros(0, np.int32), 0)] == [0, 0]
    assert table.update(np.zeros(0, np.int32), np.zeros((0, 5), np.float32)) == 0
    with pytest.raises(ValueError, match="is of slot 9, which the feature configuration lacks"):
        table.find(np.array([feature_id(9, 1)]))
    with pytest.raises(ValueError, match="is not in a table of 3 rows"):
        table.update(np.array([77], np.int32), np.zeros((1, 5), np.float32))
    put(table, videos(1, 3))
    other = EmbeddingTable(replace(config_of(), model=ModelConfig(dim=8)))
    with pytest.raises(ValueError, match=r"values is \[4, 5\], expected \[4, 9\]: is it another configuration"):
        other.restore(table.export(table.touched_since(0)), table.state(), 1)
    assert isinstance(other, KeyedRows) and len(other) == 0
