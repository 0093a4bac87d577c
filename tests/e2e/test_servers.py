"""The servers as they are: a broker that outlives its death, clusters that run Beam pipelines, nothing left after them."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from deploy import install
from deploy.flink_cluster import FlinkCluster
from deploy.flink_config import FlinkOptions
from deploy.kafka_broker import KafkaBroker, KafkaOptions, broker_config, format_folder, properties
from deploy.server import processes_of
from deploy.state import read, running
from schemas.process import UserError
from serving.client import RankClient
from serving.errors import ServingError
from tests.e2e.flink_jobs import workers_of

pytestmark = pytest.mark.usefixtures("needs_servers")

ROOT = Path(__file__).parents[2]
ANY_KAFKA = KafkaOptions(port=0, controller_port=0)
ANY_FLINK = FlinkOptions(rest_port=0, rpc_port=0, job_port=0, artifact_port=0, expansion_port=0, pool_port=0)
TOPIC = "actions"


def eventually(ready, seconds=120):
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def produce(bootstrap, value):
    errors = []
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    producer.produce(TOPIC, value, partition=1, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    assert errors == [None]


def consume(bootstrap, count):
    """The first records of partition 1: offset and value."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(TOPIC, 1, 0)])
        found = consumer.consume(count, timeout=30)
        assert [message.error() for message in found] == [None] * count
        return [(message.offset(), message.value()) for message in found]
    finally:
        consumer.close()


def test_a_broker_that_was_killed_has_its_log_still(tmp_path):
    with KafkaBroker(tmp_path, ANY_KAFKA) as broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        admin.create_topics([NewTopic(TOPIC, 2, 1)])[TOPIC].result(30)
        produce(broker.bootstrap, b"like")
        assert consume(broker.bootstrap, 1) == [(0, b"like")]
        before = broker.server.pid
        broker.server.kill()
        broker.restart(broker.server)
        assert broker.server.pid != before
        produce(broker.bootstrap, b"share")
        assert consume(broker.bootstrap, 2) == [(0, b"like"), (1, b"share")]
        assert running(tmp_path, "kafka").endpoints == {"bootstrap": broker.bootstrap}
        # To ask for a topic does not make it: it has the partitions that someone decides on.
        for _ in range(2):
            error = admin.list_topics("no_such", timeout=30).topics["no_such"].error
            assert error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
        token = broker.server.token
    assert processes_of(token) == []
    assert read(tmp_path, "kafka") is None

    # Another process, on another port, over the same folder.
    with KafkaBroker(tmp_path, ANY_KAFKA) as broker:
        assert consume(broker.bootstrap, 2) == [(0, b"like"), (1, b"share")]


def square_roots(cluster, parallelism):
    """Run a small pipeline on a cluster; its state in the end."""
    options = [*cluster.pipeline_options, f"--parallelism={parallelism}", "--max_cache_memory_usage_mb=32"]
    pipeline = beam.Pipeline(options=PipelineOptions(options))
    # Functions that a worker can import: it does not know this file.
    roots = pipeline | beam.Create([1, 4, 9, 16], reshuffle=True) | beam.Map(math.sqrt)
    assert_that(roots, equal_to([1.0, 2.0, 3.0, 4.0]))
    return pipeline.run().wait_until_finish()


def test_a_pipeline_runs_with_its_options_and_leaves_no_worker(cluster):
    assert square_roots(cluster, 2) == "DONE"
    eventually(lambda: workers_of(cluster) == [])
    # What a worker logs is in its task manager's log.
    assert "'max_cache_memory_usage_mb': 32" in cluster.task_managers[0].log.read_text()
    with urllib.request.urlopen(f"http://{cluster.rest}/", timeout=10) as page:
        assert b"Apache Flink Web Dashboard" in page.read()


def test_another_cluster_beside_it_loses_a_task_manager(cluster, tmp_path):
    with FlinkCluster(tmp_path, FlinkOptions(**vars(ANY_FLINK) | {"task_managers": 2, "slots": 1})) as other:
        assert set(other.endpoints.values()).isdisjoint(cluster.endpoints.values())
        lost = other.task_managers[1]
        former = lost.resource_id
        lost.kill()
        other.restart(lost)
        known = {each["id"] for each in other.ask("/taskmanagers")["taskmanagers"]}
        assert lost.resource_id in known
        assert lost.resource_id != former
        tokens = [server.token for server in other.servers]
    assert [processes_of(token) for token in tokens] == [[]] * 5
    # The first knew nothing of it.
    assert cluster.ask("/overview")["taskmanagers"] == 1


def test_a_cluster_that_is_not_ready_in_time_is_told_with_its_log_and_ended(tmp_path):
    cluster = FlinkCluster(tmp_path, ANY_FLINK, timeout_s=0.2)
    with pytest.raises(UserError, match="the job manager does not tell of 1 task managers on .* after 0 s: see ") as told:
        cluster.start()
    assert str(tmp_path / "logs" / "job-manager.log") in str(told.value)
    assert [processes_of(server.token) for server in cluster.servers] == [[]] * 4
    assert read(tmp_path, "flink") is None


def test_a_setting_that_a_server_refuses_is_told_in_its_own_words(tmp_path):
    options = KafkaOptions(port=0, controller_port=0, config={"num.network.threads": "0"})
    with pytest.raises(UserError, match=r"num\.network\.threads"):
        KafkaBroker(tmp_path, options).start()


def test_a_folder_is_formatted_for_a_cluster_whose_name_begins_with_a_dash(tmp_path):
    settings = tmp_path / "server.properties"
    settings.write_text(properties(broker_config("127.0.0.1", 9092, 9093, tmp_path / "data")))
    tool = [str(install.java()), "-cp", f"{install.kafka_libraries()}/*", "kafka.tools.StorageTool"]
    format_folder(tool, "-uH0mPSFTSuiHKZBqcpYkw", settings)
    assert "cluster.id=-uH0mPSFTSuiHKZBqcpYkw" in (tmp_path / "data" / "meta.properties").read_text().splitlines()


def test_a_port_that_is_taken_is_told_with_its_option(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: .*; give another --job_port"):
            FlinkCluster(tmp_path, FlinkOptions(**vars(ANY_FLINK) | {"job_port": port})).start()


def command(module, folder, *more):
    """Run deploy.up or deploy.down for a broker and a model server, in a folder of their own."""
    arguments = ["--dir", folder, "--only", "kafka,serving", *more]
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_up_and_down_as_a_person_types_them(tmp_path):
    up = ("deploy.up", tmp_path, "--free_ports", "--model_dir", tmp_path / "models")
    try:
        status, out, err = command(*up)
        assert (status, err) == (0, "")
        kafka, serving = running(tmp_path, "kafka"), running(tmp_path, "serving")
        assert f"bootstrap {kafka.endpoints['bootstrap']}" in out
        assert f"serving waits for the first version in {tmp_path / 'models'}" in out
        AdminClient({"bootstrap.servers": kafka.endpoints["bootstrap"]}).list_topics(timeout=30)
        with RankClient(serving.endpoints["address"], timeout_s=20) as client:
            with pytest.raises(ServingError) as refused:
                client.heads()
            assert refused.value.code is grpc.StatusCode.NOT_FOUND

        status, out, err = command(*up)
        assert (status, err) == (0, "")
        assert out.count("runs already") == 2
        assert running(tmp_path, "kafka") == kafka

        os.kill(kafka.servers[0].pid, signal.SIGKILL)
        eventually(lambda: kafka.gone() != [])
        status, out, err = command(*up)
        assert (status, err) == (0, "")
        assert out.count("runs already") == 1
        tokens = [server.token for name in ("kafka", "serving") for server in running(tmp_path, name).servers]
        assert kafka.servers[0].token not in tokens
    finally:
        status, out, err = command("deploy.down", tmp_path)
    assert (status, err) == (0, "")
    assert [line.split()[1:] for line in out.splitlines()] == [["stopped"], ["stopped"]]
    assert [processes_of(token) for token in tokens] == [[], []]
    assert command("deploy.down", tmp_path)[1].count("does not run") == 2
