"""What the sinks write: readable, whole after a crash, and the same however often the runner repeats itself."""

import base64
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from small_logs import CONFIG, batches_of, write_world
from tally import settle

from model.delta import Delta
from pipelines import failures, sinks
from pipelines.learn import JoinAndLearn, LearnConfig
from pipelines.outputs import DeadLetter, Metrics, Predictions, SnapshotRef
from pipelines.shard import Shard, ShardConfig
from pipelines.state_files import StateFiles
from schemas.log_files import PartitionReader
from schemas.process import UserError


def give(sink, *elements):
    """What the sink says to elements, one after the other."""
    return [list(sink.process(element) or ()) for element in elements]


def letter(number):
    return DeadLetter(number, "features/p000", 100 * number, f"reason {number}", bytes([number, 255]) * 40)


def letters_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_dead_letters_are_json_lines_with_place_reason_and_bytes(tmp_path):
    give(sinks.WriteDeadLetters(str(tmp_path)), (2, [letter(0), letter(1)]))
    (path,) = tmp_path.iterdir()
    assert path.name == "shard-002.jsonl"
    for number, line in enumerate(letters_in(path)):
        assert base64.b64decode(line.pop("raw_base64")) == bytes([number, 255]) * 40
        assert line == {
            "number": number,
            "partition": "features/p000",
            "offset": 100 * number,
            "reason": f"reason {number}",
        }


@pytest.mark.parametrize("again", [[(0, 4)], [(2, 4)], [(0, 2), (2, 4)], [(3, 4), (3, 6)]])
def test_dead_letters_that_come_again_are_not_written_twice(tmp_path, again):
    parts = [(0, 2), (2, 4), *again, (4, 6)]
    give(sinks.WriteDeadLetters(str(tmp_path)), *[(0, [letter(n) for n in range(*part)]) for part in parts])
    assert [line["number"] for line in letters_in(tmp_path / "shard-000.jsonl")] == list(range(6))


@pytest.mark.parametrize("lost", [1, 20, 150])
def test_a_line_cut_short_by_a_crash_is_written_anew(tmp_path, lost):
    path = tmp_path / "shard-000.jsonl"
    give(sinks.WriteDeadLetters(str(tmp_path)), (0, [letter(0), letter(1)]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    give(sinks.WriteDeadLetters(str(tmp_path)), (0, [letter(1)]))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("lost", [0, 1, 300_000, 899_999, 900_000, 1_100_000])
def test_lines_of_any_length_are_numbered_on_and_mended(tmp_path, lost):
    """As a file of an older version may hold them, whole or cut short."""
    path = tmp_path / "shard-000.jsonl"
    long = DeadLetter(1, "actions/p000", 5, "r", bytes(675_000))
    give(sinks.WriteDeadLetters(str(tmp_path)), (0, [letter(0), long]))
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - lost, 0)])
    give(sinks.WriteDeadLetters(str(tmp_path)), (0, [letter(0), long]), (0, [letter(2)]))
    lines = letters_in(path)
    assert [line["number"] for line in lines] == [0, 1, 2]
    assert base64.b64decode(lines[1]["raw_base64"]) == long.raw
    assert path.read_bytes().startswith(whole)


def test_dead_letters_are_on_the_disk_before_the_sink_is_done(tmp_path, monkeypatch):
    """What is synced of the file is all of it, and its name is, too."""
    synced, fsync = {}, os.fsync

    def watched(descriptor):
        fsync(descriptor)
        about = os.fstat(descriptor)
        synced[about.st_ino] = about.st_size

    monkeypatch.setattr(os, "fsync", watched)
    path = tmp_path / "letters" / "shard-000.jsonl"
    for first in (0, 2):
        give(sinks.WriteDeadLetters(str(path.parent)), (0, [letter(first), letter(first + 1)]))
        assert synced[path.stat().st_ino] == path.stat().st_size
    assert path.parent.stat().st_ino in synced


def test_metrics_are_the_newest_figures(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    first, second = Metrics(0, {"auc": 0.5}), Metrics(0, {"auc": 0.6})
    give(sinks.WriteMetrics(str(path)), first, second, first, second)
    assert json.loads(path.read_text()) == {"auc": 0.6}
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def predictions(first, n):
    keys = np.arange(first, first + n)
    logits = {"continuous": keys.astype(np.float32), "frozen": -keys.astype(np.float32)}
    return [Predictions(head, keys, keys * 10, (keys % 2).astype(np.float32), logits) for head in ("click", "like")]


def test_predictions_are_rows_of_head_key_time_label_and_logits(tmp_path):
    give(sinks.WritePredictions(str(tmp_path)), (0, 1, predictions(0, 3)))
    rows = pq.read_table(tmp_path).to_pylist()
    assert len(rows) == 6
    expected = {"head": "like", "key": 2, "time_ms": 20, "label": 0.0, "logit_continuous": 2.0, "logit_frozen": -2.0}
    assert rows[-1] == expected


def test_a_repeated_bundle_leaves_each_prediction_once(tmp_path):
    parts = [(0, 1, predictions(0, 3)), (0, 2, predictions(3, 2)), (0, 3, [])]
    give(sinks.WritePredictions(str(tmp_path)), *parts, *parts[1:], (1, 2, predictions(100, 1)), *parts)
    assert sorted(pq.read_table(tmp_path)["key"].to_pylist()) == sorted([0, 1, 2, 3, 4, 100] * 2)


def test_a_job_started_anew_with_other_batches_leaves_each_prediction_once(tmp_path):
    """After version 2 it restores version 1, and cuts fewer and larger batches than before."""
    sink = sinks.WritePredictions(str(tmp_path))
    give(sink, *[(0, n, predictions(2 * n, 2)) for n in range(1, 6)])
    give(sink, (0, 2, []), (0, 3, predictions(4, 8)))
    assert sorted(pq.read_table(tmp_path)["key"].to_pylist()) == sorted([*range(2, 12)] * 2)


def versions_in(folder):
    return {path.name: pq.read_table(path)["key"].to_pylist() for path in sorted(folder.glob("*.parquet"))}


def test_predictions_that_come_again_alone_leave_later_ones(tmp_path):
    sink = sinks.WritePredictions(str(tmp_path))
    parts = [(0, 1, predictions(0, 3)), (0, 2, []), (0, 3, predictions(3, 2)), (0, 4, predictions(5, 2))]
    # A logit that is not a number is not equal to itself, but it is the same prediction.
    parts[2][2][0].logits["frozen"][0] = np.nan
    give(sink, *parts)
    expected = versions_in(tmp_path)
    assert len(expected) == 3
    for part in parts:
        give(sink, part)
        give(sinks.WritePredictions(str(tmp_path)), part)
        assert versions_in(tmp_path) == expected


@pytest.mark.parametrize("anew", [(0, 2, predictions(2, 7)), (0, 2, [])])
def test_an_attempt_that_goes_back_takes_the_place_of_all_from_where_it_differs(tmp_path, anew):
    """In the same process: a bundle failed, and the source cut the same events otherwise."""
    sink = sinks.WritePredictions(str(tmp_path))
    other = (1, 3, predictions(50, 2))
    give(sink, other, *[(0, n, predictions(2 * n, 2)) for n in range(1, 6)])
    before = versions_in(tmp_path)
    give(sink, (0, 1, predictions(2, 2)))
    assert versions_in(tmp_path) == before
    give(sink, anew, (0, 3, predictions(90, 1)))
    found = versions_in(tmp_path)
    shards = [(0, n) for n in (1, 2, 3) if n != 2 or anew[2]] + [(1, 3)]
    assert list(found) == [f"{shard:03d}-{n:012d}.parquet" for shard, n in shards]
    assert found["000-000000000003.parquet"] == [90, 90]


def test_a_new_process_takes_the_place_of_what_its_manifest_does_not_hold(tmp_path):
    give(sinks.WritePredictions(str(tmp_path)), *[(0, n, predictions(2 * n, 2)) for n in range(1, 6)])
    sinks.reset()
    # The very predictions that are there, too: what is behind them is of batches that may not come like that again.
    give(sinks.WritePredictions(str(tmp_path)), (0, 3, predictions(6, 2)))
    assert list(versions_in(tmp_path)) == [f"000-{n:012d}.parquet" for n in (1, 2, 3)]


def test_the_folder_of_predictions_is_listed_once(tmp_path, monkeypatch):
    """It grows with the stream: to list it with each batch would take ever longer."""
    listed, scandir = [], os.scandir

    def watched(path):
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    sink = sinks.WritePredictions(str(tmp_path))
    give(sink, (0, 1, predictions(0, 2)))
    first = listed.count(str(tmp_path))
    assert first > 0
    give(sink, *[(0, n, predictions(2 * n, 2)) for n in range(2, 9)], (0, 8, predictions(16, 2)))
    assert listed.count(str(tmp_path)) == first


def delta(first, last):
    rng = np.random.default_rng(last)
    return Delta(
        shard=1, fingerprint=7, epoch=0, from_version=first, to_version=last, newest_event_ms=last,
        keys=np.arange(last), rows=rng.random((last, 5)).astype(np.float32), removed=np.array([first]),
        dense={"bias": rng.random(2).astype(np.float32)},
    )  # fmt: skip


def deltas_in(root):
    return [Delta.from_record(record) for record in PartitionReader(root, "parameters", 1).read(100).records]


def test_deltas_come_back_whole_and_once_from_the_parameter_log(tmp_path):
    sink = sinks.WriteDeltas(str(tmp_path))
    first, second = delta(0, 3), delta(3, 9)
    give(sink, first, second, first, second, first)
    found = deltas_in(tmp_path)
    assert [(each.from_version, each.to_version) for each in found] == [(0, 3), (3, 9)]
    np.testing.assert_array_equal(found[1].keys, second.keys)
    np.testing.assert_array_equal(found[1].rows, second.rows)
    np.testing.assert_array_equal(found[1].removed, second.removed)
    np.testing.assert_array_equal(found[1].dense["bias"], second.dense["bias"])
    assert len(list((tmp_path / "parameters" / "p001").glob("*.avro"))) == 2


def test_a_new_process_does_not_repeat_the_newest_delta(tmp_path):
    give(sinks.WriteDeltas(str(tmp_path)), delta(0, 3), delta(3, 9))
    sinks.reset()
    give(sinks.WriteDeltas(str(tmp_path)), delta(3, 9), delta(9, 10))
    assert [each.to_version for each in deltas_in(tmp_path)] == [3, 9, 10]


class Kept:
    """What a runner that loses nothing keeps for a shard."""

    def __init__(self):
        self._version, self._base, self._inputs = None, None, []

    def version(self):
        return self._version

    def base(self):
        return self._base

    def inputs(self):
        return self._inputs

    def append(self, version, payload):
        self._version = version
        self._inputs.append(payload)

    def rebase(self, version, base, later):
        self._version, self._base, self._inputs = version, base, list(later)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """References to the manifests after each of three batches."""
    root = tmp_path_factory.mktemp("state")
    write_world(root / "logs", 60)
    files = StateFiles(root / "state", 0)
    one, cells = Shard(lambda: JoinAndLearn(CONFIG, LearnConfig(step=16)), files, ShardConfig(0.0)), Kept()
    refs = []
    for batch in batches_of(root / "logs", batch_rows=80)[:3]:
        one.process(cells, batch.encode())
        manifest = settle(one, cells)
        refs.append(SnapshotRef(str(root / "state"), 0, manifest.name))
    return refs


def test_a_snapshot_becomes_one_version_however_often_it_comes(tmp_path, snapshots):
    sink = sinks.WriteVersion(str(tmp_path), CONFIG, 2)
    first, second, _ = snapshots
    assert give(sink, first, first, second, second) == [[1], [], [2], []]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    origin = json.loads((tmp_path / "2" / "assets.extra" / "snapshot.json").read_text())
    assert origin["manifest"] == second.manifest
    model = tf.saved_model.load(str(tmp_path / "2"))
    state = StateFiles(second.state_dir, 0).load(StateFiles(second.state_dir, 0).read(second.manifest))
    step = JoinAndLearn(CONFIG, LearnConfig(step=16))
    step.load(state)
    ids = step.catalogue.items.ids[:7]
    ids = np.concatenate([np.repeat(step.catalogue.users.ids[:1], len(ids), axis=0), ids], axis=1)
    scores = model.signatures["predict"](ids=tf.constant(ids))["scores"].numpy()
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-step.trainer.predict(ids))), atol=1e-5)


def test_a_snapshot_that_is_not_whole_is_said(tmp_path, snapshots):
    last = snapshots[-1]
    files = StateFiles(last.state_dir, 0)
    path = files.directory / files.read(last.manifest).segments[-1][0].name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not whole"):
        give(sinks.WriteVersion(str(tmp_path), CONFIG, 2), last)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "make", "element"),
    [
        ("--dead_letters_dir", sinks.WriteDeadLetters, (0, [letter(0)])),
        ("--metrics_json", lambda path: sinks.WriteMetrics(f"{path}/x"), Metrics(0, {})),
        ("--predictions_dir", sinks.WritePredictions, (0, 1, predictions(0, 1))),
        ("--parameter_log", sinks.WriteDeltas, delta(0, 1)),
    ],
)
def test_a_place_that_cannot_be_written_is_named_with_its_option(tmp_path, option, make, element):
    (tmp_path / "file").write_text("no folder")
    failures.reset()
    with pytest.raises(UserError, match=f"{option} {tmp_path}/file.*: .*start again"):
        give(make(str(tmp_path / "file")), element)
    assert option in str(failures.first())
