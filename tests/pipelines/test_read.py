"""Reading at each impulse, as on Flink: every event once and in order, wherever the reads are cut."""

import types

import pytest
from apache_beam.coders import BytesCoder
from small_logs import ACTIONS, CONFIG, batches_of, rows_of, write_world

from pipelines import read, source
from pipelines.batches import EventBatch, Final
from pipelines.source import LogsSource, shard_key
from schemas.logs import FileLogs

REQUESTS = 300


class Cell:
    """A Beam state cell."""

    def __init__(self):
        self.value = None

    def read(self):
        return self.value

    def write(self, value):
        self.value = BytesCoder().decode(BytesCoder().encode(value))


@pytest.fixture
def logs(tmp_path):
    write_world(tmp_path, REQUESTS)
    source.reset()
    yield LogsSource(
        FileLogs(str(tmp_path)), CONFIG, ACTIONS, (), follow=False, shard=0, batch_rows=64, max_skew_ms=3_600_000, idle_s=2.0,
        sync_interval_s=1e9,
    )  # fmt: skip
    source.reset()


def told(batches):
    return [(row["partition"], row["offset"], row["key"], row["kind"]) for row in rows_of(batches)]


def test_each_read_goes_on_where_the_last_one_ended(logs, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_READ_S", 0.0)
    monkeypatch.setattr(read, "_LATE_S", -1.0)
    cell, found, reads = Cell(), [], 0
    while not found or found[-1].final is not Final.END:
        # Another instance each time, and another process every other time: nothing is known but the mark.
        if reads % 2:
            source.reset()
        parts = list(read.ReadFn(logs).process((shard_key(0), b""), mark=cell))
        assert [key for key, _ in parts] == [shard_key(0)]
        found.append(EventBatch.decode(parts[0][1]))
        reads += 1
    assert reads > 10
    assert told(found) == told(batches_of(tmp_path))
    assert list(read.ReadFn(logs).process((shard_key(0), b""), mark=cell)) == []


def test_what_a_failed_bundle_read_is_read_again(logs, monkeypatch):
    monkeypatch.setattr(read, "_LATE_S", -1.0)
    cell = Cell()
    broken = read.ReadFn(logs).process((shard_key(0), b""), mark=cell)
    first = next(broken)
    broken.close()
    assert cell.value is None
    assert next(read.ReadFn(logs).process((shard_key(0), b""), mark=cell)) == first


def test_impulses_that_waited_for_a_read_are_let_go(logs, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(read, "time", types.SimpleNamespace(monotonic=lambda: now))
    cell, reading = Cell(), read.ReadFn(logs)
    parts = list(reading.process((shard_key(0), b""), mark=cell))
    assert EventBatch.decode(parts[-1][1]).final is Final.END
    cell.value = None
    assert list(reading.process((shard_key(0), b""), mark=cell)) == []
    now += 0.025
    assert list(reading.process((shard_key(0), b""), mark=cell)) == parts
