"""The training job on a Flink cluster, fed by Kafka: what it learns is what the local runner learns, whatever dies."""

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import pytest

from deploy.flink_cluster import FlinkCluster
from deploy.flink_config import FlinkOptions
from deploy.kafka_broker import KafkaBroker, KafkaOptions
from pipelines import replay, stop, train
from pipelines.state_files import StateFiles
from tests.e2e.flink_jobs import WAIT_S, Job, assert_same, jobs, learned_locally, manifests, workers_of

pytestmark = pytest.mark.usefixtures("needs_servers")
ANY_FLINK = FlinkOptions(rest_port=0, rpc_port=0, job_port=0, artifact_port=0, expansion_port=0, pool_port=0)
WORLD = ("--dataset", "simulator", "--days", "1", "--users", "80", "--seed", "5", "--partitions", "2")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with KafkaBroker(tmp_path_factory.mktemp("kafka"), KafkaOptions(port=0, controller_port=0)) as broker:
        yield broker


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with FlinkCluster(tmp_path_factory.mktemp("flink"), ANY_FLINK) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def world(tmp_path_factory, broker):
    """Both topics with some thousand impressions, and the options that name them."""
    rest = tmp_path_factory.mktemp("world")
    assert replay.main([*WORLD, "--requests", "2000", "--out", str(rest / "logs"), "--kafka", broker.bootstrap]) == 0
    return ["--kafka", broker.bootstrap, "--config", str(rest / "logs" / "feature_config.toml"), "--window", "500"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, world):
    """What the local runner makes of it: figures, and the state's folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    figures = folder / "figures.json"
    assert train.main([*world, "--state_dir", str(folder / "state"), "--metrics_json", str(figures)]) == 0
    return json.loads(figures.read_text()), folder / "state"


def test_topics_with_an_end_are_learned_and_the_job_ends(cluster, tmp_path, world, undisturbed):
    job = Job(cluster, tmp_path, *world)
    assert job.process.wait(WAIT_S) == 0, job.log.read_text()[-2000:]
    assert_same(job.state, job.figures(), undisturbed)
    assert jobs(cluster, "RUNNING") == []


def test_a_worker_that_is_killed_costs_nothing_and_a_job_started_anew_goes_on(cluster, tmp_path, world, undisturbed):
    job = Job(cluster, tmp_path, *world, "--follow", "--snapshot_interval", "2", "--batch_rows", "512")
    job.wait_for(lambda: job.figures()["examples"] > 500)
    workers = workers_of(cluster)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    written = manifests(job.state)
    job.wait_for(lambda: set(workers_of(cluster)) - set(workers) and manifests(job.state) - written)
    for running in jobs(cluster, "RUNNING", "RESTARTING"):
        request = urllib.request.Request(f"http://{cluster.rest}/jobs/{running}?mode=cancel", method="PATCH")
        urllib.request.urlopen(request, timeout=10).close()
    assert job.process.wait(WAIT_S) == 2
    assert job.log.read_text().splitlines()[-1].startswith("error: the job was cancelled: submitted again, it goes on from")
    # From the newest snapshot, on another runner, to the end of the topics.
    figures = tmp_path / "rest.json"
    assert train.main([*world, "--state_dir", str(job.state), "--metrics_json", str(figures)]) == 0
    assert_same(job.state, json.loads(figures.read_text()), undisturbed)


@pytest.fixture(scope="module")
def slow(tmp_path_factory, world):
    """Options by which the same topics last so long that something can happen, and what the local runner makes of them."""
    world = [*world, "--step", "4", "--batch_rows", "128"]
    state = tmp_path_factory.mktemp("slow") / "state"
    return world, (learned_locally(world, state), state)


def test_a_job_stopped_with_a_savepoint_goes_on_from_it_in_two_subtasks(cluster, tmp_path, slow, capsys):
    world, expected = slow
    ends = StateFiles(expected[1], 0).positions()
    options = [*world, "--follow", "--max_bundle_size=2", "--snapshot_interval", "2"]
    first = Job(cluster, tmp_path, *options)
    first.wait_for(lambda: first.figures()["examples"] > 300 and manifests(first.state))
    capsys.readouterr()
    assert stop.main(["--flink_master", cluster.rest, "--state_dir", str(first.state)]) == 0
    savepoint = capsys.readouterr().out.strip()
    assert first.process.wait(WAIT_S) == 2
    assert jobs(cluster, "RUNNING", "RESTARTING") == []
    assert StateFiles(first.state, 0).positions() != ends
    pinned = {path.name.removesuffix(".pin") for path in first.state.glob("shard-000/*.pin")}
    assert pinned and pinned <= manifests(first.state)

    said = cluster.pool.log.stat().st_size
    again = Job(cluster, tmp_path, *options, "--parallelism=2", f"--savepoint_path={savepoint}")
    again.wait_for(lambda: StateFiles(again.state, 0).positions() == ends)
    folder = tmp_path.as_uri()
    assert stop.main(["--flink_master", cluster.rest, "--state_dir", str(again.state), "--savepoint_dir", folder]) == 0
    place = capsys.readouterr().out.strip()
    assert place.startswith("file:") and Path(place.removeprefix("file:")).parent == tmp_path
    assert again.process.wait(WAIT_S) == 2
    with cluster.pool.log.open() as log:
        log.seek(said)
        assert "restoring" in log.read()  # a job started anew would not have known of a version to restore
    assert_same(again.state, learned_locally(world, again.state), expected)


def test_a_task_manager_and_a_broker_that_are_killed_and_come_back_cost_nothing(cluster, broker, tmp_path, slow):
    world, expected = slow
    job = Job(cluster, tmp_path, *world, "--max_bundle_size=2")
    job.wait_for(lambda: job.figures()["examples"] > 300)
    (manager,) = cluster.task_managers
    manager.kill()
    manager.start()
    cluster.wait_ready(time.monotonic() + WAIT_S)
    before = job.figures()["examples"]
    job.wait_for(lambda: job.figures()["examples"] > before + 300)
    (server,) = broker.servers
    server.kill()
    server.start()
    broker.wait_ready(time.monotonic() + WAIT_S)
    assert job.process.wait(WAIT_S) == 0, job.log.read_text()[-2000:]
    assert_same(job.state, job.figures(), expected)


def test_a_job_manager_that_is_killed_ends_the_job_and_one_submitted_again_goes_on(cluster, tmp_path, slow):
    world, expected = slow
    job = Job(cluster, tmp_path, *world, "--max_bundle_size=2", "--snapshot_interval", "2")
    job.wait_for(lambda: job.figures()["examples"] > 300 and manifests(job.state))
    cluster.job_manager.kill()
    cluster.job_manager.start()
    cluster.wait_ready(time.monotonic() + WAIT_S)
    assert job.process.wait(WAIT_S) != 0
    again = Job(cluster, tmp_path, *world)
    assert again.process.wait(WAIT_S) == 0, again.log.read_text()[-2000:]
    assert_same(again.state, again.figures(), expected)
