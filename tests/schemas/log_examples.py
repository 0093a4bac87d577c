"""Logs of numbered actions, ways to write, read and damage them, and blocks as the Avro specification frames them."""

import io
from pathlib import Path

import fastavro
import numpy as np

from schemas.avro import load_schema
from schemas.log_files import (
    LogWriter,
    PartitionReader,
)

TOPIC = "actions"
RECORDS = [
    {
        "request_id": f"r{i}",
        "user_id": f"u{i % 7}",
        "item_id": f"v{i * i}",
        "action": "click",
        "time_ms": 1_700_000_000_000 + i,
        "value": None if i % 3 else i / 2,
    }
    for i in range(600)
]


def write(root, records=RECORDS, segments=3, **options):
    """The records in about `segments` files of several blocks each."""
    options = {"block_bytes": 1 << 10} | options
    with LogWriter(root, TOPIC, 0, **options) as writer:
        for part in np.array_split(np.arange(len(records)), segments):
            writer.append([records[i] for i in part])
            writer.roll()
    return sorted((Path(root) / TOPIC / "p000").glob("*.avro"))


def read_all(root, offset=0, max_records=50):
    """Records, offsets and faults from an offset to the end."""
    reader = PartitionReader(root, TOPIC, 0, offset)
    records, offsets, faults, at = [], [], [], offset
    while True:
        chunk = reader.read(max_records)
        assert len(chunk.records) == len(chunk.offsets)
        assert chunk.offsets.dtype == np.int64
        assert chunk.next_offset >= at
        if not len(chunk.records) and not chunk.faults and chunk.next_offset == at:
            return records, offsets, faults
        records += list(chunk.records)
        offsets += chunk.offsets.tolist()
        faults += chunk.faults
        at = chunk.next_offset


def whole_file_fault(root, path):
    """The one fault that `path`, the first segment, is from end to end; what is written behind it is read all the same."""
    size = path.stat().st_size
    with LogWriter(root, TOPIC, 0) as writer:
        writer.append(RECORDS[:5])
    records, _, (fault,) = read_all(root)
    assert records == RECORDS[:5]
    assert (fault.offset, fault.next_offset) == (0, size)
    return fault


def without(lost, written=RECORDS):
    """What is left of what was written, to say that damage cost only neighbours."""
    return [record for i, record in enumerate(written) if i not in lost]


def lost_of(records, written=RECORDS):
    kept = {record["request_id"] for record in records}
    return [i for i, record in enumerate(written) if record["request_id"] not in kept]


def damage(path, at, value=None):
    data = bytearray(path.read_bytes())
    data[at] = data[at] ^ 0xFF if value is None else value
    path.write_bytes(data)


def long_at(data, at):
    """An Avro long and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at


def blocks_of(path):
    """(start, end, records) of each block, as the Avro specification frames them."""
    data = path.read_bytes()
    assert data[:4] == b"Obj\x01"
    count, at = long_at(data, 4)
    while count:
        if count < 0:
            count, at = -count, long_at(data, at)[1]
        for _ in range(2 * count):
            size, at = long_at(data, at)
            at += size
        count, at = long_at(data, at)
    sync, at = data[at : at + 16], at + 16
    blocks = []
    while at < len(data):
        start = at
        count, at = long_at(data, at)
        size, at = long_at(data, at)
        at += size + 16
        assert data[at - 16 : at] == sync
        blocks.append((start, at, count))
    return blocks


def foreign(root, schema, records, codec="null"):
    """A first segment that another program wrote."""
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(schema), records, codec=codec, sync_interval=1000)
    folder = Path(root) / TOPIC / "p000"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{0:020d}.avro"
    path.write_bytes(out.getvalue())
    return path


def changed(fields):
    schema = load_schema(TOPIC)
    return {
        "type": "record",
        "name": "Action",
        "namespace": "freshet",
        "fields": fields(list(schema["fields"])),
    }
