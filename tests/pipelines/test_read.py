"""Reading at impulses, as on Flink: every event once and in order, wherever the reads are cut."""

import types

import pytest
from apache_beam.coders import BytesCoder
from small_logs import ACTIONS, CONFIG, batches_of, rows_of, write_world

from pipelines import read, source
from pipelines.batches import EventBatch, Final
from pipelines.merge import MergedLogs
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


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture(autouse=True)
def clean():
    source.reset()
    read.reset()
    yield
    source.reset()
    read.reset()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(read, "time", types.SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def logs(tmp_path):
    write_world(tmp_path, REQUESTS)
    return LogsSource(
        FileLogs(str(tmp_path)), CONFIG, ACTIONS, (), follow=False, shard=0, batch_rows=64, max_skew_ms=3_600_000, idle_s=2.0,
        sync_interval_s=1e9,
    )  # fmt: skip


def at_impulse(source, cell):
    """What an instance of its own reads at an impulse: batches of the shard."""
    parts = list(read.ReadFn(source).process((shard_key(0), b""), mark=cell))
    assert {key for key, _ in parts} <= {shard_key(0)}
    return [EventBatch.decode(payload) for _, payload in parts]


def told(batches):
    return [(row["partition"], row["offset"], row["key"], row["kind"]) for row in rows_of(batches)]


def test_each_read_goes_on_where_the_last_one_ended(logs, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_REST_S", 0.0)
    cell, found, reads = Cell(), [], 0
    while not found or found[-1].final is not Final.END:
        if reads % 2:
            source.reset()  # as in another process: nothing is known but the mark
        part = at_impulse(logs, cell)
        assert 0 < len(part) <= read._MOST
        found += part
        reads += 1
    assert reads > 3
    assert told(found) == told(batches_of(tmp_path))
    assert at_impulse(logs, cell) == []


def test_the_logs_are_opened_once_whether_they_bring_something_or_not(logs, monkeypatch):
    monkeypatch.setattr(read, "_REST_S", 0.0)
    opened, cell, there = [], Cell(), MergedLogs.next
    monkeypatch.setattr(FileLogs, "open", lambda self, follow: opened.append(self) or self)
    monkeypatch.setattr(MergedLogs, "next", lambda self, stop: None)  # as where a broker is slow
    assert [at_impulse(logs, cell) for _ in range(3)] == [[], [], []]
    monkeypatch.setattr(MergedLogs, "next", there)
    assert at_impulse(logs, cell)
    assert len(opened) == 1


def test_what_a_failed_bundle_read_is_read_again(logs, monkeypatch):
    monkeypatch.setattr(read, "_REST_S", 0.0)
    cell = Cell()
    broken = read.ReadFn(logs).process((shard_key(0), b""), mark=cell)
    first = next(broken)
    broken.close()
    assert cell.value is None
    assert next(read.ReadFn(logs).process((shard_key(0), b""), mark=cell)) == first


def test_impulses_that_gathered_while_the_step_was_busy_are_let_go(logs, clock):
    cell = Cell()
    assert at_impulse(logs, cell)
    clock.now += 60.0  # the runner could not hand on what was read
    for _ in range(30):
        assert at_impulse(logs, cell) == []
        clock.now += read._REST_S / 31
    clock.now += read._REST_S / 31
    assert at_impulse(logs, cell)
    assert at_impulse(logs, cell) == []
