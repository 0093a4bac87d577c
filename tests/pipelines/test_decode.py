"""What a record must be, to be learned from; what is not becomes a fault with its reason, place and bytes."""

import struct

import numpy as np
import pytest
from small_logs import ACTIONS, CONFIG, START_MS, action, features, packed

from pipelines.batches import Kind
from pipelines.decode import RAW_LIMIT, ActionsDecoder, FeaturesDecoder, decode_chunk, row_keys
from schemas.avro import encode_body
from schemas.log_files import Chunk, Fault
from schemas.records import Records

NAN, INF = float("nan"), float("inf")


def decoded(records, topic="features", faults=(), reasons=None):
    """Event rows of records at the offsets 10, 20, ..."""
    decoder = FeaturesDecoder(CONFIG) if topic == "features" else ActionsDecoder(ACTIONS)
    offsets = np.arange(1, len(records) + 1, dtype=np.int64) * 10
    chunk = Chunk(Records.of(topic, records), offsets, 1000, list(faults))
    events = decode_chunk(decoder, chunk, 3, reasons or [None] * len(records))
    return events.to_pylist()


def ids(*numbers):
    return struct.pack(f"<{len(numbers)}q", *numbers)


def slot(number, value=1):
    return number << 48 | value


def with_item(**changes):
    record = features("r", 0)
    return record | {"items": [record["items"][0], record["items"][1] | changes]}


VIDEO, AGE, USER = slot(2), slot(4), slot(1)
BAD_FEATURES = {
    "another configuration": (features("r", 0, fingerprint=7), "another feature configuration"),
    "half an id": (features("r", 0, user_ids=ids(USER)[:-1]), "user_ids are not packed feature ids"),
    "slot that the configuration lacks": (features("r", 0, user_ids=ids(USER, slot(9))), "user_ids are not packed"),
    "slot of the other side": (features("r", 0, user_ids=ids(USER, VIDEO)), "user_ids are not packed"),
    "negative id": (features("r", 0, user_ids=ids(-1)), "user_ids are not packed"),
    "padding": (features("r", 0, user_ids=ids(USER, 0)), "user_ids are not packed"),
    "two ids in a slot of one": (features("r", 0, user_ids=ids(USER, slot(1, 2))), "user_ids are not packed"),
    "no user feature": (features("r", 0, user_ids=b""), "a user feature is missing"),
    "item: half an id": (with_item(ids=ids(VIDEO, AGE)[:-3]), "an item's ids are not packed"),
    "item: slot of the user": (with_item(ids=ids(VIDEO, AGE, USER)), "an item's ids are not packed"),
    "item: too long a bag": (with_item(ids=ids(VIDEO, AGE, *(slot(3, n) for n in range(4)))), "an item's ids are not packed"),
    "item: no age": (with_item(ids=ids(VIDEO)), "an item's feature is missing"),
    "item without an id": (with_item(item_id=""), "an item without an id"),
    "no items": (features("r", 0, items=()), "a request without items"),
    "unknown user": (features("r", 0, user_id=""), "no request id or user id"),
    "no request id": (features("", 0), "no request id or user id"),
    "NaN among the scores": (features("r", 0, scores=struct.pack("<4f", 1, 2, NAN, 3)), "scores are not finite"),
    "infinite score": (features("r", 0, scores=struct.pack("<4f", 1, 2, INF, 3)), "scores are not finite"),
    "scores of three rows": (features("r", 0, scores=struct.pack("<3f", 1, 2, 3)), "scores are not finite"),
    "half a score": (features("r", 0, scores=b"\0" * 15), "scores are not finite"),
    "negative time": (features("r", -START_MS - 1), "negative time"),
    "time in microseconds": (features("r", 999 * START_MS), "beyond the year 9999"),
}
BAD_ACTIONS = {
    "unknown user": (action("r", 0, user=""), "no request id, user id or item id"),
    "no request id": (action("", 0), "no request id, user id or item id"),
    "no item id": (action("r", 0, item=""), "no request id, user id or item id"),
    "NaN": (action("r", 0, value=NAN), "value is not finite"),
    "infinite": (action("r", 0, value=-INF), "value is not finite"),
    "negative time": (action("r", -START_MS - 1), "negative time"),
    "time in microseconds": (action("r", 999 * START_MS), "beyond the year 9999"),
}


def assert_one_fault(topic, bad, good, reason):
    """The bad record alone is a fault, with its place and its bytes; its neighbours are what they are without it."""
    alone = decoded([good], topic)
    rows = decoded([good, bad, good], topic)
    (fault,) = [row for row in rows if row["kind"] == Kind.FAULT]
    assert reason in fault["reason"]
    assert (fault["partition"], fault["offset"], fault["ids"]) == (3, 20, [])
    assert fault["raw"] == encode_body(topic, bad)
    assert rows == [*alone, fault, *(row | {"offset": 30} for row in alone)]


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_a_features_record_that_cannot_be_used_is_a_fault(case):
    bad, reason = BAD_FEATURES[case]
    assert_one_fault("features", bad, features("good", 5), reason)


@pytest.mark.parametrize("case", BAD_ACTIONS)
def test_an_actions_record_that_cannot_be_used_is_a_fault(case):
    bad, reason = BAD_ACTIONS[case]
    assert_one_fault("actions", bad, action("good", 5), reason)


def test_records_that_are_all_bad_leave_faults_alone():
    rows = decoded([features("r", 0, items=()), features("s", 0, items=())])
    assert [row["reason"] for row in rows] == ["a request without items"] * 2


def test_a_row_is_a_video_with_the_ids_of_both_sides():
    rows = decoded([features("r", 0, items=("v1", "v2")), features("s", 7, items=("v3",), user="u2")])
    assert [row["item_id"] for row in rows] == ["v1", "v2", "v3"]
    assert [row["offset"] for row in rows] == [10, 10, 20]
    assert [row["time_ms"] for row in rows] == [START_MS, START_MS, START_MS + 7]
    assert [row["user_id"] for row in rows] == ["u1", "u1", "u2"]
    user, video = packed("user", user_id=["u2"])[0], features("s", 7, items=("v3",))["items"][0]["ids"]
    assert struct.pack(f"<{CONFIG.width}q", *rows[2]["ids"]).replace(bytes(8), b"") == user + video


def test_an_empty_bag_is_nothing_missing():
    bag_empty = packed("item", video_id=["v2"], tags=[[]], age=[3.0])[0]
    assert [row["kind"] for row in decoded([with_item(ids=bag_empty)])] == [Kind.FEATURES] * 2


def test_scores_of_every_video_and_head_are_fine():
    rows = decoded([features("r", 0, scores=struct.pack("<4f", 0.1, 0.2, 0.3, 0.4))])
    assert [row["kind"] for row in rows] == [Kind.FEATURES] * 2


def test_a_request_and_its_action_have_one_key_and_another_users_action_has_not():
    shown = decoded([features("r", 0, items=("v1", "v2"))])
    mine, others = decoded([action("r", 9, "v2"), action("r", 9, "v2", user="u2")], "actions")
    assert mine["key"] == shown[1]["key"] != shown[0]["key"]
    assert others["key"] not in (shown[0]["key"], shown[1]["key"])
    assert row_keys(["u1"], ["r"], ["v2"]).tolist() == [mine["key"]]


def test_actions_are_numbered_as_the_heads_name_them():
    rows = decoded([action("r", 0, name=name) for name in ("click", "like", "share")], "actions")
    assert [row["action"] for row in rows] == [ACTIONS.index("click"), ACTIONS.index("like"), -1]


def test_unreadable_stretches_lie_between_the_records():
    stretch = Fault(15, 20, "corrupt block", b"\x01" * (RAW_LIMIT + 5))
    rows = decoded([features("r", 0, items=("v1",)), features("s", 1, items=("v1",))], faults=[stretch])
    assert [(row["offset"], row["kind"]) for row in rows] == [(10, Kind.FEATURES), (15, Kind.FAULT), (20, Kind.FEATURES)]
    assert rows[1]["reason"] == "corrupt block"
    assert rows[1]["raw"] == b"\x01" * RAW_LIMIT


def test_a_reason_known_before_is_kept():
    rows = decoded([action("r", 0, item=""), action("s", 0)], "actions", reasons=["too far ahead", None])
    assert [row["reason"] for row in rows] == ["too far ahead", None]
