"""What the trainer publishes for Prometheus: scraped from a real training while it goes on, and gone with it."""

import math
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from small_logs import CONFIG, action, as_one, batches_of, features, world, write

from model.delta import Delta
from pipelines import monitoring, source, train
from pipelines.counts import MEANINGS, Counts
from pipelines.join import Join
from pipelines.learn import JoinAndLearn
from pipelines.learn_config import LearnConfig
from pipelines.monitoring import MetricsPlace, Monitoring
from pipelines.state_files import StateFiles
from schemas.process import UserError

REQUESTS = 200
ROWS = 3 * REQUESTS
WAIT_S = 120


@pytest.fixture(autouse=True)
def fresh():
    """Other tests' counts stay out of this module's."""
    monitoring.reset()
    yield
    monitoring.reset()


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A world, with one request that comes twice and two dead letters."""
    root = tmp_path_factory.mktemp("logs")
    shown, acted = world(REQUESTS)
    last_ms = (REQUESTS - 1) * 1500
    shown += [shown[-1], features("bad", last_ms, user_ids=b"")]
    acted += [action("no such request", last_ms)]
    for topic, records in (("features", shown), ("actions", acted)):
        write(root, topic, records)
    CONFIG.dump(root / "feature_config.toml")
    return root


def free_port():
    with socket.socket() as sought:
        sought.bind(("127.0.0.1", 0))
        return sought.getsockname()[1]


def scraped(port):
    """Values by sample name of shard 0; nothing where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: sample.value for sample in samples if sample.labels.get("shard", "0") == "0"}


class Watcher(threading.Thread):
    """Scrapes a run that follows its logs until what it shows is so, then stops the run."""

    def __init__(self, port, condition):
        super().__init__()
        self.port, self.condition, self.found = port, condition, {}

    def run(self):
        deadline = time.monotonic() + WAIT_S
        try:
            while not (self.found and self.condition(self.found)) and time.monotonic() < deadline:
                self.found = scraped(self.port)
                time.sleep(0.02)
        finally:
            source.request_stop()


def settled(found):
    """Between two batches, once all that was written has been read: counters follow what they count by a moment."""
    steps = found.get("freshet_trainer_model_version", 0)
    return (
        found.get("freshet_trainer_impressions_total") == ROWS
        and found["freshet_trainer_learned_total"] == 16 * steps
        and found["freshet_trainer_learn_step_seconds_count"] == steps > 0
        and found["freshet_trainer_deltas_total"] == found["freshet_trainer_delta_rows_count"]
        and found["freshet_trainer_snapshots_total"] > 0
    )


def test_a_training_is_scraped_while_it_runs(logs, tmp_path):
    port = free_port()
    watcher = Watcher(port, settled)
    watcher.start()
    words = f"--logs {logs} --state_dir {tmp_path / 'state'} --step 16 --batch_rows 64 --follow --snapshot_interval 0.5"
    status = train.run(f"{words} --sync_interval 0 --idle 0.2 --window 200 --metrics_port {port}".split())
    watcher.join()
    assert status == 0
    got = watcher.found
    assert settled(got), got
    assert got["freshet_trainer_duplicates_total"] == 3  # the videos of the request that came twice
    assert got["freshet_trainer_dead_letters_total"] >= 1
    assert 0 < got["freshet_trainer_joined_total"] <= got["freshet_trainer_actions_total"]
    assert got["freshet_trainer_joined_ratio"] == pytest.approx(got["freshet_trainer_joined_total"] / ROWS)
    assert 0 < got["freshet_trainer_examples_total"] <= got["freshet_trainer_learned_total"]
    assert 0 < got["freshet_trainer_learn_step_seconds_sum"] < WAIT_S
    assert got["freshet_trainer_table_rows"] == got["freshet_trainer_admitted_total"] > 100
    assert got["freshet_trainer_table_bytes"] > 0
    assert 0 < got["freshet_trainer_loss"] < 10
    assert got["freshet_trainer_healthy"] == 1
    assert got["freshet_trainer_event_lag_seconds"] > 365 * 24 * 3600  # the world is of 2022
    assert got["freshet_trainer_delta_bytes_sum"] > 4 * got["freshet_trainer_delta_rows_sum"] > 0
    assert got["freshet_trainer_consumer_connects_total"] == 1
    assert got["freshet_trainer_restores_total"] == 0
    assert got["freshet_trainer_snapshot_seconds_sum"] > 0
    newest, _ = StateFiles(tmp_path / "state", 0).newest()
    assert got["freshet_trainer_snapshot_bytes_sum"] >= newest.bytes[0] > 0
    assert scraped(port) == {}  # gone with the run


def test_without_the_option_nothing_is_published(logs, tmp_path, monkeypatch):
    monkeypatch.setattr(monitoring, "MetricsEndpoint", None)  # would be called
    assert train.run(["--logs", str(logs), "--state_dir", str(tmp_path), "--step", "64"]) == 0


def test_a_port_that_is_taken_is_told_before_anything_begins(logs, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["--logs", str(logs), "--state_dir", str(tmp_path / "state"), "--metrics_port", str(port)]
        with pytest.raises(UserError, match=f"cannot publish metrics on 127.0.0.1:{port}: .*; choose another --metrics_port"):
            train.run(words)
    assert StateFiles(tmp_path / "state", 0).newest() is None


def test_elsewhere_a_port_that_is_taken_is_taken_later(caplog, monkeypatch):
    monkeypatch.setattr(monitoring, "_AGAIN_S", 0.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = MetricsPlace("127.0.0.1", taken.getsockname()[1])
        monitoring.serve_when_free(place)
        assert "metrics not published yet" in caplog.text
    monitoring.serve_when_free(place)
    assert scraped(place.port)["freshet_trainer_consumer_connects_total"] == 0


def test_one_endpoint_tells_the_shards_of_a_process_apart():
    port = monitoring.serve(MetricsPlace("127.0.0.1", 0))
    assert monitoring.serve(MetricsPlace("127.0.0.1", 0)) == port
    for number in (0, 1):
        monitoring.of_process().shard(number).counted(Counts(examples=10 + number), {})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'freshet_trainer_examples_total{shard="0"} 10.0' in text
    assert 'freshet_trainer_examples_total{shard="1"} 11.0' in text


def test_what_is_not_known_yet_is_no_number():
    found = Monitoring()
    monitor = found.shard(0)
    monitor.stands(auc=None)
    for name in ("auc", "event_lag_seconds"):
        assert math.isnan(found.registry.get_sample_value(f"freshet_trainer_{name}", {"shard": "0"}))


def test_batches_add_up_to_the_totals_however_they_are_cut(logs):
    """What each batch counts is a function of the logs: so are the sums."""

    def total(batches):
        step = JoinAndLearn(CONFIG, LearnConfig(step=16))
        added = [step.apply(batch).counts for batch in batches]
        sums = {name: sum(getattr(each, name) for each in added) for name in MEANINGS}
        return sums, step

    whole, step = total([as_one(batches_of(logs))])
    parts, _ = total(batches_of(logs, batch_rows=50))
    cut_by_batches = {"deltas": 0, "delta_rows": 0, "delta_bytes": 0, "events": 0}
    assert parts | cut_by_batches == whole | cut_by_batches
    figures = step.figures()
    assert {name: whole[name] for name in ("impressions", "actions", "duplicates", "late", "dead_letters", "examples")} == {
        name: figures[name] for name in ("impressions", "actions", "duplicates", "late", "dead_letters", "examples")
    }
    assert whole["admitted"] == figures["table_rows"]
    assert whole["examples"] == ROWS


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("batch_rows", [1, 7, 10_000])
def test_an_impression_is_joined_once_whatever_meets_it(tmp_path, early, batch_rows):
    """Two heads of one video, one head of another, a third that nobody acts on."""
    write(tmp_path, "features", [features("r", 0, items=("v1", "v2", "v3")), features("end", 2_000_000, items=("v9",))])
    write(tmp_path, "actions", [action("r", 10, "v1"), action("r", 20_000, "v1", name="like"), action("r", 30_000, "v2")])
    step, joined = JoinAndLearn(CONFIG, LearnConfig(step=4, early=early)), 0
    for batch in batches_of(tmp_path, batch_rows=batch_rows):
        joined += step.apply(batch).counts.joined
    assert joined == 2
    assert Join(CONFIG).newly_joined(Join(CONFIG).close().decisions) == 0


def test_bytes_of_a_delta_are_those_of_its_arrays():
    delta = Delta(0, 0, 0, 0, 1, 0, np.zeros(3, np.int64), np.zeros((3, 5), np.float32), np.zeros(2, np.int64),
                  {"w": np.zeros(7, np.float32)}, np.zeros(3, np.int64))  # fmt: skip
    assert delta.nbytes == 24 + 60 + 16 + 28 + 24


def test_beams_counters_are_those_of_a_run(logs, tmp_path):
    """On a runner, as Flink's metrics get them: each batch once."""
    config = train.TrainConfig.from_options(
        train.PipelineOptions(["--logs", str(logs), "--state_dir", str(tmp_path), "--step", "16", "--batch_rows", "64"])
    )
    for module in train.STATEFUL:
        module.reset()
    pipeline = train.beam.Pipeline(runner="apache_beam.runners.portability.fn_api_runner.FnApiRunner")
    train.build_pipeline(pipeline, config)
    result = pipeline.run()
    result.wait_until_finish()
    train.forget(config.state_dir)
    found = {}
    for counter in result.metrics().query()["counters"]:
        found[counter.key.metric.name] = found.get(counter.key.metric.name, 0) + counter.result
    assert {name: found[name] for name in ("examples", "impressions", "dead_letters", "duplicates")} == {
        "examples": ROWS, "impressions": ROWS, "dead_letters": 2, "duplicates": 3,
    }  # fmt: skip
    assert found["consumer_connects"] == 1
    assert found["snapshots"] >= 1
    assert found.get("restores", 0) == 0
    assert MEANINGS.keys() <= found.keys() | {"late", "expired", "evicted", "unmatched"}
