"""The transform itself, driven by Beam: tagged outputs on the local runner, and retries by a TestStream."""

import dataclasses
import json
import logging

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.test_stream import TestStream
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import TimestampedValue
from small_logs import CONFIG, action, as_one, batches_of, features, world, write, write_world

from model.snapshot import merge
from pipelines import source, train
from pipelines.batches import Position
from pipelines.learn import JoinAndLearn
from pipelines.options import TrainConfig
from pipelines.outputs import DEAD_LETTERS, DELTAS, METRICS, PREDICTIONS, SNAPSHOTS
from pipelines.shard import forget
from pipelines.source import LogsMark, shard_key
from pipelines.state_files import StateFiles
from pipelines.step_fn import TAGS
from schemas.process import UserError

# Names that begin with Test are no tests of ours.
TestPipeline.__test__ = TestStream.__test__ = False

REQUESTS = 200
ROWS = 3 * REQUESTS


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A world in two partitions with one record that nobody can use and an action without an impression."""
    root = tmp_path_factory.mktemp("logs")
    write_world(root, REQUESTS - 1, partitions=2)
    last_ms = (REQUESTS - 1) * 1500
    write(root, "features", [features("bad", last_ms, user_ids=b""), features("last", last_ms, items=("v1", "v2", "v3"))])
    write(root, "actions", [action("no such request", last_ms)])
    CONFIG.dump(root / "feature_config.toml")
    return root


def arguments(logs, folder, *more):
    return [
        *("--logs", str(logs), "--state_dir", str(folder / "state"), "--metrics_json", str(folder / "metrics.json")),
        *("--step", "16", "--batch_rows", "64", "--window", "200", "--snapshot_interval", "0.2", *more),
    ]


@pytest.fixture
def config(logs, tmp_path):
    """The configuration of a run with all outputs; its shards leave memory with the test."""
    more = ("--predictions_dir", str(tmp_path / "predictions"), "--sync_interval", "0")
    made = TrainConfig.from_options(PipelineOptions(arguments(logs, tmp_path, *more)))
    for module in train.STATEFUL:
        module.reset()
    yield made
    forget(made.state_dir)


def figures(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_transform_puts_out_metrics_deltas_snapshots_and_dead_letters(config):
    def check_metrics(found):
        last = max((each.figures for each in found), key=lambda each: (each["examples"], each["dead_letters"]))
        assert last["examples"] == last["impressions"] == ROWS
        assert last["dead_letters"] == 2
        assert len(last["windows"]) == ROWS // 200

    def check_deltas(found):
        found = sorted(found, key=lambda each: each.from_version)
        assert len(found) > 2
        assert [each.from_version for each in found] == [0, *(each.to_version for each in found[:-1])]

    def check_snapshots(found):
        assert len(found) >= 1
        newest = StateFiles(config.state_dir, 0).newest()[0]
        assert newest.name in {each.manifest for each in found}

    def check_dead_letters(found):
        letters = sorted((letter for _, part in found for letter in part), key=lambda each: each.number)
        assert [letter.number for letter in letters] == [0, 1]
        assert [letter.reason for letter in letters] == ["a user feature is missing", "an action without an impression"]

    def check_predictions(found):
        keys = np.concatenate([part.key for _, _, parts in found for part in parts if part.head == "click"])
        assert np.unique(keys).size == keys.size == ROWS

    with TestPipeline(runner=FnApiRunner()) as pipeline:
        outputs = pipeline | train.JoinAndLearnLogs(train.logs_source(config), train.JoinAndLearnFn(config), local=True)
        for tag, check in (
            (METRICS, check_metrics),
            (DELTAS, check_deltas),
            (SNAPSHOTS, check_snapshots),
            (DEAD_LETTERS, check_dead_letters),
            (PREDICTIONS, check_predictions),
        ):
            assert_that(outputs[tag], check, label=f"Check {tag}")
    assert train.train_shard(config, 0).counts.restores == 0


class Cells:
    """Beam state of a shard that has applied nothing yet."""

    def version(self):
        return None

    def base(self):
        return None

    def append(self, version, payload):
        assert version.applied > 0


def test_deltas_carry_the_number_of_their_shard(config):
    for number in (0, 3):
        shard = train.train_shard(config, number)
        batch = dataclasses.replace(as_one(batches_of(config.logs.root)), shard=number, sync=True)
        (delta,) = shard.process(Cells(), batch.encode()).deltas
        assert delta.shard == number
        assert delta.keys.size > 100


def elements(config, **options):
    return [(shard_key(0), batch.encode()) for batch in batches_of(config.logs.root, **options)]


def table_of(config):
    rows = merge([StateFiles(config.state_dir, 0).newest()[1]]).keyed["table"].rows.sort_by("key").combine_chunks()
    return {name: rows.column(name).to_pylist() for name in ("key", "values", "counts")}


def run_stream(stream, config, check):
    options = PipelineOptions()
    options.view_as(StandardOptions).streaming = True
    with TestPipeline(runner=BundleBasedDirectRunner(), options=options) as pipeline:
        outputs = pipeline | stream | beam.ParDo(train.JoinAndLearnFn(config)).with_outputs(*TAGS)
        assert_that(outputs[DEAD_LETTERS], check)


@pytest.mark.parametrize("repeated", [False, True])
def test_the_stateful_step_applies_a_stream_once_even_where_batches_come_twice(config, repeated):
    """Bundles as a TestStream cuts them; with ``repeated``, the source went back to an older position once."""
    parts = elements(config, batch_rows=100)
    if repeated:
        parts = [*parts[:5], *parts[3:5], *parts[2:]]
    stream = TestStream()
    for number, part in enumerate(parts):
        stream = stream.advance_watermark_to(number).add_elements([TimestampedValue(part, number)])

    def check(found):
        assert [letter.number for _, letters in found for letter in letters] == [0, 1]

    run_stream(stream.advance_watermark_to_infinity(), config, check)
    shard = train.train_shard(config, 0)
    assert shard.step.progress.examples == ROWS
    assert shard.counts.restores == 0
    undisturbed = JoinAndLearn(CONFIG, config.learn)
    undisturbed.apply(as_one(batches_of(config.logs.root)))
    rows = merge([undisturbed.increment()]).keyed["table"].rows.sort_by("key").combine_chunks()
    assert table_of(config) == {name: rows.column(name).to_pylist() for name in ("key", "values", "counts")}


def test_a_whole_run_writes_figures_versions_and_dead_letters(logs, tmp_path):
    more = ("--model_dir", str(tmp_path / "models"), "--parameter_log", str(tmp_path / "log"), "--snapshot_interval", "1000")
    assert train.run(arguments(logs, tmp_path, *more)) == 0
    found = figures(tmp_path)
    needed = {"examples", "positives", "auc", "logloss", "auc_last_window", "dead_letters", "duplicates", "examples_per_s"}
    assert needed <= found.keys()
    assert found["examples"] == ROWS
    letters = (tmp_path / "state" / "dead_letters" / "shard-000.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in letters] == [0, 1]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["1"]
    # Run again, there is nothing more to learn, and nothing is said twice.
    assert train.run(arguments(logs, tmp_path)) == 0
    of_the_process = {"examples_per_s": 0, "table_bytes": 0, "growth": []}
    assert figures(tmp_path) | of_the_process == found | of_the_process
    assert (tmp_path / "state" / "dead_letters" / "shard-000.jsonl").read_text().splitlines() == letters


def test_a_log_that_has_grown_is_learned_on_from_where_it_ended(tmp_path):
    """Two runs over a log in two parts come to the rows of one run over all of it."""
    shown, acted = world(REQUESTS)
    cut_ms = shown[REQUESTS // 2]["time_ms"]
    parts = [
        ([r for r in shown if r["time_ms"] < cut_ms], [r for r in acted if r["time_ms"] < cut_ms]),
        ([r for r in shown if r["time_ms"] >= cut_ms], [r for r in acted if r["time_ms"] >= cut_ms]),
    ]
    CONFIG.dump(tmp_path / "config.toml")
    for part in parts:
        for topic, records in zip(("features", "actions"), part, strict=True):
            write(tmp_path / "logs", topic, records)
        assert train.run(arguments(tmp_path / "logs", tmp_path, "--config", str(tmp_path / "config.toml"))) == 0
    assert figures(tmp_path)["examples"] == figures(tmp_path)["impressions"] == ROWS


def test_letters_are_put_out_again_where_their_sink_failed(logs, tmp_path):
    """The folder cannot be written: the job ends with one line; with the folder put right, nothing is lost."""
    blocked = tmp_path / "letters"
    blocked.write_text("in the way")
    more = ("--dead_letters_dir", str(blocked), "--snapshot_interval", "0")
    with pytest.raises(UserError, match=r"--dead_letters_dir .*letters: .*start again, nothing is lost"):
        train.run(arguments(logs, tmp_path, *more))
    blocked.unlink()
    assert train.run(arguments(logs, tmp_path, *more)) == 0
    letters = [json.loads(line) for line in (blocked / "shard-000.jsonl").read_text().splitlines()]
    assert [letter["number"] for letter in letters] == [0, 1]
    assert figures(tmp_path)["examples"] == ROWS


def test_a_state_of_other_logs_is_one_line(logs, tmp_path):
    assert train.run(arguments(logs, tmp_path)) == 0
    write_world(tmp_path / "others", 20, partitions=2)
    config = ("--config", str(logs / "feature_config.toml"))
    with pytest.raises(UserError, match=r"reading is at byte \d+.*restore the missing segments, or start anew"):
        train.run(arguments(tmp_path / "others", tmp_path, *config))


def test_a_sick_model_is_not_published_at_the_end(tmp_path, caplog):
    """A learning rate that no model survives: metrics and log say so, no version is written, learning goes to the end."""
    sick = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dense_learning_rate=1e9))
    sick.dump(tmp_path / "config.toml")
    for topic, records in zip(("features", "actions"), world(REQUESTS), strict=True):
        records = [record | {"fingerprint": sick.fingerprint} if topic == "features" else record for record in records]
        write(tmp_path / "logs", topic, records)
    more = ("--config", str(tmp_path / "config.toml"), "--model_dir", str(tmp_path / "models"))
    more += ("--parameter_log", str(tmp_path / "log"), "--sync_interval", "0", "--snapshot_interval", "1000")
    with caplog.at_level(logging.ERROR):
        assert train.run(arguments(tmp_path / "logs", tmp_path, *more)) == 0
    assert figures(tmp_path)["healthy"] is False
    assert figures(tmp_path)["bad_steps"] > 0
    assert figures(tmp_path)["examples"] == ROWS
    assert any("publishing stopped" in record.message for record in caplog.records)
    assert not (tmp_path / "models").exists()
    assert StateFiles(tmp_path / "state", 0).newest() is not None


def test_a_reader_goes_on_with_the_open_logs_of_the_one_before(config):
    reader = train.logs_source(config).create_reader(PipelineOptions(), None)
    assert reader.start()
    opened = reader._logs
    mark = reader.get_checkpoint_mark()
    # Beam keeps the one before, to which nobody may ever come back.
    again = train.logs_source(config).create_reader(PipelineOptions(), mark)
    assert again.start()
    assert again._logs is opened
    first = dict(mark.positions)
    assert all(position.offset >= first[name].offset for name, position in again._logs.positions.items() if name in first)


def test_a_reader_that_is_come_back_to_goes_on_where_it_was(config):
    reader = train.logs_source(config).create_reader(PipelineOptions(), None)
    assert reader.start()
    before = dict(reader.get_checkpoint_mark().positions)
    assert reader.advance()
    after = dict(reader.get_checkpoint_mark().positions)
    assert after != before
    assert all(after[name].offset >= position.offset for name, position in before.items())
    while reader.advance():
        pass
    assert reader.get_checkpoint_mark().finished
    assert not reader.advance()


def test_open_logs_that_nobody_asks_for_again_do_not_gather(config):
    for attempt in range(30):
        mark = LogsMark((("features/p000", Position(0, attempt)),), finished=False)
        reader = train.logs_source(config).create_reader(PipelineOptions(), mark)
        assert reader.start()
        reader.close()
    assert 1 <= len(source._pool) <= source._POOL_MOST
