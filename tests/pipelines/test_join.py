"""The joiner against a join over the whole history, written plainly."""

import dataclasses
import importlib

import pytest
import small_logs
from hypothesis import given, settings
from hypothesis import strategies as st
from join_histories import CLICK, CONFIG, LIKE, action, apply, decided, features

from pipelines import join_kernel
from pipelines.batches import Final, Kind
from pipelines.join import Join
from pipelines.ring import MIN_ROWS

WINDOWS = [round(head.window_s * 1000) for head in CONFIG.heads]


def brute_force(events):
    """What the whole history says, for events in time order: labels by (key, head) of the first features of a key."""
    impressions = {}
    for kind, key, _, time_ms in events:
        if kind == Kind.FEATURES:
            impressions.setdefault(key, time_ms)
    labels = {(key, h): False for key in impressions for h in range(3)}
    for kind, key, act, time_ms in events:
        if kind == Kind.ACTION and key in impressions and time_ms - impressions[key] <= WINDOWS[act]:
            labels[key, act] = True
    return labels


@st.composite
def histories(draw):
    """Events of few keys over half an hour, in time order; actions may come up to 5 s before their features."""
    events = []
    for key in range(draw(st.integers(0, 12))):
        shown = draw(st.integers(10_000, 900_000))
        events += [features(key, shown)] * draw(st.integers(1, 2))
        for _ in range(draw(st.integers(0, 4))):
            events.append(action(key, draw(st.integers(0, 2)), shown + draw(st.integers(-5_000, 400_000))))
    return sorted(events, key=lambda e: (e[3], e[0]))


@settings(max_examples=150)
@given(histories(), st.integers(1, 7), st.booleans())
def test_any_history_in_any_batches_gives_the_labels_of_the_whole(events, size, restarted):
    join = Join(CONFIG)
    found = {}
    for at in range(0, len(events), size):
        joined = apply(join, events[at : at + size])
        new = decided(join, joined)
        assert not new.keys() & found.keys()
        found |= new
        join.release(join.next)
        if restarted:
            state = join.state()
            join = Join(CONFIG)
            join.load(state)
    found |= decided(join, join.close())
    assert found == brute_force(events)


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize(("came", "met"), [(300_000, True), (300_001, False)])
def test_an_action_waits_for_its_features_as_long_wherever_batches_end(came, met, cut):
    join = Join(CONFIG)
    events = [action(7, LIKE, 0), features(8, came), features(7, came)]
    parts = [apply(join, events[:cut]), apply(join, events[cut:], watermark=came)]
    found = {}
    for part in parts:
        found |= decided(join, part)
    assert found.get((7, LIKE)) == (True if met else None)
    orphaned = [int(at) + cut * number for number, part in enumerate(parts) for at in part.orphaned]
    assert orphaned == ([] if met else [1])


@settings(max_examples=150)
@given(histories(), st.integers(1, 7))
def test_where_batches_end_changes_nothing(events, size):
    """Late actions, repeated requests and orphans included: what is forgotten is forgotten at its time."""
    events = sorted([*events, *((k, key, a, t + 1_200_000) for k, key, a, t in events)], key=lambda e: (e[3], e[0]))
    whole, cut = Join(CONFIG), Join(CONFIG)
    expected = apply(whole, events)
    parts = []
    for at in range(0, len(events), size):
        parts.append(apply(cut, events[at : at + size]))
        cut.release(cut.next)
    for name in ("seq", "mask", "label", "time_ms"):
        found = [x for part in parts for x in getattr(part.decisions, name).tolist()]
        assert found == getattr(expected.decisions, name).tolist()
    assert [x for part in parts for x in part.fate.tolist()] == expected.fate.tolist()
    orphaned = [at * size + x for at, part in enumerate(parts) for x in part.orphaned.tolist()]
    assert [x for part in parts for x in part.orphans.tolist()] == expected.orphans.tolist()
    assert orphaned == expected.orphaned.tolist()
    assert cut.counts == whole.counts


def test_memory_follows_the_window_not_the_stream():
    join = Join(CONFIG)
    for minute in range(300):
        apply(join, [features(minute * 1000 + i, minute * 60_000 + i) for i in range(1000)])
        join.release(join.next)
    assert join.next == 300_000
    assert join.capacity <= 1 << 15
    assert join.next - join.first <= 17 * 1000
    row_bytes = 5 * 8 + 2 * 4 * join.capacity / 17_000
    assert join.nbytes <= 17_000 * row_bytes + MIN_ROWS * 40


def test_many_rows_grow_the_ring_without_losing_one():
    join = Join(CONFIG)
    found = {}
    for part in range(5):
        events = [features(part * 3000 + i, part) for i in range(3000)]
        found |= decided(join, apply(join, events))
    found |= decided(join, apply(join, [action(k, CLICK, 10) for k in range(0, 15_000, 3)]))
    found |= decided(join, join.close())
    assert sum(found[k, CLICK] for k in range(15_000)) == 5_000


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Join(CONFIG).counts)])
def test_counts_survive_a_restart(field):
    join = Join(CONFIG)
    apply(
        join,
        [
            features(1, 0),
            features(1, 0),
            action(1, CLICK, 1),
            action(1, -1, 2),
            action(1, LIKE, 500_000),
            action(5, 0, 500_000),
        ],
    )
    again = Join(CONFIG)
    again.load(join.state())
    assert getattr(again.counts, field) == getattr(join.counts, field)


def test_after_the_warm_up_nothing_is_left_to_compile(tmp_path):
    kernels = importlib.reload(join_kernel)  # its functions anew, as a process finds them
    compiled = [kernel for kernel in vars(kernels).values() if hasattr(kernel, "signatures")]
    Join(small_logs.CONFIG).warm_up()
    before = {kernel.__name__: list(kernel.signatures) for kernel in compiled}
    assert before["advance"]
    small_logs.write_world(tmp_path, 40)
    join = Join(small_logs.CONFIG)
    for batch in small_logs.batches_of(tmp_path):
        columns = (batch.column(name) for name in ("kind", "key", "action", "time_ms", "order_ms"))
        join.apply(*columns, batch.watermark_ms)
        join.release(join.next)
    assert batch.final is Final.END
    assert len(join.close().decisions)
    assert {kernel.__name__: list(kernel.signatures) for kernel in compiled} == before
