"""Reading and learning at impulses, as on Flink: every event once and in order, wherever the reads are cut."""

import dataclasses
import math
import struct
from itertools import pairwise

import numpy as np
import pytest
from apache_beam.coders import BytesCoder
from small_logs import ACTIONS, CONFIG, batches_of, rows_of, write_world

from pipelines import read, read_ahead, source
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


class Step:
    """One that hands back what it is given."""

    def __init__(self):
        self.states = []

    def apply(self, batch, payload, state):
        assert EventBatch.decode(payload) == batch
        self.states.append(state)
        yield batch


class Clock:
    """The process's clock, which stands still unless it is moved."""

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
    monkeypatch.setattr(read, "time", clock)
    return clock


@pytest.fixture
def logs(tmp_path):
    write_world(tmp_path, REQUESTS)
    return LogsSource(
        FileLogs(str(tmp_path)), CONFIG, ACTIONS, (), follow=False, shard=0, batch_rows=64, max_skew_ms=3_600_000, idle_s=2.0,
        sync_interval_s=1e9,
    )  # fmt: skip


def stamp(made_s, process=None):
    """Of an impulse that was made then."""
    return (process or read._process()) + struct.pack("d", made_s)


def process(source, cell, stamped=None, step=None):
    """What an instance of its own hands on at an impulse, a new one unless its stamp is given."""
    version = Cell()
    version.value = "7:token"
    return read.ReadAndLearnFn(source, step or Step()).process(
        (shard_key(0), stamped or stamp(math.inf)), mark=cell, version=version, base=Cell(), inputs=Cell()
    )


def at_impulse(source, cell, stamped=None):
    """The batches of it."""
    return list(process(source, cell, stamped))


def told(batches):
    return [(row["partition"], row["offset"], row["key"], row["kind"]) for row in rows_of(batches)]


def test_each_read_goes_on_where_the_last_one_ended(logs, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_MOST_S", 0.0)
    cell, found, reads = Cell(), [], 0
    while not found or found[-1].final is not Final.END:
        if reads % 2:
            source.reset()  # as in another process: nothing is known but the mark
        part = at_impulse(logs, cell)
        assert len(part) == 1
        found += part
        reads += 1
    assert reads > 3
    assert told(found) == told(batches_of(tmp_path))
    assert at_impulse(logs, cell) == []


def test_batches_are_learned_until_the_time_is_over(logs, clock):
    class Slow(Step):
        def apply(self, batch, payload, state):
            clock.now += read._MOST_S / 2.5
            yield from super().apply(batch, payload, state)

    step, cell = Slow(), Cell()
    assert len(list(process(logs, cell, step=step))) == 3
    assert [state.version().applied for state in step.states] == 3 * [7]


def test_the_logs_are_opened_once_whether_they_bring_something_or_not(logs, monkeypatch):
    opened, cell, there = [], Cell(), MergedLogs.next
    monkeypatch.setattr(FileLogs, "open", lambda self, follow: opened.append(self) or self)
    monkeypatch.setattr(MergedLogs, "next", lambda self, stop: None)  # as where a broker is slow
    assert [at_impulse(logs, cell) for _ in range(3)] == [[], [], []]
    monkeypatch.setattr(MergedLogs, "next", there)
    assert at_impulse(logs, cell)
    assert len(opened) == 1


def test_what_a_failed_bundle_read_is_read_again(logs):
    cell = Cell()
    broken = process(logs, cell)
    first = next(broken)
    broken.close()
    assert cell.value is None
    assert told([next(process(logs, cell))]) == told([first])


def test_impulses_that_gathered_while_one_was_worked_at_are_let_go_however_long_that_takes(logs, clock, monkeypatch):
    monkeypatch.setattr(read, "_MOST_S", 0.0)
    cell = Cell()
    assert at_impulse(logs, cell, stamp(clock.now))
    began = clock.now
    clock.now += 60.0  # of which the next one takes all
    assert at_impulse(logs, cell, stamp(began))
    ended = clock.now
    for gathered in np.arange(began, ended - read._FRESH_S, read._IMPULSE_S):
        assert at_impulse(logs, cell, stamp(gathered)) == []
        clock.now += 0.02
    assert at_impulse(logs, cell, stamp(ended - read._FRESH_S / 2))


def test_impulses_by_another_clock_are_let_go_for_a_moment(logs, clock, monkeypatch):
    monkeypatch.setattr(read, "_MOST_S", 0.0)
    cell = Cell()
    assert at_impulse(logs, cell)
    for made_s in (0.0, clock.now, math.inf):
        assert at_impulse(logs, cell, stamp(made_s, b"elsewhere")) == []
        clock.now += read._LET_GO_S
        assert at_impulse(logs, cell, stamp(made_s, b"elsewhere"))


def test_a_log_that_is_asked_for_a_mark_each_time_does_not_keep_the_reader(logs, tmp_path):
    source = dataclasses.replace(logs, follow=True, sync_interval_s=0.0, idle_s=0.0)
    cell, found = Cell(), []
    while not found or len(found[-1]):
        found += at_impulse(source, cell)
    assert [len(batch) for batch in found].count(0) == 1
    assert len(told(found)) == len(told(batches_of(tmp_path)))


@pytest.mark.parametrize("follow", [True, False])
def test_who_is_asked_to_stop_hands_out_what_has_been_read_and_the_last_batch(logs, monkeypatch, follow):
    monkeypatch.setattr(read, "_MOST_S", 0.0)
    cell, followed = Cell(), dataclasses.replace(logs, follow=follow, batch_rows=16)
    assert len(at_impulse(followed, cell)) == 1
    source.request_stop()
    found = []
    while not found or found[-1].final is Final.NO:
        found += at_impulse(followed, cell)
    assert found[-1].final is Final.STOP
    assert len(found) <= read_ahead._MOST + 1


def test_what_was_read_ahead_when_the_logs_are_given_up_is_read_again(logs, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_MOST_S", 0.0)
    cell = Cell()
    found = at_impulse(logs, cell)  # more has been read by now
    source.reset()
    while found[-1].final is not Final.END:
        found += at_impulse(logs, cell)
    assert told(found) == told(batches_of(tmp_path))


def test_a_fault_while_reading_ahead_is_raised_where_its_batch_would_be_handed_out(logs, monkeypatch):
    monkeypatch.setattr(read, "_MOST_S", 0.0)
    cell, taken, there = Cell(), [], MergedLogs.next

    def breaks(self, stop):
        taken.append(1)
        if len(taken) == 3:
            raise OSError("gone")
        return there(self, stop)

    monkeypatch.setattr(MergedLogs, "next", breaks)
    found = at_impulse(logs, cell) + at_impulse(logs, cell)
    with pytest.raises(OSError, match="gone"):
        at_impulse(logs, cell)
    found += at_impulse(logs, cell)
    assert [batch.final for batch in found] == 3 * [Final.NO]
    spans = [batch.spans["features/p000"] for batch in found if "features/p000" in batch.spans]
    assert all(a.next == b.first for a, b in pairwise(spans))
