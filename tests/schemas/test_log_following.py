"""Logs that are read while they grow: what a look at the end costs, and that nothing new is overlooked."""

import os
import shutil
import time

import pytest
from log_examples import RECORDS, TOPIC, read_all, write

from schemas.log_files import LogWriter, PartitionReader
from schemas.log_segments import LogHoleError


@pytest.fixture
def calls(monkeypatch):
    """How often folders are listed and files looked at."""
    counts = dict.fromkeys(["listdir", "scandir", "stat"], 0)

    def counted(name):
        real = getattr(os, name)

        def call(*args, **options):
            counts[name] += 1
            return real(*args, **options)

        return call

    for name in counts:
        monkeypatch.setattr(os, name, counted(name))
    return counts


@pytest.fixture
def clock(monkeypatch):
    """The clock of the process, in seconds, which stands until it is set."""
    at = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: at[0])
    return at


def many_segments(root, count=300):
    """One record each."""
    return write(root, [RECORDS[i % 600] for i in range(count)], segments=count)


def at_the_end(root):
    reader = PartitionReader(root, TOPIC, 0)
    assert reader.read(10**6).records
    return reader


def nothing_in(chunk):
    return not (len(chunk.records) or chunk.faults)


def set_aside(path):
    """The file, out of the folder, whose time stays as it is."""
    changed = path.parent.stat()
    aside = path.parent.parent / path.name
    path.rename(aside)
    os.utime(path.parent, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    return aside


def put_back(aside, folder):
    """In the same tick, as the folder's clock has it."""
    changed = folder.stat()
    aside.rename(folder / aside.name)
    os.utime(folder, ns=(changed.st_atime_ns, changed.st_mtime_ns))


def test_looks_at_the_end_do_not_list_the_folder(tmp_path, calls, clock):
    many_segments(tmp_path)
    reader = at_the_end(tmp_path)
    assert nothing_in(reader.read(100))
    calls.update(dict.fromkeys(calls, 0))
    for _ in range(1000):
        clock[0] += 0.01
        assert nothing_in(reader.read(100))
    assert calls["listdir"] + calls["scandir"] <= 1
    assert calls["stat"] <= 3 * 1000 + 10


def test_a_listing_does_not_look_at_every_segment(tmp_path, calls):
    many_segments(tmp_path)
    calls["stat"] = 0
    end = PartitionReader(tmp_path, TOPIC, 0).end_offset()
    assert nothing_in(PartitionReader(tmp_path, TOPIC, 0, end).read(100))
    assert calls["stat"] < 20


def test_segments_are_read_one_after_another_without_listings(tmp_path, calls):
    paths = many_segments(tmp_path)
    at_the_end(tmp_path)
    assert calls["listdir"] + calls["scandir"] < len(paths) / 10


def test_a_segment_that_comes_in_the_tick_of_the_last_look_is_read(tmp_path, clock):
    *_, last = write(tmp_path)
    aside = set_aside(last)
    reader = at_the_end(tmp_path)
    assert nothing_in(reader.read(100))
    put_back(aside, last.parent)
    assert list(reader.read(10**6).records) == RECORDS[400:]


@pytest.mark.parametrize("offset", ["end", "nothing yet"])
def test_a_hole_that_comes_in_the_tick_of_the_last_look_is_told_in_the_end(tmp_path, clock, offset):
    first, second, third = write(tmp_path)
    aside = set_aside(third)
    shutil.move(second, tmp_path)
    if offset == "nothing yet":
        shutil.move(first, tmp_path)
    reader = PartitionReader(tmp_path, TOPIC, 0)
    reader.read(10**6)
    assert nothing_in(reader.read(100))
    put_back(aside, third.parent)
    with pytest.raises(LogHoleError, match=rf"goes on at {int(third.stem)}: restore"):
        reader.read(100)
        clock[0] += 2
        reader.read(100)


def test_a_hole_is_told_at_once_when_the_folder_changes(tmp_path, clock):
    _, second, third = write(tmp_path)
    aside = [set_aside(third), set_aside(second)]
    reader = at_the_end(tmp_path)
    assert nothing_in(reader.read(100))
    aside[0].rename(third)
    os.utime(third.parent, ns=(0, third.parent.stat().st_mtime_ns + 1))
    with pytest.raises(LogHoleError, match="restore"):
        reader.read(100)
    aside[1].rename(second)
    assert list(reader.read(10**6).records) == RECORDS[200:]


def test_an_overlap_is_told_when_the_folder_changes(tmp_path, clock):
    *_, last = write(tmp_path)
    aside = set_aside(last)
    reader = at_the_end(tmp_path)
    assert nothing_in(reader.read(100))
    aside.rename(last.with_name(f"{int(last.stem) - 7:020d}.avro"))
    os.utime(last.parent, ns=(0, last.parent.stat().st_mtime_ns + 1))
    with pytest.raises(LogHoleError, match="two writers"):
        reader.read(100)


def test_a_reader_that_was_there_first_reads_on_as_segments_come(tmp_path):
    reader = PartitionReader(tmp_path, TOPIC, 0)
    assert nothing_in(reader.read(100))
    with LogWriter(tmp_path, TOPIC, 0) as writer:
        for first in range(0, 600, 20):
            assert nothing_in(reader.read(100))
            writer.append(RECORDS[first : first + 20])
            writer.roll()
            assert list(reader.read(100).records) == RECORDS[first : first + 20]
    assert read_all(tmp_path)[0] == RECORDS
