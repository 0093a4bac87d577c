"""Damaged file logs: what cannot be read becomes a fault, costs what it hit, and reading goes on behind it."""

import io
import os
from itertools import pairwise
from pathlib import Path

import pytest
from log_examples import (
    RECORDS,
    TOPIC,
    blocks_of,
    changed,
    damage,
    foreign,
    lost_of,
    read_all,
    whole_file_fault,
    without,
    write,
)

from schemas import log_files
from schemas.avro_blocks import parse_frame
from schemas.log_files import PartitionReader


def assert_one_stretch_lost(root, path, most, written=RECORDS):
    """Exactly one fault, whose place is in `path`; everything else read; at most `most` records lost."""
    records, offsets, faults = read_all(root)
    lost = lost_of(records, written)
    assert records == without(lost, written)
    assert 0 < len(lost) <= most
    assert lost == list(range(lost[0], lost[-1] + 1))
    (fault,) = faults
    base = int(path.stem)
    assert base <= fault.offset < fault.next_offset <= base + path.stat().st_size
    assert fault.raw == path.read_bytes()[fault.offset - base :][: min(fault.next_offset - fault.offset, 64 << 10)]
    assert path.name in fault.reason
    assert offsets == sorted(set(offsets))
    return fault


def test_reading_goes_on_from_every_offset_behind_damage(tmp_path):
    # Each offset's reading goes to the end: the time is the square of the records, so no more than blocks need.
    path = write(tmp_path, RECORDS[:240])[1]
    start, end, count = blocks_of(path)[1]
    damage(path, (start + end) // 2)
    records, offsets, faults = read_all(tmp_path)
    assert len(offsets) == 240 - count
    for i, offset in enumerate(offsets):
        later, again, left = read_all(tmp_path, offset, max_records=10**6)
        assert (later, again) == (records[i:], offsets[i:])
        assert left == [fault for fault in faults if fault.offset >= offset]
    assert read_all(tmp_path, faults[0].offset)[2] == faults
    assert read_all(tmp_path, faults[0].next_offset)[2] == []


def test_a_flipped_byte_anywhere_in_a_block_costs_at_most_that_block_and_the_next(tmp_path):
    few = RECORDS[:240]  # read once for every byte of a block
    path = write(tmp_path, few)[1]
    whole = path.read_bytes()
    blocks = blocks_of(path)
    assert len(blocks) > 2
    two_blocks = max(a[2] + b[2] for a, b in pairwise(blocks))
    start, end, _ = blocks[1]
    for at in range(start, end):
        damage(path, at)
        assert_one_stretch_lost(tmp_path, path, two_blocks, few)
        path.write_bytes(whole)


def test_flipped_bytes_in_a_blocks_body_cost_only_that_block(tmp_path):
    path = write(tmp_path)[1]
    start, end, count = blocks_of(path)[1]
    damage(path, (start + end) // 2)
    records, _, _ = read_all(tmp_path)
    fault = assert_one_stretch_lost(tmp_path, path, count)
    assert len(lost_of(records)) == count
    assert (fault.offset, fault.next_offset) == (int(path.stem) + start, int(path.stem) + end)


@pytest.mark.parametrize("cut", [1, 10, 17, 40, 200])
def test_a_truncated_last_segment_costs_its_tail(tmp_path, cut):
    path = write(tmp_path)[-1]
    count = sum(block[2] for block in blocks_of(path)[-2:])
    os.truncate(path, path.stat().st_size - cut)
    records, _, faults = read_all(tmp_path)
    lost = lost_of(records)
    assert records == RECORDS[: len(records)]
    assert 0 < len(lost) <= count
    assert len(faults) == 1
    assert faults[0].raw


def test_a_truncated_earlier_segment_costs_its_tail_and_reading_goes_on_in_the_next(tmp_path):
    path = write(tmp_path)[0]
    size = path.stat().st_size
    count = blocks_of(path)[-1][2]
    os.truncate(path, size - 5)
    records, offsets, (fault,) = read_all(tmp_path)
    assert records == without(lost_of(records))
    assert len(lost_of(records)) == count
    assert fault.next_offset == size  # where the next segment begins
    assert offsets == sorted(set(offsets))


@pytest.mark.parametrize("damaged", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("header", [b"", b"\0" * 64, b"Obj\x01", b"PAR1" + b"x" * 500])
def test_a_segment_without_a_header_is_one_fault(tmp_path, header, damaged):
    path = write(tmp_path)[damaged]
    size = path.stat().st_size
    path.write_bytes(header.ljust(size, b"\0"))
    records, _, (fault,) = read_all(tmp_path)
    assert records == RECORDS[: 200 * damaged] + RECORDS[200 * (damaged + 1) :]
    assert (fault.offset, fault.next_offset) == (int(path.stem), int(path.stem) + size)
    assert fault.raw == path.read_bytes()[: 64 << 10]


def test_a_stranger_file_is_a_fault_once_and_only_from_the_beginning(tmp_path):
    first, *_ = write(tmp_path)
    folder = first.parent
    (folder / "copy of 7.avro").write_bytes(first.read_bytes())
    (folder / ".dotfile").write_bytes(b"x")
    records, offsets, (fault,) = read_all(tmp_path)
    assert records == RECORDS
    assert "copy of 7.avro" in fault.reason
    assert fault.raw == b""
    assert read_all(tmp_path, offsets[1])[2] == []


@pytest.mark.parametrize("first", [b"", b"x" * 300], ids=["whole", "without a header"])
def test_a_stranger_is_told_once_with_the_first_bytes_that_are_read(tmp_path, caplog, first):
    """A position that moves with it is all that a restart has to know it by."""
    folder = tmp_path / TOPIC / "p000"
    folder.mkdir(parents=True)
    (folder / "part-0.avro").write_bytes(b"x")
    for _ in range(2):
        reader = PartitionReader(tmp_path, TOPIC, 0)
        for _ in range(3):
            chunk = reader.read(10)
            assert (list(chunk.records), chunk.faults, chunk.next_offset) == ([], [], 0)
    assert ["part-0.avro is no segment" in message for message in caplog.messages] == [True, True]
    path, *_ = write(tmp_path)
    path.write_bytes(first + path.read_bytes()[len(first) :])
    for waiting in (reader, PartitionReader(tmp_path, TOPIC, 0)):
        chunk = waiting.read(1)
        assert "part-0.avro is no segment" in chunk.faults[0].reason
        assert (len(chunk.faults), len(chunk.records) > 0) == (2 if first else 1, not first)
        assert chunk.next_offset > 0
        for rest in (waiting, PartitionReader(tmp_path, TOPIC, 0, chunk.next_offset)):
            later = rest.read(10**6)
            assert (list(later.records)[-1], later.faults) == (RECORDS[-1], [])


def test_raw_bytes_of_a_fault_are_capped(tmp_path):
    path = write(tmp_path, [{**RECORDS[0], "user_id": os.urandom(100_000).hex()}], segments=1)[0]
    damage(path, path.stat().st_size // 2)
    (fault,) = read_all(tmp_path)[2]
    assert fault.next_offset - fault.offset > len(fault.raw) == 64 << 10


@pytest.mark.parametrize(
    "fields",
    [
        lambda f: [field for field in f if field["name"] != "item_id"],
        lambda f: [{**field, "type": "boolean"} if field["name"] == "time_ms" else field for field in f],
    ],
    ids=["required field missing", "other type"],
)
def test_a_schema_that_cannot_be_resolved_is_one_fault_for_the_file(tmp_path, fields):
    path = foreign(tmp_path, changed(fields), [{**record, "time_ms": record["time_ms"]} for record in RECORDS])
    assert path.name in whole_file_fault(tmp_path, path).reason


def test_a_record_that_breaks_its_schema_is_a_fault_of_its_block(tmp_path):
    path = foreign(tmp_path, changed(lambda fields: fields), RECORDS)
    data = bytearray(path.read_bytes())
    data[data.index(b"r30") : data.index(b"r30") + 3] = b"\xff\xfe\xfd"
    path.write_bytes(data)
    count = next(n for start, end, n in blocks_of(path) if start <= data.index(b"\xff\xfe\xfd") < end)
    assert_one_stretch_lost(tmp_path, path, count)


def test_a_fault_at_the_end_is_not_reported_again_on_resumption(tmp_path):
    path = write(tmp_path)[-1]
    path.write_bytes(b"x" * path.stat().st_size)
    reader = PartitionReader(tmp_path, TOPIC, 0)
    assert len(reader.read(10**6).faults) == 1
    end = reader.end_offset()
    assert read_all(tmp_path, end)[2] == []


def test_what_has_no_marker_behind_it_is_read_through_once(tmp_path, monkeypatch):
    """Not anew from each of its bytes, though any of them might begin a block."""
    path = write(tmp_path, segments=1)[0]
    whole = blocks_of(path)[0]
    path.write_bytes(path.read_bytes()[: whole[1]] + b"\xff" * 400_000)
    starts, sizes = [], []

    def parsed(head, start):
        starts.append(start)
        return parse_frame(head, start)

    class Counted(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            sizes.append(len(data))
            return data

    monkeypatch.setattr(log_files, "parse_frame", parsed)
    monkeypatch.setattr(Path, "open", lambda path, mode: Counted(path, mode))
    assert len(PartitionReader(tmp_path, TOPIC, 0).read(10**6).faults) == 1
    assert starts == [whole[0], whole[1]]
    assert path.stat().st_size < sum(sizes) < 3 * path.stat().st_size
