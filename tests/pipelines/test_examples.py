"""What was learned from, as it is put out: every row once and in order, however the logs are cut and wherever one restarts."""

import numpy as np
import pytest
from small_logs import CONFIG, START_MS, applied, as_one, batches_of, write_world

from model.snapshot import merge
from pipelines import examples
from pipelines.decode import row_keys
from pipelines.examples import Examples
from pipelines.learn import JoinAndLearn, LearnConfig
from schemas.avro import encode_single
from schemas.messages import MessageDecoder

LEARN = LearnConfig(step=32, examples=True)
COLUMNS = ("keys", "time_ms", "ids", "labels", "mask", "first")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_world(root, 120)
    return root


def parts_of(outputs):
    return [part for each in outputs for part in each.examples]


def columns_of(parts):
    """Columns of all rows, which must follow upon each other."""
    assert [part.number for part in parts[1:]] == [part.end for part in parts[:-1]]
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}


def assert_same(found, expected):
    assert {name: array.tobytes() for name, array in found.items()} == {n: array.tobytes() for n, array in expected.items()}


def test_every_impression_is_put_out_with_its_heads_once_each(logs):
    step, outputs = applied([as_one(batches_of(logs))], LEARN)
    parts = parts_of(outputs)
    found = columns_of(parts)
    assert parts[0].number == 0
    assert {part.fingerprint for part in parts} == {CONFIG.fingerprint}
    assert found["keys"].size == outputs[-1].counts.learned
    shown = [(f"r{n}", n * 1_500 + START_MS) for n in range(120)]
    assert sorted(found["time_ms"][found["first"]].tolist()) == sorted(time_ms for _, time_ms in shown for _ in range(3))
    assert np.unique(found["keys"]).size == found["first"].sum() == step.figures()["examples"] == 3 * 120
    for key in np.unique(found["keys"]):
        assert found["mask"][found["keys"] == key].sum(axis=0).tolist() == [1, 1]
    # With what they were asked with, as the model is told it: a video's id is that of its row.
    assert (found["ids"][:, 0] >> 48 == 1).all()
    assert (found["ids"][:, 1] >> 48 == 2).all()
    assert found["labels"].sum(axis=0).tolist() == [step.figures()["heads"][head]["positives"] for head in ("click", "like")]


def test_none_are_put_out_unasked(logs):
    _, outputs = applied(batches_of(logs), LearnConfig(step=32))
    assert parts_of(outputs) == []


@pytest.mark.parametrize(("step", "batch_rows"), [(32, 7), (50, 100)])
def test_rows_and_their_numbers_do_not_depend_on_how_the_logs_are_cut(logs, step, batch_rows):
    expected = columns_of(parts_of(applied([as_one(batches_of(logs))], LEARN)[1]))
    found = applied(batches_of(logs, batch_rows=batch_rows), LearnConfig(step=step, examples=True))[1]
    assert_same(columns_of(parts_of(found)), expected)


def test_numbers_go_on_after_a_restart(logs):
    batches = batches_of(logs, batch_rows=60)
    expected = columns_of(parts_of(applied(batches, LEARN)[1]))
    step, outputs = applied(batches[:5], LEARN)
    again = JoinAndLearn(CONFIG, LEARN)
    again.load(merge([step.increment()]))
    outputs += applied(batches[5:], LEARN, again)[1]
    assert_same(columns_of(parts_of(outputs)), expected)


def test_a_record_has_all_of_it_and_messages_are_small(logs, monkeypatch):
    part = parts_of(applied([as_one(batches_of(logs))], LEARN)[1])[0]
    found = Examples.from_record(MessageDecoder("examples").decode(encode_single("examples", part.to_record(3))))
    assert (found.number, found.fingerprint) == (part.number, part.fingerprint)
    assert_same(columns_of([found]), columns_of([part]))
    assert found.ids.shape == part.ids.shape
    assert [len(message) for message in part.messages()] == [32]
    monkeypatch.setattr(examples, "MESSAGE_BYTES", 500)
    small = list(part.messages())
    assert len(small) > 3
    assert all(len(encode_single("examples", each.to_record(0))) < 500 + 64 for each in small)
    assert_same(columns_of(small), columns_of([part]))


def test_rows_between_numbers(logs):
    part = parts_of(applied([as_one(batches_of(logs))], LEARN)[1])[1]
    assert (part.number, part.end) == (32, 64)
    for start, end, first, count in ((0, 40, 32, 8), (40, 50, 40, 10), (60, 90, 60, 4), (0, 32, 32, 0), (64, 70, 64, 0)):
        found = part.between(start, end)
        assert (found.number, len(found)) == (first, count)
        assert found.keys.tolist() == part.keys[first - 32 : first - 32 + count].tolist()
    assert list(part.between(0, 0).messages()) == []


def test_keys_are_of_the_impressions(logs):
    found = columns_of(parts_of(applied([as_one(batches_of(logs))], LEARN)[1]))
    events = as_one(batches_of(logs)).events.to_pylist()
    assert set(found["keys"].tolist()) == {event["key"] for event in events if event["kind"] == 0}
    assert row_keys(["u1"], ["r0"], ["v1"]).dtype == found["keys"].dtype
