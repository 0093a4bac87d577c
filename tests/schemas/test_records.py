"""The compiled decoder gives what fastavro gives, record by record, and gives up on what fastavro gives up on."""

import struct

import numpy as np
import pytest
from fastavro.utils import generate_many
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.avro import AvroError, encode_body, encode_single, load_schema
from schemas.avro_kernels import check_records
from schemas.avro_program import program_of
from schemas.messages import MessageDecoder
from schemas.records import Records

TOPICS = ("features", "actions", "parameters", "dead_letters", "examples")
texts = st.text(max_size=5)
longs = st.integers(-(2**63), 2**63 - 1)
blobs = st.binary(max_size=20)
items = st.lists(st.fixed_dictionaries({"item_id": texts, "ids": blobs}), max_size=4)
maps = st.none() | st.dictionaries(texts, texts, max_size=3)
FEATURES = st.fixed_dictionaries(
    {
        "request_id": texts, "user_id": texts, "time_ms": longs, "fingerprint": longs, "user_ids": blobs, "items": items,
        "scores": st.none() | blobs, "model_version": st.none() | longs, "raw": maps,
    }
)  # fmt: skip
ACTIONS = st.fixed_dictionaries(
    {
        "request_id": texts, "user_id": texts, "item_id": texts, "action": texts, "time_ms": longs,
        "value": st.none() | st.floats(allow_nan=False),
    }
)  # fmt: skip


def one_by_one(topic, messages):
    """What each message holds, or None where it holds nothing."""
    decoder, found = MessageDecoder(topic), []
    for message in messages:
        try:
            found.append(decoder.decode(message))
        except AvroError:
            found.append(None)
    return found


def all_at_once(topic, messages):
    records, errors = MessageDecoder(topic).decode_all(messages)
    decoded = iter(records)
    return [None if i in errors else next(decoded) for i in range(len(messages))]


@settings(max_examples=100)
@given(st.lists(FEATURES, max_size=5))
def test_columns_of_features_hold_what_the_records_hold(written):
    records = Records.of("features", written)
    columns = records.columns
    assert list(records) == written
    for name in ("request_id", "user_id"):
        assert columns.strings(name).to_pylist() == [record[name] for record in written]
    for name in ("time_ms", "fingerprint"):
        assert columns.longs(name).tolist() == [record[name] for record in written]
    for name in ("user_ids", "scores"):
        assert columns.binary(name).to_pylist() == [record[name] for record in written]
    assert columns.longs("model_version").tolist() == [record["model_version"] or 0 for record in written]
    assert columns.counts("items").tolist() == [len(record["items"]) for record in written]
    flat = [item for record in written for item in record["items"]]
    assert columns.items.strings("item_id").to_pylist() == [item["item_id"] for item in flat]
    assert columns.items.binary("ids").to_pylist() == [item["ids"] for item in flat]


@settings(max_examples=50)
@given(st.lists(ACTIONS, max_size=5))
def test_columns_of_actions_hold_what_the_records_hold(written):
    columns = Records.of("actions", written).columns
    assert columns.doubles("value").to_pylist() == [record["value"] for record in written]
    assert columns.strings("action").to_pylist() == [record["action"] for record in written]


@settings(max_examples=200)
@given(st.lists(FEATURES, min_size=1, max_size=4), st.data())
def test_whatever_bytes_are_changed_it_gives_what_fastavro_gives(written, data):
    messages = [encode_single("features", record) for record in written]
    for _ in range(data.draw(st.integers(0, 3))):
        which = data.draw(st.integers(0, len(messages) - 1))
        at = data.draw(st.integers(0, len(messages[which])))
        changed = data.draw(st.binary(max_size=2))
        messages[which] = messages[which][:at] + changed + messages[which][at + data.draw(st.integers(0, 2)) :]
    assert repr(all_at_once("features", messages)) == repr(one_by_one("features", messages))


@pytest.mark.parametrize("topic", TOPICS)
def test_it_follows_the_schema_of_every_topic_by_itself(topic):
    bodies = [encode_body(topic, record) for record in generate_many(load_schema(topic), 50)]
    records = Records.of_bodies(topic, bodies)
    code = program_of(topic).code
    assert check_records(code, records.data, records.starts, records.ends).all()
    assert not check_records(code, records.data, records.starts, records.ends - 1).any()
    assert [encode_body(topic, record) for record in records] == bodies


@pytest.mark.parametrize("text", ["é", "日", "😀", "\u0800", "\ud7ff", "\U0010ffff"])
def test_texts_beyond_ascii_are_read_by_itself(text):
    action = {"request_id": text, "user_id": "u", "item_id": "v", "action": "", "time_ms": 0, "value": None}
    body = encode_body("actions", action)
    records = Records.of_bodies("actions", [body])
    assert check_records(program_of("actions").code, records.data, records.starts, records.ends).all()
    for cut in range(1, len(text.encode())):
        broken = body.replace(text.encode(), text.encode()[:cut] + b"x" * (len(text.encode()) - cut))
        assert all_at_once("actions", [_message("actions", broken)]) == [None]


def test_lists_in_several_blocks_with_their_sizes_are_read():
    item = encode_body("features", _features(items=[{"item_id": "v", "ids": b"12345678"}]))
    head = encode_body("features", _features(items=[]))
    at = next(i for i, (a, b) in enumerate(zip(item, head, strict=False)) if a != b)
    one = item[at + 1 : len(item) - (len(head) - at)]
    size = struct.pack("B", 2 * len(one))
    # Twice a block of one item: first with its count alone, then with a negative count and its size in bytes.
    body = head[:at] + b"\x02" + one + b"\x01" + size + one + head[at:]
    records, errors = MessageDecoder("features").decode_all([_message("features", body)])
    assert not errors
    assert records.columns.counts("items").tolist() == [2]
    assert records.columns.items.strings("item_id").to_pylist() == ["v", "v"]


def test_parts_and_their_sums_keep_their_places():
    written = [_features(request_id=str(i), items=[{"item_id": str(i), "ids": b""}] * i) for i in range(5)]
    records = Records.of("features", written)
    again = Records.joined([records[3:], Records.of("features"), records[:3]])
    assert list(again) == written[3:] + written[:3]
    assert again.columns.items.strings("item_id").to_pylist() == ["3"] * 3 + ["4"] * 4 + ["1"] + ["2"] * 2
    assert list(Records.joined([records[:0]])) == []


def test_a_list_that_announces_more_than_there_is_costs_nothing():
    body = encode_body("features", _features(items=[]))
    at = len(encode_body("features", _features(items=[]))) - 4
    huge = body[:at] + bytes([0xFE] + [0xFF] * 8 + [0x01]) + body[at + 1 :]
    assert all_at_once("features", [_message("features", huge)]) == [None]


def _features(**changes):
    empty = {
        "request_id": "r", "user_id": "u", "time_ms": 1, "fingerprint": 2, "user_ids": b"", "items": [], "scores": None,
        "model_version": None, "raw": None,
    }  # fmt: skip
    return empty | changes


def _message(topic, body):
    plain = encode_single(topic, _features() if topic == "features" else next(iter(generate_many(load_schema(topic), 1))))
    return plain[:10] + body


def test_nothing_is_records_too():
    records, errors = MessageDecoder("actions").decode_all([])
    assert (len(records), errors) == (0, {})
    assert records.columns.longs("time_ms").dtype == np.int64
