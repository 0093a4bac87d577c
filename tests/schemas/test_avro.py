"""Records as messages: the single-object encoding, and schemas that change on either side."""

import copy
import io
import json
import struct
from pathlib import Path

import fastavro
import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form

from schemas.avro import (
    AvroError,
    encode_body,
    encode_confluent,
    encode_single,
    load_schema,
    single_object_header,
)
from schemas.messages import MessageDecoder

ACTION = {
    "request_id": "r1",
    "user_id": "é",
    "item_id": "v1",
    "action": "click",
    "time_ms": 1_650_812_741_436,
    "value": None,
}
FEATURES = {
    "request_id": "r1",
    "user_id": "u1",
    "time_ms": -1,
    "fingerprint": 2**63 - 1,
    "user_ids": struct.pack("<2q", 1 << 48, 2 << 48),
    "items": [{"item_id": "v1", "ids": b""}, {"item_id": "v2", "ids": struct.pack("<q", 7 << 48)}],
    "scores": struct.pack("<2f", 0.5, 0.25),
    "model_version": 3,
    "raw": {"user_id": '"u1"'},
}
DELTA = {
    "shard": 0,
    "fingerprint": 5,
    "epoch": 1,
    "from_version": 2,
    "to_version": 3,
    "newest_event_ms": 4,
    "width": 2,
    "keys": struct.pack("<q", -17),
    "rows": struct.pack("<2f", 1, 2),
    "last_seen": struct.pack("<q", 0),
    "removed": b"",
    "dense": [{"name": "bias", "shape": [1], "values": struct.pack("<f", 3)}],
}


def avsc(name: str) -> dict:
    return json.loads((Path(__file__).parents[2] / "schemas" / f"{name}.avsc").read_text())


@pytest.mark.parametrize(("topic", "record"), [("features", FEATURES), ("actions", ACTION), ("parameters", DELTA)])
def test_a_record_comes_back_from_its_message(topic: str, record: dict):
    message = encode_single(topic, record)
    assert MessageDecoder(topic).decode(message) == record
    assert message[10:] == encode_body(topic, record)


def test_optional_fields_need_not_be_given():
    sparse = {key: FEATURES[key] for key in list(FEATURES)[:6]}
    expected = FEATURES | {"scores": None, "model_version": None, "raw": None}
    assert MessageDecoder("features").decode(encode_single("features", sparse)) == expected


def test_the_header_is_that_of_the_specification():
    # The fingerprint of "int" that the specification's own test vectors give.
    assert single_object_header("int") == b"\xc3\x01" + struct.pack("<Q", 0x7275D51A3F395C8F)
    canonical = to_parsing_canonical_form(load_schema("actions"))
    number = int.from_bytes(bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO")), "little")
    assert encode_single("actions", ACTION)[:10] == b"\xc3\x01" + struct.pack("<Q", number)


def test_what_is_no_message_of_the_topic_is_refused():
    message = encode_single("actions", ACTION)
    with pytest.raises(AvroError, match=r"a message of features begins with c301.*add the schema"):
        MessageDecoder("features").decode(message)
    with pytest.raises(AvroError, match="a message of actions cannot be decoded: "):
        MessageDecoder("actions").decode(message[:-3])
    with pytest.raises(AvroError, match="goes on behind its record"):
        MessageDecoder("actions").decode(message + b"\0")
    with pytest.raises(AvroError, match="begins with , the mark of no schema"):
        MessageDecoder("actions").decode(b"")


def test_a_new_reader_takes_an_old_writers_message():
    """`value` was appended to actions, with a default."""
    old = avsc("actions")
    old["fields"] = [field for field in old["fields"] if field["name"] != "value"]
    writer = fastavro.parse_schema(old)
    message = written_with(writer, {key: ACTION[key] for key in ACTION if key != "value"})
    with pytest.raises(AvroError, match="no schema known here"):
        MessageDecoder("actions").decode(message)
    assert MessageDecoder("actions", [writer]).decode(message) == ACTION


def test_an_old_reader_takes_a_new_writers_message():
    new = copy.deepcopy(avsc("features"))
    new["fields"].append({"name": "surface", "type": "string", "default": "feed"})
    writer = fastavro.parse_schema(new)
    message = written_with(writer, FEATURES | {"surface": "search"})
    assert MessageDecoder("features", [writer]).decode(message) == FEATURES


def written_with(schema: dict, record: dict) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, record)
    return single_object_header(schema) + out.getvalue()


def test_a_message_in_confluents_wire_format_is_read_with_the_registrys_schema():
    asked = []

    def registry(number):
        asked.append(number)
        if number != 7:
            raise LookupError(f"the registry has no schema {number}")
        return load_schema("actions")

    decoder = MessageDecoder("actions", registry=registry)
    message = encode_confluent("actions", ACTION, 7)
    assert message[:5] == b"\0\0\0\0\x07"
    assert [decoder.decode(message), decoder.decode(message)] == [ACTION, ACTION]
    assert asked == [7]
    assert decoder.decode(encode_single("actions", ACTION)) == ACTION
    with pytest.raises(AvroError, match="the registry has no schema 8"):
        decoder.decode(encode_confluent("actions", ACTION, 8))
    with pytest.raises(AvroError, match="begins with 0000000007, the mark of no schema"):
        MessageDecoder("actions").decode(message)
