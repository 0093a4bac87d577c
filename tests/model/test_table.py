import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.feature_ids import default_key
from model.table import EmbeddingTable
from schemas.config import OptimizerConfig, Slot
from tests.model.table_checks import (
    ADAM,
    CONFIG,
    NUMBERS,
    SEED,
    SLOTS,
    TAG,
    USER,
    VALUES,
    VIDEO,
    WIDTH,
    WORD,
    PlainTable,
    admit,
    batches,
    contents,
    everything,
    feature_id,
    ids_of,
    initial_values,
    pooled,
    put,
    table_of,
)

NONE = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def initial() -> dict[int, np.ndarray]:
    return initial_values(VALUES, SEED)


STEP = st.tuples(st.just("step"), batches(), st.integers(0, 12_000), st.integers(0, 2**31))
EXPIRE = st.tuples(st.just("expire"), st.integers(0, 30_000), st.integers(0, 40))
MOVE = st.tuples(st.sampled_from(["read", "trim", "restore"]))


@settings(max_examples=60)
@given(st.lists(st.one_of(STEP, STEP, EXPIRE, MOVE), max_size=14))
def test_table_does_what_a_plain_table_does(initial, operations):
    table, plain = table_of(), PlainTable(initial)
    now, version, mirror = 0, 0, {}
    for name, *arguments in operations:
        if name == "step":
            values, wait, seed = arguments
            now += wait
            learn_both(table, plain, ids_of(values), now, np.random.default_rng(seed))
        elif name == "expire":
            wait, budget = arguments
            now += wait
            expire_both(table, plain, now, budget)
        elif name == "restore":
            old = table
            table = table_of()
            table.restore(old.export(old.touched_since(0)), old.state(), old.version)
            assert everything(table) == everything(old)
            assert layout(table) == layout(old)
        else:
            if version <= 0:
                mirror = {}  # version 0 is that of a reader that has nothing
            for key in table.removed_since(version).tolist():
                mirror.pop(key, None)
            mirror |= contents(table.export(table.touched_since(version)))
            version = table.version
            assert mirror == everything(table)
            table.tick()
            if name == "trim":
                table.trim(version)
        check_equal(table, plain)


def learn_both(table, plain, ids, now, rng):
    table.tick()
    unique, _, occurrences = table.dedup(ids, rng.random(len(ids)) < 0.7)
    rows, values = table.admit(unique, occurrences, now)
    keys = plain.admit(unique, occurrences, now)
    assert np.array_equal(rows, table.find(unique))
    live = [key for key in keys if key is not None]
    assert table.export(rows[unique != 0]).keys.tolist() == live
    assert np.array_equal(values[unique != 0], table.export(rows[unique != 0]).values)
    grads = rng.normal(size=(unique.size, WIDTH)).astype(np.float32)
    assert table.update(rows, grads) == 0
    plain.update(keys, grads)


def expire_both(table, plain, now, budget):
    before = plain.ids()
    removed = table.expire(now, budget)
    left = set(table.export(table.touched_since(0)).keys.tolist())
    gone = {key for key in before if key not in left}
    assert len(gone) == removed <= budget
    expired = {key for key in before if plain.is_expired(key, now)}
    assert gone <= expired
    if budget >= 40:  # more than the rows there can be
        assert gone == expired
    for key in gone:
        del plain.rows[key]


def check_equal(table, plain):
    rows = table.export(table.touched_since(0))
    assert sorted(rows.keys.tolist()) == sorted(plain.rows)
    assert len(table) == len(plain.ids())
    for i, key in enumerate(rows.keys.tolist()):
        row = plain.rows[key]
        np.testing.assert_allclose(rows.values[i], row.values, rtol=1e-4, atol=1e-5, err_msg=str(key))
        np.testing.assert_allclose(rows.optimizer[i, :WIDTH], row.m, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(rows.optimizer[i, WIDTH:], row.u, rtol=1e-4, atol=1e-6)
        if key > 0:
            assert (rows.counts[i], rows.last_seen_ms[i]) == (row.count, row.last_seen_ms)
        if row.slot.optimizer.kind == "adam":
            assert rows.steps[i] == row.steps


def layout(table):
    rows = table.export(table.touched_since(0))
    state = {name: array.tolist() for name, array in table.state().items()}
    return dict(zip(rows.numbers.tolist(), rows.keys.tolist(), strict=True)), state


def test_rows_and_state_of_two_tables_do_not_go_together():
    one, other = table_of(), table_of()
    put(one, [feature_id(USER, value) for value in range(1, 9)])
    with pytest.raises(ValueError, match="rows 5 to 12, not 5 to 4: give rows and state of one table"):
        table_of().restore(one.export(one.touched_since(0)), other.state(), 1)


def test_the_lowest_free_row_is_used_first():
    table = table_of()
    users = [feature_id(USER, value) for value in range(1, 41)]
    rows = put(table, users)
    removed = np.random.default_rng(0).permutation(40)[:25]
    table.load(table.export(rows[:0]), np.array(users)[removed])
    again = put(table, [feature_id(USER, value) for value in range(101, 131)])
    assert again.tolist() == [*np.sort(rows[removed]).tolist(), *range(rows.max() + 1, rows.max() + 6)]


def test_unadmitted_ids_read_and_train_their_slots_default_row():
    table = table_of()
    videos = [feature_id(VIDEO, value) for value in (1, 2)]
    rows = put(table, videos, times=1)
    default = table.export(rows[:1]).keys.tolist()
    assert default == [default_key(VIDEO)] and rows[0] == rows[1] and len(table) == 0
    table.update(rows, np.ones((2, WIDTH), np.float32))
    apart, together = table_of(), table_of()
    apart.update(rows[:1], np.ones((1, WIDTH), np.float32))
    together.update(rows[:1], np.full((1, WIDTH), 2, np.float32))
    assert everything(table) == everything(together) != everything(apart)


def test_ids_that_only_come_back_are_not_counted():
    table = table_of()
    video, user = feature_id(VIDEO, 1), feature_id(USER, 1)
    for _ in range(5):
        put(table, [video, user], times=0)
    assert len(table) == 0
    put(table, [video, user], times=2)
    assert [key for key in everything(table) if key > 0] == [user]
    put(table, [video], times=1)
    assert len(table) == 2


def test_padding_stays_zero():
    table = table_of()
    ids = ids_of(np.zeros((3, CONFIG.width)))
    rows = admit(table, ids, 0)
    assert rows.tolist() == [0]
    table.update(rows, np.ones((1, WIDTH), np.float32))
    first, v = pooled(table, rows, np.zeros(ids.shape, np.int32))
    assert not first.any() and not v.any() and len(table) == 0


@pytest.mark.parametrize("bad", [5 << 48 | 1, 901 << 48 | 1, 32767 << 48, 7, -1])
def test_an_id_of_an_unknown_slot_is_refused_and_changes_nothing(bad):
    table = table_of()
    before = everything(table)
    ids = np.array([0, feature_id(USER, 3), bad], np.int64)
    with pytest.raises(ValueError, match=str(bad)):
        table.find(ids)
    with pytest.raises(ValueError, match=str(bad)):
        table.admit(ids, np.ones(3, np.int32), 0)
    assert everything(table) == before and len(table) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_gradient_that_is_not_finite_is_counted_and_changes_nothing(bad):
    table = table_of()
    rows = put(table, [feature_id(USER, 1), feature_id(USER, 2), feature_id(TAG, 1)])
    before = table.export(rows)
    grads = np.ones((3, WIDTH), np.float32)
    grads[0, 2] = grads[2, 0] = bad
    assert table.update(rows, grads) == 2
    after = table.export(rows)
    changed = (before.values != after.values).any(1) | (before.optimizer != after.optimizer).any(1)
    assert changed.tolist() == [False, True, False]
    assert after.steps[2] == 0 and np.isfinite(after.values).all()


def test_expiry_follows_event_time_and_leaves_tombstones():
    table = table_of()
    table.tick()
    users = [feature_id(USER, value) for value in range(1, 9)]
    put(table, users[:4], time_ms=1_000)
    put(table, [*users[4:], feature_id(TAG, 1)], time_ms=9_000)
    table.tick()
    assert table.expire(21_999, 100) == 0  # rows are judged by whole seconds
    assert table.expire(22_000, 100) == 4
    assert table.removed_since(1).tolist() == users[:4]
    assert table.expire(10**15, 100) == 4
    assert [key for key in everything(table) if key > 0] == [feature_id(TAG, 1)]
    put(table, users[:1], time_ms=10**15)
    assert table.removed_since(1).tolist() == users[1:]
    assert table.removed_since(table.version).tolist() == []


def test_the_clock_hand_passes_every_row_in_bounded_steps():
    table = table_of()
    put(table, [feature_id(USER, value) for value in range(1, 101)])
    removed = [table.expire(10**9, 7) for _ in range(20)]
    assert max(removed) <= 7 and sum(removed) == 100 and len(table) == 0


def test_an_id_past_its_time_starts_anew_wherever_the_hand_stands(initial):
    swept, unswept = table_of(), table_of()
    user = feature_id(USER, 1)
    for table in (swept, unswept):
        rows = put(table, [user], time_ms=0)
        table.update(rows, np.ones((1, WIDTH), np.float32))
    swept.expire(30_000, 100)
    for table in (swept, unswept):
        rows = put(table, [user], time_ms=30_000)
        np.testing.assert_allclose(table.export(rows).values[0], initial[user], rtol=1e-6)
    assert everything(swept) == everything(unswept)


def test_a_step_of_earlier_events_finds_expired_what_a_later_one_did(initial):
    swept, unswept = table_of(), table_of()
    user, other = feature_id(USER, 1), feature_id(USER, 2)
    for table in (swept, unswept):
        rows = put(table, [user], time_ms=0)
        table.update(rows, np.ones((1, WIDTH), np.float32))
        put(table, [other], time_ms=21_500)
    assert swept.expire(15_000, 100) == 1  # the table's clock stands at 21.5 s
    for table in (swept, unswept):
        rows = put(table, [user], time_ms=19_900)
        np.testing.assert_allclose(table.export(rows).values[0], initial[user], rtol=1e-6)
    assert everything(swept) == everything(unswept)


def test_freed_rows_are_used_again():
    table = table_of()
    for round_ in range(30):
        put(
            table,
            [feature_id(USER, 1000 * round_ + value) for value in range(1, 101)],
            time_ms=10**6 * round_,
        )
        table.expire(10**6 * (round_ + 1), 1000)
    assert len(table) == 0
    assert table.nbytes - table_of().nbytes < 100_000


def test_readers_pay_for_what_was_touched():
    table = table_of()
    table.tick()
    put(table, [feature_id(USER, value) for value in range(1, 2001)])
    for _ in range(3):
        table.tick()
        put(table, [feature_id(USER, 5), feature_id(USER, 9)])
    touched = table.export(table.touched_since(1)).keys
    assert sorted(touched.tolist()) == [feature_id(USER, 5), feature_id(USER, 9)]
    assert len(table.touched_since(0)) == 2000 + len(SLOTS)
    assert len(table.touched_since(table.version)) == 0
    table.trim(3)
    with pytest.raises(ValueError, match="2"):
        table.touched_since(2)
    assert len(table.touched_since(3)) == 2


def test_finding_changes_nothing():
    table = table_of()
    put(table, [feature_id(USER, 1)])
    before, version = everything(table), table.version
    rows = table.find(np.array([0, feature_id(USER, 1), feature_id(USER, 2), feature_id(WORD, 2)], np.int64))
    assert rows[0] == 0 and rows[1] > len(SLOTS)
    assert table.export(rows[2:]).keys.tolist() == [default_key(USER), default_key(WORD)]
    assert everything(table) == before and table.version == version


def test_load_overwrites_removes_and_keeps_the_rest():
    source, target = table_of(), table_of()
    users = [feature_id(USER, value) for value in range(1, 5)]
    rows = put(source, users[:3], time_ms=5)
    source.update(rows, np.ones((3, WIDTH), np.float32))
    put(target, users[1:])
    target.tick()
    kept = everything(target)[users[2]]
    target.load(source.export(rows[:2]), np.array([users[3], feature_id(USER, 99)]))
    after = everything(target)
    assert sorted(key for key in after if key > 0) == users[:3]
    assert after[users[0]] == everything(source)[users[0]]
    assert after[users[1]] == everything(source)[users[1]]
    assert after[users[2]] == kept


def test_rows_from_before_a_slot_was_appended_are_taken():
    plain = tuple(replace(slot, admission=1, optimizer=OptimizerConfig()) for slot in CONFIG.slots)
    old = EmbeddingTable(replace(CONFIG, slots=plain), capacity=16, seed=SEED)
    rows = put(old, [feature_id(USER, 1), feature_id(VIDEO, 1)])
    old.update(rows, np.ones((2, WIDTH), np.float32))
    added = Slot("added", 12, "added", "user", "id", "int", admission=2, optimizer=ADAM)
    table = EmbeddingTable(replace(CONFIG, slots=(*plain, added)), capacity=16, seed=SEED)
    table.restore(old.export(old.touched_since(0)), old.state(), old.version)
    loaded = table.export(table.find(np.array([feature_id(USER, 1), feature_id(VIDEO, 1)], np.int64)))
    assert np.array_equal(loaded.values, old.export(rows).values)
    assert np.array_equal(loaded.optimizer[:, :WIDTH], old.export(rows).optimizer)
    assert not loaded.optimizer[:, WIDTH:].any()
    put(table, [feature_id(12, 1)])
    assert len(table) == 2
    put(table, [feature_id(12, 1)])
    assert len(table) == 3


def test_growth_loses_nothing():
    small, roomy = table_of(1), table_of(1 << 15)
    rng = np.random.default_rng(3)
    for step in range(8):
        ids = (rng.integers(1, 30_000, (400, CONFIG.width)) | (NUMBERS << 48)).astype(np.int64)
        for table in (small, roomy):
            rows = admit(table, ids, step)
            grads = np.random.default_rng(step).normal(size=(rows.size, WIDTH)).astype(np.float32)
            table.update(rows, grads)
    assert everything(small) == everything(roomy) and len(small) > 3000


def test_new_rows_are_normal_and_follow_from_seed_and_id():
    users = np.array([feature_id(VIDEO, value) for value in range(1, 20_001)], np.int64)
    one, again, other = table_of(), table_of(), EmbeddingTable(CONFIG, seed=SEED + 1)
    values = [
        table.admit(order, np.full(order.size, 3, np.int32), 0)[1].copy()
        for table, order in ((one, users), (again, users[::-1].copy()), (other, users))
    ]
    assert np.array_equal(values[0], values[1][::-1])
    v = values[0][:, 1:]
    assert not values[0][:, 0].any()
    assert abs(v.mean()) < 0.01 and abs(v.std() - 0.5) < 0.01
    assert abs(np.mean(np.abs(v) < 0.5) - 0.6827) < 0.02  # a standard deviation holds 68 % of a normal
    assert np.abs(np.corrcoef(v.T) - np.eye(WIDTH - 1)).max() < 0.04
    assert np.abs(np.corrcoef(v[:, 0], values[2][:, 1])[0, 1]) < 0.04


def test_warm_up_leaves_the_table_as_it_was():
    table = table_of()
    before = everything(table), table.nbytes, table.version
    table.warm_up()
    assert (everything(table), table.nbytes, table.version) == before


def test_values_are_the_same_in_another_process():
    code = (
        "import numpy as np; from tests.model.table_checks import *; t = table_of();"
        "rows = put(t, [feature_id(USER, v) for v in range(1, 50)]);"
        "t.update(rows, np.ones((rows.size, WIDTH), np.float32));"
        "print(t.export(rows).values.tobytes().hex())"
    )
    table = table_of()
    rows = put(table, [feature_id(USER, value) for value in range(1, 50)])
    table.update(rows, np.ones((rows.size, WIDTH), np.float32))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == table.export(rows).values.tobytes().hex()
