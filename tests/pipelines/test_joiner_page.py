"""The lines of docs/joiner.md, each a test of its name: what an order of arrival comes to, when, and how it is counted."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import small_logs
from join_histories import CLICK, CONFIG, DAY, LIKE, LONG_VIEW, action, apply, decided, features

from pipelines.batches import Final, Kind
from pipelines.join import Join
from pipelines.join_kernel import DUPLICATE, FAULT, HELD, LATE, STALE, TAKEN, UNUSED

PAGE = Path(__file__).parents[2] / "docs" / "joiner.md"
ALL_NEGATIVE = {(1, CLICK): False, (1, LONG_VIEW): False, (1, LIKE): False}
HOUR = 3_600_000


@pytest.fixture
def join():
    return Join(CONFIG)


def fates(joined):
    return joined.fate.tolist()


def test_the_page_and_the_tests_have_the_same_lines():
    lines = re.findall(r"^\| ([a-z][^|]*) \|", PAGE.read_text(), re.MULTILINE)
    named = {"test_" + re.sub(r"[^a-z]+", "_", line) for line in lines}
    here = {name for name in vars(sys.modules[__name__]) if name.startswith("test_") and "the_page" not in name}
    assert len(named) == len(lines) > 20
    assert here == named


def test_features_first_then_the_action_in_its_window(join):
    joined = apply(join, [features(1, 0), action(1, CLICK, 60_000)])
    assert decided(join, joined) == {(1, CLICK): True}
    assert joined.decisions.time_ms.tolist() == [60_000]
    assert join.newly_joined(joined.decisions) == 1


def test_features_and_no_action(join):
    assert decided(join, apply(join, [features(1, 0)], watermark=60_000)) == {}
    assert decided(join, apply(join, [], watermark=60_001)) == {(1, CLICK): False}
    assert decided(join, apply(join, [], watermark=DAY)) == {(1, LONG_VIEW): False, (1, LIKE): False}


def test_the_action_first_then_its_features(join):
    joined = apply(join, [action(1, LIKE, 1_000), features(1, 1_500)])
    assert fates(joined) == [HELD, TAKEN]
    assert decided(join, joined) == {(1, LIKE): True}
    assert joined.decisions.time_ms.tolist() == [1_500]
    assert join.counts.actions == 1


def test_an_action_without_features(join):
    assert apply(join, [action(7, CLICK, 0)], watermark=300_000).orphans.tolist() == []
    assert apply(join, [], watermark=300_001).orphans.tolist() == [0]
    assert join.counts.unmatched == 1


def test_several_actions_of_several_kinds(join):
    first = apply(join, [features(1, 0), action(1, CLICK, 1_000)])
    assert decided(join, first) == {(1, CLICK): True}
    assert join.newly_joined(first.decisions) == 1
    then = apply(join, [action(1, LIKE, 2_000)])
    assert decided(join, then) == {(1, LIKE): True}
    assert join.newly_joined(then.decisions) == 0
    assert decided(join, apply(join, [], watermark=DAY)) == {(1, LONG_VIEW): False}


def test_several_actions_of_one_kind(join):
    joined = apply(join, [features(1, 0), action(1, CLICK, 1), action(1, CLICK, 2)])
    assert fates(joined) == [TAKEN, TAKEN, DUPLICATE]
    assert decided(join, joined) == {(1, CLICK): True}
    assert join.counts.duplicates == 1


def test_a_repeated_request(join):
    joined = apply(join, [features(1, 0), features(1, 50_000)], watermark=60_001)
    assert fates(joined) == [TAKEN, DUPLICATE]
    assert decided(join, joined) == {(1, CLICK): False}
    assert (join.counts.rows, join.counts.duplicates) == (1, 1)


def test_a_repeated_action_held_for_its_features(join):
    joined = apply(join, [action(1, CLICK, 0), action(1, CLICK, 0), features(1, 10)])
    assert fates(joined) == [HELD, HELD, TAKEN]
    assert decided(join, joined) == {(1, CLICK): True}
    assert (join.counts.actions, join.counts.duplicates) == (1, 1)


def test_an_action_after_its_window_within_the_horizon(join):
    joined = apply(join, [features(1, 0), action(1, CLICK, 60_001)])
    assert fates(joined) == [TAKEN, LATE]
    assert decided(join, joined) == {(1, CLICK): False}
    assert join.counts.late == 1


def test_an_action_in_its_window_that_comes_after_its_head_was_decided(join):
    assert decided(join, apply(join, [features(1, 0)], watermark=61_000)) == {(1, CLICK): False}
    joined = apply(join, [action(1, CLICK, 30_000)], watermark=61_000)
    assert fates(joined) == [LATE]
    assert decided(join, joined) == {}


def test_a_record_beyond_the_horizon(join):
    joined = apply(join, [features(1, 0), features(2, DAY), features(1, 0), action(1, CLICK, 0)])
    assert fates(joined) == [TAKEN, TAKEN, STALE, STALE]
    assert join.counts.stale == 2


def test_a_request_id_used_again_beyond_the_horizon(join):
    joined = apply(join, [features(1, 0), features(1, join.horizon + 1)])
    assert fates(joined) == [TAKEN, TAKEN]
    assert decided(join, joined) == ALL_NEGATIVE
    assert decided(join, apply(join, [action(1, CLICK, join.horizon + 2)])) == {(1, CLICK): True}


def test_an_action_of_a_kind_that_no_head_uses(join):
    assert fates(apply(join, [features(1, 0), action(1, -1, 5)])) == [TAKEN, UNUSED]
    assert join.counts.unused == 1


def test_an_action_whose_clock_is_behind_its_impressions(join):
    apply(join, [features(1, 100_000)])
    joined = apply(join, [action(1, CLICK, 0)], watermark=100_000)
    assert fates(joined) == [TAKEN]
    assert decided(join, joined) == {(1, CLICK): True}


def test_an_action_that_comes_in_time_with_a_time_beyond_its_window(join):
    # Its partition's clock has not moved: it is ahead of its neighbours, within the skew that is believed.
    events = [np.array([each], np.int64) for each in action(1, CLICK, 70_000)]
    apply(join, [features(1, 0)])
    kind, key, act, time_ms = events
    joined = join.apply(kind.astype(np.int8), key, act.astype(np.int8), time_ms, np.array([1_000]), 1_000)
    assert fates(joined) == [LATE]
    assert decided(join, joined) == {}
    assert decided(join, apply(join, [], watermark=60_001)) == {(1, CLICK): False}


# Of the logs as they are merged


def apply_batch(join, batch):
    columns = (batch.column(name) for name in ("kind", "key", "action", "time_ms", "order_ms"))
    return join.apply(*columns, batch.watermark_ms)


def joined_of(logs, join):
    """``(request, head, label, ms since the start)`` of the heads decided, in order, and the events with their fates."""
    found, events, requests = [], [], {}
    while not logs.finished and (batch := logs.next(stop=False)) is not None:
        joined = apply_batch(join, batch)
        rows = batch.events.to_pylist()
        requests |= {row["key"]: row["request_id"] for row in rows}
        events += [(row["request_id"], fate) for row, fate in zip(rows, fates(joined), strict=True)]
        parts = [(joined, join.keys(joined.decisions.seq))]
        if batch.final is Final.END:
            closing = join.close()
            parts.append((closing, join.keys(closing.decisions.seq)))
        for part, keys in parts:
            d = part.decisions
            for i, key in enumerate(keys.tolist()):
                for h in range(len(small_logs.CONFIG.heads)):
                    if d.mask[i] >> h & 1:
                        at = int(d.time_ms[i]) - small_logs.START_MS
                        found.append((requests[key], h, bool(d.label[i] >> h & 1), at))
    return found, events


def shown(name, time_ms):
    return small_logs.features(name, time_ms, items=("v1",))


@pytest.fixture
def small():
    return Join(small_logs.CONFIG)  # click 60 s, like 300 s


def test_one_bad_clock_far_ahead_of_its_neighbours(tmp_path, small):
    records = [shown(f"r{n}", n * 1000) for n in range(12)]
    records.insert(6, shown("bad", 30 * HOUR))
    small_logs.write(tmp_path, "features", records)
    logs = small_logs.merged(tmp_path, follow=True, idle_s=1e9)
    found, events = joined_of(logs, small)
    assert [fate for _, fate in events].count(FAULT) == 1
    assert found == []  # nobody's window has passed
    assert small.clock < small_logs.START_MS + 12_000


def test_a_real_gap_in_the_stream(tmp_path, small):
    times = [*range(0, 6000, 1000), *range(10 * HOUR, 10 * HOUR + 6000, 1000)]
    small_logs.write(tmp_path, "features", [shown(f"r{n}", time_ms) for n, time_ms in enumerate(times)])
    found, events = joined_of(small_logs.merged(tmp_path), small)
    assert [fate for _, fate in events] == 12 * [TAKEN]
    clicks = {request: at for request, head, label, at in found if head == CLICK and not label}
    assert [clicks[f"r{n}"] for n in range(6)] == [60_000 + n * 1000 for n in range(6)]


def test_a_partition_that_stalls(tmp_path, small):
    small_logs.write(tmp_path, "features", [shown(f"r{n}", n * 10_000) for n in range(40)])
    small_logs.write(tmp_path, "actions", [small_logs.action("r0", 1_000 + n, "v1") for n in range(6)])
    logs = small_logs.merged(tmp_path, follow=True, idle_s=1e9)
    found, events = joined_of(logs, small)
    assert {request for request, _ in events} == {"r0"}
    assert found == [("r0", CLICK, True, 1_000)]
    small_logs.write(tmp_path, "actions", [small_logs.action("r1", 200_000 + n, "v1") for n in range(6)])
    found, events = joined_of(logs, small)
    assert {f"r{n}" for n in range(2, 20)} <= {request for request, _ in events}


def test_a_partition_that_goes_on_after_it_was_idle(tmp_path, small):
    small_logs.write(tmp_path, "features", [shown(f"r{n}", n * 10_000) for n in range(40)])
    logs = small_logs.merged(tmp_path, follow=True, idle_s=0.0)
    found, _ = joined_of(logs, small)
    assert ("r0", CLICK, False, 60_000) in found
    late = [small_logs.action("r0", 2_000, "v1"), *(small_logs.action("r38", 385_000 + n, "v1") for n in range(7))]
    small_logs.write(tmp_path, "actions", late)
    found, events = joined_of(logs, small)
    assert ("r0", LATE) in events
    assert found[0][:3] == ("r38", CLICK, True)


def test_the_logs_end(join):
    apply(join, [features(1, 1000), action(9, CLICK, 1000)])
    closing = join.close()
    assert decided(join, closing) == ALL_NEGATIVE
    assert closing.orphans.size == 1
    assert join.clock == 1000


def test_the_job_is_stopped(tmp_path, small):
    small_logs.write(tmp_path, "features", [shown("r0", 0)])
    logs = small_logs.merged(tmp_path, follow=True, idle_s=0.0)
    assert joined_of(logs, small)[0] == []
    batch = logs.next(stop=True)
    assert batch.final is Final.STOP
    assert not len(apply_batch(small, batch).decisions)
    again = Join(small_logs.CONFIG)
    again.load(small.state())
    small_logs.write(tmp_path, "actions", [small_logs.action("r0", 5_000, "v1")])
    goes_on = small_logs.merged(tmp_path, logs.positions, follow=True, idle_s=0.0)
    events = [batch for _ in range(3) if (batch := goes_on.next(stop=False)) is not None]
    joined = [
        again.apply(*(b.column(c) for c in ("kind", "key", "action", "time_ms", "order_ms")), b.watermark_ms) for b in events
    ]
    assert [part.decisions.label.tolist() for part in joined if len(part.decisions)] == [[1]]
    assert [int(kind) for b in events for kind in b.column("kind")] == [Kind.ACTION]


def test_all_heads_together():
    join = Join(CONFIG, early=False)
    assert decided(join, apply(join, [features(1, 0), action(1, CLICK, 5)])) == {}
    joined = apply(join, [], watermark=300_001)
    assert len(joined.decisions) == 1
    assert decided(join, joined) == {(1, CLICK): True, (1, LONG_VIEW): False, (1, LIKE): False}
