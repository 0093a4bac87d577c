"""File logs: every offset leads back to its record, writers go on behind one another, readers follow."""

import json
import subprocess
import sys
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_examples import RECORDS, TOPIC, blocks_of, changed, foreign, read_all, write

from schemas.log_files import LogWriter, PartitionReader, partition_of, partitions_of
from schemas.log_segments import LogHoleError, list_partitions
from schemas.process import UserError

KILLED = """
import json, os, sys
from schemas.log_files import LogWriter
records = json.loads(sys.argv[2])
writer = LogWriter(sys.argv[1], "actions", 0, block_bytes=1)
writer.append(records[:100])
writer.roll()
writer.append(records[100:300])
os._exit(9)
"""


def test_what_is_written_is_read_in_order(tmp_path):
    paths = write(tmp_path)
    records, offsets, faults = read_all(tmp_path)
    assert records == RECORDS
    assert faults == []
    assert all(a < b for a, b in pairwise(offsets))
    sizes = [path.stat().st_size for path in paths]
    assert [int(path.stem) for path in paths] == [0, sizes[0], sizes[0] + sizes[1]]
    assert PartitionReader(tmp_path, TOPIC, 0).end_offset() == sum(sizes)
    assert [sum(count for _, _, count in blocks_of(path)) for path in paths] == [200, 200, 200]
    starts = [int(path.stem) + start for path in paths for start, _, _ in blocks_of(path)]
    assert set(starts) <= set(offsets)


def test_segments_end_at_segment_bytes(tmp_path):
    paths = write(tmp_path, segments=1, segment_bytes=4 << 10)
    assert len(paths) > 2
    assert all(4 << 10 <= path.stat().st_size < 6 << 10 for path in paths[:-1])
    assert read_all(tmp_path)[0] == RECORDS


@settings(max_examples=30)
@given(max_records=st.integers(1, 700), segments=st.integers(1, 8), block_bytes=st.integers(1, 8 << 10))
def test_any_size_of_reads_gives_the_same_records_and_offsets(tmp_path_factory, max_records, segments, block_bytes):
    root = tmp_path_factory.mktemp("log")
    write(root, segments=segments, block_bytes=block_bytes)
    records, offsets, faults = read_all(root, max_records=max_records)
    assert (records, faults) == (RECORDS, [])
    assert offsets == read_all(root, max_records=10**6)[1]


def test_reading_goes_on_from_every_offset(tmp_path):
    # Each offset's reading goes to the end: the time is the square of the records, so no more than blocks need.
    few = RECORDS[:240]
    paths = write(tmp_path, few)
    assert [len(blocks_of(path)) > 1 for path in paths] == [True, True, True]
    _, offsets, _ = read_all(tmp_path)
    assert len(offsets) == len(few)
    for i, offset in enumerate(offsets):
        records, again, faults = read_all(tmp_path, offset, max_records=10**6)
        assert (records, again, faults) == (few[i:], offsets[i:], [])


def test_reading_goes_on_from_every_next_offset(tmp_path):
    write(tmp_path)
    reader = PartitionReader(tmp_path, TOPIC, 0)
    seen = 0
    while (chunk := reader.read(1)).records:
        seen += len(chunk.records)
        assert read_all(tmp_path, chunk.next_offset)[0] == RECORDS[seen:]
    assert seen == len(RECORDS)


def test_a_segment_with_a_header_only_is_passed_over(tmp_path):
    folder = foreign(tmp_path, changed(lambda fields: fields), []).parent
    reader = PartitionReader(tmp_path, TOPIC, 0)
    chunk = reader.read(10)
    assert (list(chunk.records), chunk.faults) == ([], [])
    assert chunk.next_offset == sum(path.stat().st_size for path in folder.glob("*.avro")) > 0
    write(tmp_path)
    assert list(reader.read(200).records) == RECORDS[:200]
    assert read_all(tmp_path)[::2] == (RECORDS, [])


def test_blocks_of_equal_records_keep_offsets_unique(tmp_path):
    equal = [RECORDS[0]] * 50_000
    (path,) = write(tmp_path, equal, segments=1, block_bytes=64 << 20)
    assert all(end - start >= count for start, end, count in blocks_of(path))
    records, offsets, faults = read_all(tmp_path, max_records=10**6)
    assert (records, faults) == (equal, [])
    assert (np.diff(offsets) > 0).all()
    assert offsets[-1] < path.stat().st_size
    for i in (1, 17_001, 49_999):
        assert read_all(tmp_path, offsets[i], max_records=10**6)[1] == offsets[i:]


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_segments_of_other_writers_are_read(tmp_path, codec):
    foreign(tmp_path, changed(lambda fields: fields), RECORDS, codec)
    assert read_all(tmp_path)[::2] == (RECORDS, [])


def test_an_added_field_is_dropped_and_a_missing_optional_one_is_its_default(tmp_path):
    device = {"name": "device", "type": ["null", "string"], "default": None}
    foreign(tmp_path, changed(lambda f: [device, *f[:-1]]), [{**r, "device": "phone"} for r in RECORDS])
    records, _, faults = read_all(tmp_path)
    assert faults == []
    assert records == [{**record, "value": None} for record in RECORDS]


def test_a_missing_segment_is_an_error_that_names_place_and_remedy(tmp_path):
    paths = write(tmp_path)
    paths[1].unlink()
    reader = PartitionReader(tmp_path, TOPIC, 0)
    assert list(reader.read(200).records) == RECORDS[:200]
    with pytest.raises(LogHoleError, match=rf"p000.*{int(paths[1].stem)}.*restore") as caught:
        reader.read(200)
    assert isinstance(caught.value, UserError)


def test_a_missing_first_segment_is_a_hole(tmp_path):
    write(tmp_path)[0].unlink()
    with pytest.raises(LogHoleError):
        read_all(tmp_path)


def test_segments_that_overlap_are_an_error(tmp_path):
    paths = write(tmp_path)
    paths[1].rename(paths[1].with_name(f"{int(paths[1].stem) - 7:020d}.avro"))
    reader = PartitionReader(tmp_path, TOPIC, 0)
    assert list(reader.read(200).records) == RECORDS[:200]
    with pytest.raises(LogHoleError, match="two writers"):
        reader.read(200)


def test_an_offset_beyond_the_end_is_a_hole(tmp_path):
    write(tmp_path)
    with pytest.raises(LogHoleError):
        read_all(tmp_path, PartitionReader(tmp_path, TOPIC, 0).end_offset() + 1)


def test_a_reader_at_the_end_sees_new_segments(tmp_path):
    reader = PartitionReader(tmp_path, TOPIC, 0)
    assert (list(reader.read(10).records), reader.end_offset()) == ([], 0)
    with LogWriter(tmp_path, TOPIC, 0) as writer:
        for first in range(0, 30, 10):
            writer.append(RECORDS[first : first + 10])
            assert list(reader.read(100).records) == []  # not rolled yet
            writer.roll()
            assert list(reader.read(100).records) == RECORDS[first : first + 10]
            assert list(reader.read(100).records) == []
    assert read_all(tmp_path)[0] == RECORDS[:30]


def test_a_writer_goes_on_behind_what_is_there(tmp_path):
    for first in (0, 100):
        write(tmp_path, RECORDS[first : first + 100], segments=2)
    assert read_all(tmp_path)[0] == RECORDS[:200]


def test_rolling_nothing_leaves_no_file(tmp_path):
    with LogWriter(tmp_path, TOPIC, 0) as writer:
        writer.roll()
    assert read_all(tmp_path) == ([], [], [])
    assert list((tmp_path / TOPIC / "p000").glob("*.avro")) == []


def test_an_exception_drops_what_was_not_rolled(tmp_path):
    with pytest.raises(ZeroDivisionError), LogWriter(tmp_path, TOPIC, 0, block_bytes=1) as writer:
        writer.append(RECORDS[:100])
        writer.roll()
        writer.append(RECORDS[100:])
        raise ZeroDivisionError
    assert read_all(tmp_path)[0] == RECORDS[:100]
    write(tmp_path, RECORDS[100:])
    assert read_all(tmp_path)[0] == RECORDS


def test_a_killed_writer_leaves_whole_segments_and_the_next_goes_on(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), json.dumps(RECORDS)], check=False)
    assert killed.returncode == 9
    assert read_all(tmp_path)[0] == RECORDS[:100]
    write(tmp_path, RECORDS[100:])
    assert read_all(tmp_path)[0] == RECORDS


def test_two_writers_of_a_partition_are_refused(tmp_path):
    with LogWriter(tmp_path, TOPIC, 0), pytest.raises(UserError, match="stop"):
        LogWriter(tmp_path, TOPIC, 0)
    write(tmp_path)
    assert read_all(tmp_path)[0] == RECORDS


def test_partitions_are_listed_and_nothing_else(tmp_path):
    assert list_partitions(tmp_path, TOPIC) == []
    for partition in (2, 0, 11):
        LogWriter(tmp_path, TOPIC, partition).close()
    (tmp_path / TOPIC / "notes").mkdir()
    assert list_partitions(tmp_path, TOPIC) == [0, 2, 11]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.integers(1, 100))
def test_partitions_of_many_are_those_of_each(user_ids, partitions):
    found = partitions_of(user_ids, partitions)
    assert found.dtype.kind == "i"
    assert found.tolist() == [partition_of(user_id, partitions) for user_id in user_ids]
    assert all(0 <= partition < partitions for partition in found)


def test_the_partition_of_a_user_never_changes():
    assert [partition_of(user_id, 8) for user_id in ("", "u1", "用户")] == [
        zlib.crc32(user_id.encode()) % 8 for user_id in ("", "u1", "用户")
    ]
    assert zlib.crc32(b"123456789") == 0xCBF43926  # CRC-32 as everyone else has it
