"""The lines of docs/joiner.md, each a test of its name: what an order of arrival comes to, when, and how it is counted."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import small_logs
from join_histories import CLICK, CONFIG, DAY, LIKE, LONG_VIEW, action, apply, decided, features

from pipelines.batches import Final, Kind
from pipelines.dead_letters import DeadLetterBox
from pipelines.join import Join
from pipelines.join_kernel import DUPLICATE, FAULT, HELD, LATE, STALE, TAKEN, UNUSED

PAGE = Path(__file__).parents[2] / "docs" / "joiner.md"
ALL_NEGATIVE = {(1, CLICK): False, (1, LONG_VIEW): False, (1, LIKE): False}
HOUR = 3_600_000
#: By key: what has been shown to one join is decided of another's events.
_REQUESTS = {}


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
    joined = apply(join, [action(1, CLICK, 0), action(1, CLICK, 5), features(1, 10)])
    assert fates(joined) == [HELD, HELD, TAKEN]
    assert joined.decisions.time_ms.tolist() == [10]
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


def test_a_request_id_used_again_beyond_the_horizon(join):
    joined = apply(join, [features(1, 0), features(1, join.horizon + 1)])
    assert fates(joined) == [TAKEN, TAKEN]
    assert decided(join, joined) == ALL_NEGATIVE
    assert decided(join, apply(join, [action(1, CLICK, join.horizon + 2)])) == {(1, CLICK): True}


def test_an_action_of_a_kind_that_no_head_uses(join):
    assert fates(apply(join, [features(1, 0), action(1, -1, 5)])) == [TAKEN, UNUSED]
    assert join.counts.unused == 1


def test_an_action_with_a_time_before_its_impressions(join):
    apply(join, [features(1, 100_000)], watermark=130_000)
    joined = apply(join, [action(1, CLICK, 0)], watermark=130_000)
    assert fates(joined) == [TAKEN]
    assert decided(join, joined) == {(1, CLICK): True}
    assert joined.decisions.time_ms.tolist() == [130_000]


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


class Joined:
    """What logs come to.

    Attributes:
        heads: ``(request, head, label, ms since the start)`` of those decided, in order.
        events: ``(request, fate)``, in order.
        letters: the dead letters.
    """

    def __init__(self, logs, join):
        self.heads, self.events, self.letters = [], [], []
        self._join = join
        dead = DeadLetterBox(small_logs.CONFIG, join.actions)
        while not logs.finished and (batch := logs.next(stop=False)) is not None:
            joined, rows = apply_batch(join, batch), batch.events.to_pylist()
            _REQUESTS.update({row["key"]: row["request_id"] for row in rows})
            self.events += [(row["request_id"], fate) for row, fate in zip(rows, fates(joined), strict=True)]
            dead.collect(batch, joined, join)
            self._decided(joined)
            if batch.final is Final.END:
                closing = join.close()
                dead.close(closing, join)
                self._decided(closing)
            self.letters += dead.drain()

    def _decided(self, joined):
        d = joined.decisions
        for i, key in enumerate(self._join.keys(d.seq).tolist()):
            for h in range(len(small_logs.CONFIG.heads)):
                if d.mask[i] >> h & 1:
                    at = int(d.time_ms[i]) - small_logs.START_MS
                    self.heads.append((_REQUESTS[key], h, bool(d.label[i] >> h & 1), at))


def clicked(name, time_ms, user="u1"):
    return small_logs.action(name, time_ms, "v1", user)


def written(root, shown_records=(), acted_records=()):
    for topic, records in (("features", shown_records), ("actions", acted_records)):
        if records:
            small_logs.write(root, topic, list(records))


def shown(name, time_ms):
    return small_logs.features(name, time_ms, items=("v1",))


@pytest.fixture
def small():
    return Join(small_logs.CONFIG)  # click 60 s, like 300 s


def orphan(tmp_path, small, user, request):
    written(tmp_path, [shown(request, 0), *(shown(f"r{n}", n * 100_000) for n in range(1, 9))], [clicked("r0", 5_000, user)])
    found = Joined(small_logs.merged(tmp_path, follow=True, idle_s=0.0), small)
    assert ("r0", HELD) in found.events
    (letter,) = found.letters
    assert (letter.partition, letter.reason) == ("actions/p000", "an action without an impression")
    assert small.counts.unmatched == 1
    assert (CLICK, True) not in {head[1:3] for head in found.heads}


def test_an_action_without_features(tmp_path, small):
    orphan(tmp_path, small, "u1", "another")


def test_an_action_of_another_user(tmp_path, small):
    orphan(tmp_path, small, "u2", "r0")


def test_a_record_beyond_the_horizon(tmp_path, small):
    written(tmp_path, [shown("r0", 0), *(shown(f"r{n}", HOUR + n) for n in range(1, 9)), shown("r0", 0)], [])
    found = Joined(small_logs.merged(tmp_path, max_skew_ms=2 * HOUR), small)
    assert found.events[-1] == ("r0", STALE)
    (letter,) = found.letters
    assert "further back than the join remembers" in letter.reason
    assert small.counts.stale == 1
    assert [request for request, *_ in found.heads].count("r0") == len(small_logs.CONFIG.heads)


def test_one_bad_clock_far_ahead_of_its_neighbours(tmp_path, small):
    records = [shown(f"r{n}", n * 1000) for n in range(12)]
    records.insert(6, shown("bad", 30 * HOUR))
    written(tmp_path, records)
    found = Joined(small_logs.merged(tmp_path, follow=True, idle_s=1e9), small)
    assert [fate for _, fate in found.events].count(FAULT) == len(found.letters) == 1
    assert found.heads == []  # nobody's window has passed
    assert small.clock < small_logs.START_MS + 12_000


def test_a_real_gap_in_the_stream(tmp_path, small):
    times = [*range(0, 6000, 1000), *range(10 * HOUR, 10 * HOUR + 6000, 1000)]
    written(tmp_path, [shown(f"r{n}", time_ms) for n, time_ms in enumerate(times)])
    found = Joined(small_logs.merged(tmp_path, follow=True, idle_s=1e9), small)
    assert {fate for _, fate in found.events} == {TAKEN}
    assert found.letters == []
    assert [head for head in found.heads if head[1] == CLICK] == [(f"r{n}", CLICK, False, 60_000 + n * 1000) for n in range(6)]


def test_a_partition_that_stalls(tmp_path, small):
    written(tmp_path, [shown(f"r{n}", n * 10_000) for n in range(40)], [clicked("r0", 1_000 + n) for n in range(6)])
    logs = small_logs.merged(tmp_path, follow=True, idle_s=1e9)
    found = Joined(logs, small)
    assert {request for request, _ in found.events} == {"r0"}
    assert found.heads == [("r0", CLICK, True, 1_000)]
    written(tmp_path, [], [clicked("r1", 200_000 + n) for n in range(6)])
    assert {f"r{n}" for n in range(2, 20)} <= {request for request, _ in Joined(logs, small).events}


def test_a_partition_that_goes_on_after_it_was_idle(tmp_path, small):
    """Of another user's features, too: their row's windows begin where the stream's clock stands."""
    written(tmp_path, [shown(f"r{n}", n * 10_000) for n in range(40)])
    logs = small_logs.merged(tmp_path, follow=True, idle_s=0.0)
    assert ("r0", CLICK, False, 60_000) in Joined(logs, small).heads
    written(tmp_path, [], [clicked("r0", 2_000), *(clicked("r38", 385_000 + n) for n in range(7))])
    small_logs.write(tmp_path, "features", [shown(f"late{n}", 1_000 + n) for n in range(8)], partition=1)
    small_logs.write(tmp_path, "features", [shown("end", 600_000 + n) for n in range(8)])
    found = Joined(logs, small)
    assert ("r0", LATE) in found.events
    assert ("r38", CLICK, True) in [head[:3] for head in found.heads]
    (decided_at,) = [at for request, head, _, at in found.heads if (request, head) == ("late0", CLICK)]
    assert decided_at >= 390_000 + 60_000


def test_the_logs_end(tmp_path, small):
    written(tmp_path, [shown("r0", 0)], [clicked("r9", 10)])
    found = Joined(small_logs.merged(tmp_path), small)
    assert [head[:3] for head in found.heads] == [("r0", CLICK, False), ("r0", 1, False)]
    assert [letter.reason for letter in found.letters] == ["an action without an impression"]
    assert small.counts.unmatched == 1
    assert small.clock == small_logs.START_MS + 10


def test_the_job_is_stopped(tmp_path, small):
    written(tmp_path, [shown("r0", 0)])
    logs = small_logs.merged(tmp_path, follow=True, idle_s=0.0)
    assert Joined(logs, small).heads == []
    batch = logs.next(stop=True)
    assert batch.final is Final.STOP
    assert not len(apply_batch(small, batch).decisions)
    again = Join(small_logs.CONFIG)
    again.load(small.state())
    written(tmp_path, [], [clicked("r0", 5_000)])
    goes_on = small_logs.merged(tmp_path, logs.positions, follow=True, idle_s=0.0)
    events = [batch for _ in range(3) if (batch := goes_on.next(stop=False)) is not None]
    joined = [apply_batch(again, each) for each in events]
    assert [part.decisions.label.tolist() for part in joined if len(part.decisions)] == [[1]]
    assert [int(kind) for each in events for kind in each.column("kind")] == [Kind.ACTION]


# With --emit complete


@pytest.fixture
def complete():
    return Join(CONFIG, early=False)


def test_all_heads_together(complete):
    assert decided(complete, apply(complete, [features(1, 0), action(1, CLICK, 5)], watermark=300_000)) == {}
    joined = apply(complete, [], watermark=300_001)
    assert len(joined.decisions) == 1
    assert decided(complete, joined) == {(1, CLICK): True, (1, LONG_VIEW): False, (1, LIKE): False}


def test_all_heads_together_with_an_action_late_for_an_early_head(complete):
    apply(complete, [features(1, 0)], watermark=200_000)
    assert fates(apply(complete, [action(1, CLICK, 30_000)], watermark=200_000)) == [TAKEN]
    assert decided(complete, apply(complete, [], watermark=300_001))[1, CLICK] is True


def test_all_heads_together_at_the_end_of_the_logs(complete):
    apply(complete, [features(1, 0), action(1, LIKE, 5)])
    assert decided(complete, complete.close()) == {(1, CLICK): False, (1, LONG_VIEW): False, (1, LIKE): True}
