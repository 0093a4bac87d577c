"""What cannot be used: a dead letter each, with reason, place and bytes, and the rest is learned."""

import dataclasses
import itertools

import fastavro
import numpy as np
import pyarrow as pa
from small_logs import ACTIONS, CONFIG, action, applied, as_one, batches_of, features, write, write_foreign

from model.snapshot import merge
from pipelines.batches import EventBatch, Final
from pipelines.dead_letters import REASON_LIMIT, DeadLetterBox
from pipelines.decode import RAW_LIMIT, fault_events
from pipelines.join import Join
from pipelines.learn import JoinAndLearn, LearnConfig
from schemas.avro import encode_body, load_schema


def bad_logs(root):
    """Logs with every kind of bad input; what is expected of them by reason."""
    hour = 3_600_000
    shown = [features(f"r{n}", n * 60_000, f"u{n % 5}", ("v1", "v2", "v3")) for n in range(60)]
    done = [action(f"r{n}", n * 60_000 + 2000, "v1", f"u{n % 5}") for n in range(60)]
    shown[5]["user_ids"] = shown[5]["user_ids"][:-1]
    shown[10]["user_ids"] = b""
    shown[15]["time_ms"] = -5
    shown[20]["time_ms"] += 30 * 24 * hour
    shown[25]["user_id"] = ""
    shown[30]["scores"] = np.full(6, np.nan, "<f4").tobytes()
    shown[50]["time_ms"] -= hour
    done[35]["value"] = float("nan")
    done[40]["request_id"] = "nobody asked"
    done[45]["user_id"] = "stranger"
    write(root, "features", shown[:32], records_a_block=4)
    write(root, "features", shown[32:], records_a_block=4)
    write(root, "actions", done)
    path = max((root / "features" / "p000").glob("*.avro"))
    data = bytearray(path.read_bytes())
    block = data.index(data[len(data) - 16 :])  # the header's sync marker; the first block follows
    data[block + 60] ^= 0xFF
    path.write_bytes(data)
    schema = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "long"}]}
    write_foreign(root, "actions", schema, [{"x": 1}])
    return {
        "user_ids are not packed": [shown[5]],
        "a user feature is missing": [shown[10]],
        "negative time": [shown[15]],
        "ahead of its neighbours": [shown[20]],
        "no request id or user id": [shown[25]],
        "scores are not finite": [shown[30]],
        "corrupt block": [None],
        "behind the stream": [{**shown[50], "items": [item]} for item in shown[50]["items"]],
        "value is not finite": [done[35]],
        # Of the requests that were lost, too.
        "without an impression": [done[n] for n in (5, 10, 15, 20, 25, 30, 32, 33, 34, 40, 45, 50)],
        "schema": [None],
    }


def test_bad_input_becomes_dead_letters_by_reason_place_and_bytes_and_the_rest_is_learned(tmp_path):
    expected = bad_logs(tmp_path)
    step, outputs = applied(batches_of(tmp_path, batch_rows=20), LearnConfig(step=16))
    letters = [letter for each in outputs for letter in each.dead_letters]
    assert [letter.number for letter in letters] == list(range(len(letters)))
    assert step.figures()["dead_letters"] == len(letters) == sum(map(len, expected.values()))
    for reason, records in expected.items():
        found = [letter for letter in letters if reason in letter.reason]
        assert len(found) == len(records), reason
        for letter, record in zip(sorted(found, key=lambda f: f.offset), records, strict=True):
            topic = "features" if "user_ids" in (record or {}) else letter.partition.split("/")[0]
            assert letter.partition == f"{topic}/p000"
            assert letter.offset > 0
            assert letter.raw
            if record is not None:
                assert letter.raw == encode_body(topic, record), reason
    (ahead,) = [letter for letter in letters if "ahead" in letter.reason]
    record = fastavro.schemaless_reader(pa.BufferReader(ahead.raw), load_schema("features"))
    assert record["request_id"] == "r20"
    good = 60 - 6 - 1 - 4  # single records, the one behind the stream, the corrupt block
    assert step.figures()["impressions"] == step.progress.examples == 3 * good


def test_dead_letters_do_not_depend_on_batches_or_restarts(tmp_path):
    bad_logs(tmp_path)
    learn = LearnConfig(step=16)
    _, once = applied([as_one(batches_of(tmp_path))], learn)
    step, again = JoinAndLearn(CONFIG, learn), []
    for batch in batches_of(tmp_path, batch_rows=20):
        again.append(step.apply(batch))
        if batch.final is Final.NO and len(again) % 5 == 0:
            state = step.increment()
            step = JoinAndLearn(CONFIG, learn)
            step.load(merge([state]))

    def letters(outputs):
        return list(itertools.chain.from_iterable(each.dead_letters for each in outputs))

    assert [dataclasses.astuple(letter) for letter in letters(again)] == [dataclasses.astuple(a) for a in letters(once)]


def test_no_dead_letter_is_longer_than_its_limits(tmp_path):
    """An action and an impression with ids of 300 KB: held and late, they become letters of their first bytes."""
    long = "x" * 300_000
    shown = [features(f"r{n}", n * 60_000) for n in range(60)] + [features("late" + long, 0)]
    write(tmp_path, "features", shown)
    done = [action("nobody asked" + long, 1000), action("nor this", 600_000)]
    write(tmp_path, "actions", done)
    _, outputs = applied(batches_of(tmp_path, batch_rows=20), LearnConfig(step=16))
    letters = {letter.offset: letter for each in outputs for letter in each.dead_letters if letter.partition == "actions/p000"}
    first, second = (letters[offset].raw for offset in sorted(letters))
    assert first == encode_body("actions", done[0])[:RAW_LIMIT]
    assert second == encode_body("actions", done[1])
    late = [letter.raw for each in outputs for letter in each.dead_letters if "behind" in letter.reason]
    assert [len(raw) for raw in late] == [RAW_LIMIT] * len(shown[-1]["items"])


def test_a_long_reason_is_cut():
    box = DeadLetterBox(CONFIG, ACTIONS)
    events = fault_events(0, [7], ["schema of " + "x" * 10_000], [b"raw"])
    batch = EventBatch(0, ("actions/p000",), {}, events, 0)
    join = Join(CONFIG)
    columns = [batch.column(name) for name in ("kind", "key", "action", "time_ms", "order_ms")]
    box.collect(batch, join.apply(*columns, watermark_ms=0), join)
    (letter,) = box.drain()
    assert letter.reason == "schema of " + "x" * (REASON_LIMIT - 10)
    assert (letter.offset, letter.raw) == (7, b"raw")
