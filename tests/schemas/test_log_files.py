"""File logs: what is written is read, from any offset, around whatever is broken."""

import pytest

from schemas.log_files import LogHoleError, LogWriter, PartitionReader, list_partitions, partition_of

TOPIC = "actions"


def action(n):
    fields = {"request_id": f"r{n}", "user_id": "u", "item_id": "i", "action": "click"}
    return fields | {"time_ms": n, "value": None}


def write(root, *segments):
    with LogWriter(root, TOPIC, 0) as writer:
        for numbers in segments:
            writer.append([action(n) for n in numbers])
            writer.roll()


def read(root, offset=0):
    reader = PartitionReader(root, TOPIC, 0, offset)
    records, offsets, faults = [], [], []
    while True:
        chunk = reader.read(100)
        if not chunk.records and not chunk.faults:
            return [r["time_ms"] for r in records], offsets, faults, reader
        records += chunk.records
        offsets += chunk.offsets.tolist()
        faults += chunk.faults


def segment(root, number):
    return sorted((root / TOPIC / "p000").glob("*.avro"))[number]


def test_records_come_back_in_order_with_increasing_offsets(tmp_path):
    write(tmp_path, range(3000), range(3000, 3010))
    times, offsets, faults, reader = read(tmp_path)
    assert times == list(range(3010))
    assert offsets == sorted(set(offsets))
    assert not faults
    assert reader.end_offset() == sum(p.stat().st_size for p in (tmp_path / TOPIC / "p000").iterdir())


def test_reading_goes_on_from_any_offset(tmp_path):
    write(tmp_path, range(700), range(700, 900))
    times, offsets, _, _ = read(tmp_path)
    for at in (0, 1, 350, 699, 700, 899):
        assert read(tmp_path, offsets[at])[0] == times[at:]


def test_a_reader_at_the_end_sees_what_is_appended(tmp_path):
    write(tmp_path, range(10))
    *_, reader = read(tmp_path)
    write(tmp_path, range(10, 15))
    assert [r["time_ms"] for r in reader.read(100).records] == list(range(10, 15))


def test_what_is_not_rolled_is_not_seen(tmp_path):
    writer = LogWriter(tmp_path, TOPIC, 0)
    writer.append([action(1)])
    assert read(tmp_path)[0] == []
    writer.close()
    assert read(tmp_path)[0] == [1]


def test_a_corrupt_block_is_one_fault_with_its_bytes(tmp_path):
    write(tmp_path, range(3000))
    path = segment(tmp_path, 0)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = b"\xff" * 600
    path.write_bytes(data)
    times, _, faults, _ = read(tmp_path)
    assert len(faults) == 1
    assert b"\xff" * 100 in faults[0].raw
    assert "corrupt block" in faults[0].reason
    assert 0 < 3000 - len(times) < 1500
    assert times[0] == 0
    assert times[-1] == 2999


def test_a_truncated_tail_is_a_fault_and_the_next_segment_is_read(tmp_path):
    write(tmp_path, range(2000), range(2000, 2010))
    path = segment(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-7])
    times, _, faults, _ = read(tmp_path)
    assert len(faults) == 1
    assert times[-10:] == list(range(2000, 2010))


def test_a_file_that_is_no_avro_file_is_a_fault(tmp_path):
    write(tmp_path, range(10), range(10, 20))
    path = segment(tmp_path, 0)
    path.write_bytes(b"x" * path.stat().st_size)
    times, _, faults, _ = read(tmp_path)
    assert times == list(range(10, 20))
    assert "not an Avro file" in faults[0].reason


def test_a_file_of_another_schema_is_a_fault(tmp_path):
    with LogWriter(tmp_path, "features", 0) as other:
        record = {"request_id": "r", "user_id": "u", "time_ms": 1, "fingerprint": 1, "user_ids": b"", "items": []}
        other.append([record])
    folder = tmp_path / TOPIC / "p000"
    folder.mkdir(parents=True)
    next((tmp_path / "features" / "p000").glob("*.avro")).rename(folder / f"{0:020d}.avro")
    times, _, faults, _ = read(tmp_path)
    assert times == []
    assert len(faults) == 1


def test_a_missing_segment_is_an_error_that_says_where(tmp_path):
    write(tmp_path, range(10), range(10, 20), range(20, 30))
    segment(tmp_path, 1).unlink()
    with pytest.raises(LogHoleError, match="restore the missing segment"):
        read(tmp_path)


def test_partitions_are_listed_and_chosen_by_user(tmp_path):
    for partition in (0, 2):
        LogWriter(tmp_path, TOPIC, partition).close()
    assert list_partitions(tmp_path, TOPIC) == [0, 2]
    assert {partition_of(f"u{n}", 4) for n in range(100)} == {0, 1, 2, 3}
