"""The joiner against a join over the whole history, written plainly."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import small_logs
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import join_kernel
from pipelines.batches import Final, Kind
from pipelines.join import Join
from pipelines.join_kernel import DUPLICATE, HELD, LATE, STALE, TAKEN, UNUSED
from schemas.config import load_config

CONFIG = load_config(Path(__file__).parents[2] / "schemas" / "simulator.toml")  # click 60 s, long_view 180 s, like 300 s
CLICK, LONG_VIEW, LIKE = range(3)
WINDOWS = [round(head.window_s * 1000) for head in CONFIG.heads]
DAY = 86_400_000


def features(key, time_ms):
    return (int(Kind.FEATURES), key, -1, time_ms)


def action(key, number, time_ms):
    return (int(Kind.ACTION), key, number, time_ms)


def apply(join, events, watermark=None):
    columns = [np.array(c, np.int64) for c in zip(*events, strict=True)] if events else [np.zeros(0, np.int64)] * 4
    kind, key, act, time_ms = columns
    order = np.maximum.accumulate(time_ms) if len(time_ms) else time_ms
    mark = int(order[-1]) if watermark is None and len(order) else (watermark or 0)
    return join.apply(kind.astype(np.int8), key, act.astype(np.int8), time_ms, order, mark)


def decided(join, joined):
    """{(key, head): label} in order; a head decided twice is an error."""
    found = {}
    d = joined.decisions
    keys = join.keys(d.seq)
    for i in range(len(d)):
        for h in range(len(CONFIG.heads)):
            if d.mask[i] >> h & 1:
                assert (int(keys[i]), h) not in found
                found[int(keys[i]), h] = bool(d.label[i] >> h & 1)
    return found


def test_a_click_in_its_window_is_a_positive_at_once():
    join = Join(CONFIG)
    joined = apply(join, [features(1, 0), action(1, CLICK, 5_000)])
    assert decided(join, joined) == {(1, CLICK): True}
    assert joined.decisions.time_ms.tolist() == [5_000]


def test_silence_makes_a_negative_when_the_window_has_passed_and_not_before():
    join = Join(CONFIG)
    assert decided(join, apply(join, [features(1, 0)], watermark=60_000)) == {}
    assert decided(join, apply(join, [], watermark=60_001)) == {(1, CLICK): False}
    assert decided(join, apply(join, [], watermark=DAY)) == {(1, LONG_VIEW): False, (1, LIKE): False}


def test_an_action_before_its_features_waits_for_them():
    join = Join(CONFIG)
    joined = apply(join, [action(1, LIKE, 1_000), features(1, 1_500)])
    assert joined.fate.tolist() == [HELD, TAKEN]
    assert decided(join, joined) == {(1, LIKE): True}


def test_an_action_without_features_is_given_up_after_the_longest_window():
    join = Join(CONFIG)
    assert apply(join, [action(7, CLICK, 0)], watermark=300_000).orphans.tolist() == []
    assert apply(join, [], watermark=300_001).orphans.tolist() == [0]
    assert join.counts.unmatched == 1


def test_repetitions_are_counted_and_change_nothing():
    join = Join(CONFIG)
    joined = apply(join, [features(1, 0), features(1, 0), action(1, CLICK, 1), action(1, CLICK, 2)])
    assert joined.fate.tolist() == [TAKEN, DUPLICATE, TAKEN, DUPLICATE]
    assert join.counts.duplicates == 2
    assert decided(join, joined) == {(1, CLICK): True}


def test_an_action_after_its_window_is_late():
    join = Join(CONFIG)
    joined = apply(join, [features(1, 0), action(1, CLICK, 60_001)])
    assert joined.fate.tolist() == [TAKEN, LATE]
    assert decided(join, joined) == {(1, CLICK): False}


def test_what_is_older_than_the_join_remembers_is_stale_not_a_negative():
    join = Join(CONFIG)
    apply(join, [features(1, 0)])
    joined = apply(join, [features(2, DAY), features(1, 0)])
    assert joined.fate.tolist() == [TAKEN, STALE]


def test_an_action_that_no_head_uses_is_unused():
    join = Join(CONFIG)
    assert apply(join, [features(1, 0), action(1, -1, 5)]).fate.tolist() == [TAKEN, UNUSED]


def test_complete_emission_decides_all_heads_together():
    join = Join(CONFIG, early=False)
    assert decided(join, apply(join, [features(1, 0), action(1, CLICK, 5)])) == {}
    joined = apply(join, [], watermark=300_001)
    assert len(joined.decisions) == 1
    assert decided(join, joined) == {(1, CLICK): True, (1, LONG_VIEW): False, (1, LIKE): False}


def test_closing_decides_everything_and_leaves_the_clock():
    join = Join(CONFIG)
    apply(join, [features(1, 1000), action(9, CLICK, 1000)])
    closing = join.close()
    assert decided(join, closing) == {(1, h): False for h in range(3)}
    assert closing.orphans.size == 1
    assert join.clock == 1000


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
