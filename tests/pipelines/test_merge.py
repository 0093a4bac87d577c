"""Both logs by event time: the order, the positions, and what bad clocks, holes and damage do to them."""

import itertools
import random
import types

import numpy as np
import pytest
from small_logs import (
    ACTIONS,
    CONFIG,
    START_MS,
    action,
    batches_of,
    features,
    merged,
    rows_of,
    world,
    write,
    write_foreign,
    write_world,
)

from pipelines import stream
from pipelines.batches import START, EventBatch, Final, Kind, Position
from pipelines.merge import MergedLogs
from pipelines.stream import judge_times
from schemas.avro import encode_body, load_schema
from schemas.log_files import Chunk, PartitionReader, partition_of
from schemas.log_segments import LogHoleError, list_partitions
from schemas.logs import FileLogs
from schemas.records import Records

HOUR = 3_600_000


def names(batches):
    return [row["request_id"] for row in rows_of(batches)]


def faults_of(batches):
    return [row for row in rows_of(batches) if row["kind"] == Kind.FAULT]


def identity(row):
    """What makes a row the same event, whatever batch it came in."""
    keep = ("partition", "offset", "kind", "time_ms", "order_ms", "key", "item_id", "ids", "reason", "raw")
    return tuple(str(row[name]) for name in keep)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A world in three partitions whose clocks differ by minutes, with bad records, a foreign file and a corrupt block."""
    root = tmp_path_factory.mktemp("three")
    rng = random.Random(5)
    for topic, records in zip(("features", "actions"), world(400), strict=True):
        for partition in range(3):
            own = [r for r in records if partition_of(r["user_id"], 3) == partition]
            own = [r | {"time_ms": r["time_ms"] + partition * 90_000} for r in own]
            for record in rng.sample(own, 6):
                record["time_ms"] += rng.choice([2 * HOUR, 400 * HOUR, -START_MS * 2])
                record["request_id"] += " bad"
            half = len(own) // 2
            write(root, topic, own[:half], partition, records_a_block=20)
            write(root, topic, own[half:], partition, records_a_block=20)
    path = max((root / "features" / "p001").glob("*.avro"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return root


def test_partitions_are_merged_by_event_time_features_first(tmp_path):
    write(tmp_path, "features", [features("a", 0), features("c", 20)], 0)
    write(tmp_path, "features", [features("b", 10), features("d", 20)], 1)
    write(tmp_path, "actions", [action("x", 10), action("y", 15), action("z", 20)])
    assert names(batches_of(tmp_path)) == ["a", "a", "b", "b", "x", "y", "c", "c", "d", "d", "z"]


def test_every_record_comes_once_in_time_order_with_its_place(three):
    rows = rows_of(batches_of(three, batch_rows=100))
    assert (np.diff([row["order_ms"] for row in rows]) >= 0).all()
    for topic, partition in itertools.product(("features", "actions"), range(3)):
        reader = PartitionReader(three, topic, partition)
        chunk = reader.read(10**6)
        mine = [row for row in rows if row["partition"] == f"{topic}/p{partition:03d}"]
        expected = [(fault.offset, "") for fault in chunk.faults]
        for record, offset in zip(chunk.records, chunk.offsets.tolist(), strict=True):
            bad = record["request_id"].endswith("bad")
            expected += [(offset, "")] if bad else [(offset, record["request_id"])] * len(record.get("items", "1"))
        assert len(chunk.faults) == (topic == "features" and partition == 1)
        assert sorted((row["offset"], row["request_id"]) for row in mine) == sorted(expected)
        assert [row["offset"] for row in mine] == sorted(row["offset"] for row in mine)


def test_the_order_does_not_depend_on_the_size_of_batches(three):
    whole = list(map(identity, rows_of(batches_of(three, batch_rows=10**6))))
    for size in (1, 7, 500):
        batches = batches_of(three, batch_rows=size)
        assert list(map(identity, rows_of(batches))) == whole
        assert max(map(len, batches)) <= max(size, 3)


def test_batches_follow_each_other_without_a_gap_and_end_at_the_end(three):
    at = {}
    for batch in batches_of(three, batch_rows=64):
        assert batch.spans or batch.final
        for name, span in batch.spans.items():
            assert span.first == at.get(name, START).offset
            assert (span.next > span.first) is (batch.final is Final.NO)  # the last one only says where it stands
            at[name] = Position(span.next, span.order_ms)
            inside = batch.column("offset")[batch.column("partition") == batch.partitions.index(name)]
            assert (inside >= span.first).all()
            assert (inside < span.next).all()
    for topic, partition in itertools.product(("features", "actions"), range(3)):
        assert at[f"{topic}/p{partition:03d}"].offset == PartitionReader(three, topic, partition).end_offset()


def test_watermarks_promise_what_follows(three):
    batches = batches_of(three, batch_rows=64)
    orders = [batch.column("order_ms") for batch in batches]
    for i, batch in enumerate(batches[:-1]):
        assert all(later.min() >= batch.watermark_ms for later in orders[i + 1 :] if later.size)
        if len(batch):
            assert batch.watermark_ms == orders[i].max()


def test_reading_goes_on_from_any_position_with_the_same_events(three):
    batches = batches_of(three, batch_rows=50)
    rows = [list(map(identity, rows_of([batch]))) for batch in batches]
    positions = {}
    for number, batch in enumerate(batches[:-1]):
        positions |= {name: Position(span.next, span.order_ms) for name, span in batch.spans.items()}
        rest = list(itertools.chain(*rows[number + 1 :]))
        assert list(map(identity, rows_of(batches_of(three, positions, batch_rows=70)))) == rest


def test_positions_before_a_partitions_first_record_keep_its_clock(tmp_path):
    """Partition 1 begins hours later: a batch that has none of its records must not move its clock to their time."""
    write(tmp_path, "features", [features(f"a{n}", n * 1000) for n in range(20)], 0)
    write(tmp_path, "features", [features(f"b{n}", 10_000 + n * 1000) for n in range(20)], 1)
    first = batches_of(tmp_path, batch_rows=8)[0]
    assert set(names([first])) == {"a0", "a1", "a2", "a3"}
    assert first.spans["features/p001"].order_ms == START.order_ms


def test_a_request_with_a_bad_clock_is_one_fault_with_its_bytes(tmp_path):
    """All its videos share its time: they are no neighbours of each other."""
    bad = features("bad", 30 * HOUR, items=tuple(f"v{n}" for n in range(7)))
    records = [features(f"r{n}", n * 1000) for n in range(12)]
    write(tmp_path, "features", [*records[:6], bad, *records[6:]])
    batches = batches_of(tmp_path)
    (fault,) = faults_of(batches)
    assert fault["raw"] == encode_body("features", bad)
    assert "more than 3600 s ahead of its neighbours" in fault["reason"]
    good = [row for row in rows_of(batches) if row["kind"] != Kind.FAULT]
    assert [row["request_id"] for row in good[::2]] == [record["request_id"] for record in records]
    assert max(row["order_ms"] for row in good) == START_MS + 11_000


@pytest.mark.parametrize("place", [0, 1, 11, 12])
def test_a_bad_clock_is_told_anywhere_in_the_log(tmp_path, place):
    records = [action(f"r{n}", n * 1000) for n in range(12)]
    write(tmp_path, "actions", [*records[:place], action("bad", 2 * HOUR), *records[place:]])
    batches = batches_of(tmp_path)
    assert len(faults_of(batches)) == 1
    assert "bad" not in names(batches)


def test_a_gap_in_the_stream_is_no_bad_clock(tmp_path):
    times = [*range(0, 6000, 1000), *range(10 * HOUR, 10 * HOUR + 6000, 1000)]
    write(tmp_path, "actions", [action(f"r{n}", time_ms) for n, time_ms in enumerate(times)])
    assert faults_of(batches_of(tmp_path)) == []


def test_a_replay_of_long_ago_is_not_absurd(tmp_path):
    write(tmp_path, "actions", [action(f"r{n}", n * 1000 - 10 * 365 * 24 * HOUR) for n in range(10)])
    assert faults_of(batches_of(tmp_path)) == []


def plain_verdicts(times, clock_ms, skew_ms):
    """As the rule reads, record by record."""
    ahead = []
    for i, time_ms in enumerate(times):
        behind = times[i + 1 : i + 6]
        too_far = time_ms - clock_ms > skew_ms and (np.median(behind) < time_ms - skew_ms if behind else clock_ms >= 0)
        ahead.append(bool(too_far))
        clock_ms = clock_ms if too_far else max(clock_ms, time_ms)
    return ahead


@pytest.mark.parametrize("seed", range(20))
def test_verdicts_are_those_of_the_plain_rule_in_any_portions(seed):
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.integers(0, 30, 80)) + np.cumsum(rng.random(80) < 0.05) * 500
    times = (drift + (rng.random(80) < 0.15) * rng.integers(-400, 900, 80)).clip(0)
    clock_ms = int(rng.choice([-1, 10]))
    expected = plain_verdicts(times.tolist(), clock_ms, 100)
    assert judge_times(times, clock_ms, 100, 0)[1].tolist() == expected
    found, waiting, rest = [], times[:0], times
    while rest.size or waiting.size:
        waiting, rest = np.concatenate([waiting, rest[: (n := int(rng.integers(1, 9)))]]), rest[n:]
        count, ahead = judge_times(waiting, clock_ms, 100, 5 if rest.size else 0)
        found += ahead[:count].tolist()
        clock_ms = max([clock_ms, *waiting[:count][~ahead[:count]].tolist()])
        waiting = waiting[count:]
    assert found == expected


def test_a_file_of_another_schema_is_one_fault_and_the_rest_is_read(tmp_path):
    write(tmp_path, "actions", [action("before", 0)])
    schema = {"type": "record", "name": "Action", "namespace": "freshet", "fields": [{"name": "who", "type": "string"}]}
    write_foreign(tmp_path, "actions", schema, [{"who": "somebody"}] * 20)
    write(tmp_path, "actions", [action("after", 10)])
    batches = batches_of(tmp_path)
    (fault,) = faults_of(batches)
    assert "schema" in fault["reason"]
    assert b"somebody" in fault["raw"]
    assert names(batches) == ["before", "", "after"]


def test_a_file_of_an_older_schema_is_read(tmp_path):
    schema = {**load_schema("actions"), "fields": load_schema("actions")["fields"][:-1]}
    write_foreign(tmp_path, "actions", schema, [action("old", 0)])
    assert names(batches_of(tmp_path)) == ["old"]


def test_a_log_that_lost_a_segment_says_where_and_what_to_do(tmp_path):
    for part in range(3):
        write(tmp_path, "features", [features(f"r{part}-{n}", part * 1000 + n) for n in range(5)])
    segments = sorted((tmp_path / "features" / "p000").glob("*.avro"))
    segments[1].unlink()
    logs = merged(tmp_path)
    with pytest.raises(LogHoleError, match=r"features/p000: reading is at byte \d+.*restore the missing segments"):
        while not logs.finished:
            logs.next(stop=False)


@pytest.mark.parametrize("name", ["features/p000", "features/p007"])
def test_a_position_past_the_end_of_the_log_says_where_and_what_to_do(tmp_path, name):
    """A state directory of other logs, or of a partition that is gone."""
    write_world(tmp_path, 5)
    with pytest.raises(LogHoleError, match=rf"{name}: reading is at byte 9999999.*start anew"):
        batches_of(tmp_path, {name: Position(9_999_999, START_MS)})


def drain(logs):
    """What a growing log has to give now."""
    batches = []
    while (batch := logs.next(stop=False)) is not None:
        batches.append(batch)
    return batches


def test_a_growing_log_holds_back_what_a_silent_partition_may_precede_until_it_is_idle(tmp_path):
    write(tmp_path, "features", [features(f"r{n}", n * 1000) for n in range(8)])
    write(tmp_path, "actions", [action(f"r{n}", 2500 + n) for n in range(6)])
    patient = merged(tmp_path, follow=True, idle_s=1e9)
    assert names(drain(patient)) == ["r0", "r0", "r1", "r1", "r2", "r2", "r0", "r1", "r2", "r3", "r4"]
    write(tmp_path, "actions", [action("r5", 5500)])
    assert names(drain(patient)) == ["r5", "r3", "r3", "r4", "r4", "r5", "r5"]
    impatient = merged(tmp_path, follow=True, idle_s=0.0)
    assert set(names(drain(impatient))) == {f"r{n}" for n in range(8)}
    assert not impatient.finished


class Lagging(FileLogs):
    """Logs whose actions come only every so many reads, though they are there: as from a broker that is busy."""

    def reader(self, topic, partition, offset):
        reader = super().reader(topic, partition, offset)
        return LaggingReader(reader, offset) if topic == "actions" else reader


class LaggingReader:
    def __init__(self, reader, offset):
        self._reader, self._next, self.reads, self.at_end = reader, offset, 0, False

    def read(self, max_records):
        self.reads += 1
        if self.reads % 7:
            self.at_end = False
            return Chunk(Records.of("actions"), np.zeros(0, np.int64), self._next)
        found = self._reader.read(20)
        self.at_end = not len(found.records)
        self._next = found.next_offset
        return found


def test_a_partition_that_lags_behind_its_log_is_waited_for(tmp_path):
    write_world(tmp_path, 120)
    logs = MergedLogs(Lagging(str(tmp_path)), CONFIG, ACTIONS, {}, follow=True, idle_s=0.0, sync_interval_s=1e9)
    seen = []
    while len(seen) < len(rows_of(batches_of(tmp_path))):
        seen += rows_of(drain(logs))
    assert list(map(identity, seen)) == [identity(row) for row in rows_of(batches_of(tmp_path))]


@pytest.mark.parametrize("looks", [1, 20])
def test_only_what_was_looked_at_all_along_was_silent(tmp_path, monkeypatch, looks):
    now = 1000.0
    monkeypatch.setattr(stream, "time", types.SimpleNamespace(monotonic=lambda: now))
    write(tmp_path, "features", [features(f"r{n}", n * 1000) for n in range(8)])
    write(tmp_path, "actions", [action(f"r{n}", 2500 + n) for n in range(6)])
    logs = merged(tmp_path, follow=True, idle_s=2.0)
    assert "r6" not in names(drain(logs))
    found = []
    for _ in range(looks):
        now += 3.0 / looks
        found += names(drain(logs))
    assert ("r6" in found) == (looks > 1)


def test_a_partition_with_something_left_is_not_silent_though_nobody_asks_it(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(stream, "time", types.SimpleNamespace(monotonic=lambda: now))
    write(tmp_path, "features", [features(f"r{n}", n * 1000) for n in range(8)])
    write(tmp_path, "actions", [action(f"r{n}", 2500 + n) for n in range(6)])
    logs = merged(tmp_path, follow=True, idle_s=2.0)
    seen = drain(logs)
    write(tmp_path, "features", [features(f"r{n}", n * 1000) for n in range(8, 12)])
    write(tmp_path, "actions", [action("r7", 7500 + 500 * n) for n in range(8)])
    now += 10  # what has been merged was at work with for so long
    seen += drain(logs)
    times = [row["time_ms"] for row in rows_of(seen)]
    assert times == sorted(times)
    assert len(times) > 25


def test_a_growing_log_is_merged_as_a_finished_one(tmp_path):
    shown, acted = world(120)
    logs, seen = merged(tmp_path / "growing", follow=True, idle_s=1e9), []
    for at in range(0, 120, 10):
        now = shown[at]["time_ms"] + 15_000
        write(tmp_path / "growing", "features", shown[at : at + 10])
        due, acted = [a for a in acted if a["time_ms"] < now], [a for a in acted if a["time_ms"] >= now]
        if due:
            write(tmp_path / "growing", "actions", due)
        seen += rows_of(drain(logs))
    last = logs.next(stop=True)
    assert last.final is Final.STOP
    assert {name: (span.first, span.next) for name, span in last.spans.items()} == {
        name: (position.offset, position.offset) for name, position in logs.positions.items()
    }
    assert logs.finished
    whole = [identity(row) for row in rows_of(batches_of(tmp_path / "growing"))]
    assert len(seen) > 300
    assert list(map(identity, seen)) == whole[: len(seen)]
    rest = rows_of(batches_of(tmp_path / "growing", logs.positions))
    assert list(map(identity, rest)) == whole[len(seen) :]


def test_a_jump_of_time_at_the_end_of_a_growing_log_waits_for_witnesses(tmp_path):
    write(tmp_path, "actions", [action(f"r{n}", n) for n in range(8)])
    logs = merged(tmp_path, follow=True, idle_s=0.0)
    drain(logs)
    write(tmp_path, "actions", [action("morning", 9 * HOUR)])
    assert names(drain(logs)) == []
    assert logs.positions["actions/p000"].offset < PartitionReader(tmp_path, "actions", 0).end_offset()
    write(tmp_path, "actions", [action("too", 9 * HOUR + 5)])
    assert names(drain(logs)) == ["morning", "too"]


def test_a_partition_that_appears_later_is_taken_in(tmp_path):
    write_world(tmp_path, 10)
    logs = merged(tmp_path, follow=True, idle_s=0.0)
    drain(logs)
    write(tmp_path, "features", [features("new", 60_000), features("newer", 61_000)], 1)
    assert list_partitions(tmp_path, "features") == [0, 1]
    assert names(drain(logs)) == ["new", "new", "newer", "newer"]
    assert logs.positions["features/p001"].offset == PartitionReader(tmp_path, "features", 1).end_offset()


def test_sync_batches_keep_coming_where_nothing_is_logged(tmp_path):
    write_world(tmp_path, 10)
    logs = merged(tmp_path, follow=True, idle_s=0.0, sync_interval_s=0.0)
    seen = [logs.next(stop=False) for _ in range(4)]
    assert [batch.sync for batch in seen] == [True] * 4
    assert len(seen[-1]) == 0
    assert seen[-1].final is Final.NO
    assert seen[-1].watermark_ms == min(position.order_ms for position in logs.positions.values())


def test_a_batch_is_the_same_behind_its_encoding(three):
    batch = batches_of(three)[0]
    again = EventBatch.decode(batch.encode())
    assert again.events.equals(batch.events)
    assert (again.spans, again.watermark_ms, again.final) == (batch.spans, batch.watermark_ms, batch.final)
