"""A log in which one record in a hundred is bad trains as well as one without, and every bad record is accounted for."""

import base64
from collections import Counter

import numpy as np
import pytest
from e2e_worlds import SIMPLE, copy_world, figures, letters, records_of, train_arguments, write_world

from pipelines import train
from schemas.avro import encode_body

REQUESTS = 7000
DAY_MS = 86_400_000
NAN = float("nan")

USED = {head.action for head in SIMPLE.heads}

BAD_FEATURES = {
    "user_ids are not packed feature ids": lambda r: {"user_ids": r["user_ids"][:-1]},
    "a user feature is missing": lambda r: {"user_ids": b""},
    "an item's ids are not packed": lambda r: {"items": [{**r["items"][0], "ids": b"12345678"}]},
    "an item's feature is missing": lambda r: {"items": [{**r["items"][0], "ids": b""}]},
    "a request without items": lambda r: {"items": []},
    "no request id or user id": lambda r: {"user_id": ""},
    "another feature configuration": lambda r: {"fingerprint": 1},
    "scores are not finite": lambda r: {"scores": np.full((len(r["items"]), 2), NAN, "<f4").tobytes()},
    "negative time": lambda r: {"time_ms": -r["time_ms"]},
    "ahead of its neighbours": lambda r: {"time_ms": r["time_ms"] + 30 * DAY_MS},
}
BAD_ACTIONS = {
    "no request id, user id or item id": lambda r: {"item_id": ""},
    "value is not finite": lambda r: {"value": NAN},
    "negative time": lambda r: {"time_ms": -1},
    "ahead of its neighbours": lambda r: {"time_ms": r["time_ms"] + 2 * DAY_MS},
    "an action without an impression": lambda r: {"user_id": "nobody"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run over good logs and of one over logs of which one record in a hundred is bad, and what is bad.

    Returns:
        (good, bad, spoilt): spoilt are (topic, reason, record); ``None`` stands for a record in a corrupt block.
    """
    root = tmp_path_factory.mktemp("bad")
    write_world(root / "good", REQUESTS, config=SIMPLE)
    spoilt = []

    def spoil(topic, records):
        """Requests are lost; bad actions come beside the good ones, for a lost action is a wrong label in any system."""
        kinds, changed = list((BAD_FEATURES if topic == "features" else BAD_ACTIONS).items()), []
        for number, record in enumerate(records):
            bad = number % 100 == 57 and number < len(records) - 50
            if bad:
                reason, change = kinds[number // 100 % len(kinds)]
                # An action that no head uses would be nobody's business.
                changed.append(record | ({"action": "click"} if topic == "actions" else {}) | change(record))
                spoilt.append((topic, reason, changed[-1]))
            if not bad or topic == "actions":
                changed.append(record)
        return changed

    copy_world(root / "good", root / "bad", spoil)
    for topic in ("features", "actions"):
        (path,) = (root / "bad" / topic / "p000").glob("*.avro")
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 0x10
        path.write_bytes(data)
    for name in ("good", "bad"):
        (root / f"run {name}").mkdir()
        assert train.run(train_arguments(root / name, root / f"run {name}")) == 0
    return root, spoilt


def test_it_trains_to_the_same_auc(runs):
    root, _ = runs
    good, bad = figures(root / "run good"), figures(root / "run bad")
    assert good["dead_letters"] == 0
    assert good["auc"] > 0.6
    assert bad["auc"] == pytest.approx(good["auc"], abs=0.002)
    for head in ("click", "like"):
        assert bad["heads"][head]["auc"] == pytest.approx(good["heads"][head]["auc"], abs=0.005)
    assert 0.96 < bad["examples"] / good["examples"] < 0.99


def test_every_bad_record_is_a_dead_letter_with_reason_place_and_bytes(runs):
    root, spoilt = runs
    found = letters(root / "run bad")
    assert figures(root / "run bad")["dead_letters"] == len(found)
    assert len(spoilt) == pytest.approx(0.01 * (REQUESTS + len(records_of(root / "good", "actions"))), rel=0.1)
    by_bytes = {(letter["partition"], base64.b64decode(letter["raw_base64"])): letter for letter in found}
    survivors = {topic: {encode_body(topic, r) for r in records_of(root / "bad", topic)} for topic in ("features", "actions")}
    checked = Counter()
    for topic, reason, record in spoilt:
        raw = encode_body(topic, record)
        if raw in survivors[topic]:  # not among what the corrupt block took with it
            assert reason in by_bytes[f"{topic}/p000", raw]["reason"]
            checked[topic, reason] += 1
    assert set(checked) == {("features", reason) for reason in BAD_FEATURES} | {("actions", reason) for reason in BAD_ACTIONS}
    assert min(checked.values()) >= 3
    assert all(letter["offset"] > 0 for letter in found)


def test_all_other_dead_letters_are_the_corrupt_blocks_and_actions_whose_impressions_were_lost(runs):
    root, spoilt = runs
    known = {encode_body(topic, record) for topic, _, record in spoilt}
    rest = [each for each in letters(root / "run bad") if base64.b64decode(each["raw_base64"]) not in known]
    bad_requests = {record["request_id"] for topic, _, record in spoilt if topic == "features"}
    usable = {r["request_id"] for r in records_of(root / "bad", "features")} - bad_requests
    actions = [r for r in records_of(root / "bad", "actions") if encode_body("actions", r) not in known]
    lost = [r for r in actions if r["request_id"] not in usable and r["action"] in USED]
    reasons = Counter("corrupt block" if "corrupt block" in each["reason"] else each["reason"] for each in rest)
    assert reasons == {"corrupt block": 2, "an action without an impression": len(lost)}
    assert len(lost) > 100
