"""What tests with real servers share."""

import os

import pytest

from deploy import install
from deploy.flink_cluster import FlinkCluster
from deploy.flink_config import FlinkOptions
from deploy.kafka_broker import KafkaBroker, KafkaOptions
from deploy.server import processes_of
from pipelines import replay
from schemas.process import UserError

ANY_FLINK = FlinkOptions(rest_port=0, rpc_port=0, job_port=0, artifact_port=0, expansion_port=0, pool_port=0)
# Servers that live for minutes: Java's first compiler alone has them ready in half the processor time that both take.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")

WORLD = ("--dataset", "simulator", "--days", "1", "--users", "80", "--seed", "5", "--partitions", "2")


@pytest.fixture(scope="session")
def needs_servers():
    """Skips where this machine cannot run Kafka and Flink; with FRESHET_REQUIRE_SERVERS set, as in CI, that is an error."""
    try:
        install.java()
        install.maven()
    except UserError as error:
        if os.environ.get("FRESHET_REQUIRE_SERVERS"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """One for all tests of a process: topics are told apart by their names."""
    with KafkaBroker(tmp_path_factory.mktemp("kafka"), KafkaOptions(port=0, controller_port=0)) as broker:
        yield broker


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """One for all tests of a process; each leaves it without a job, and its end leaves no process of it."""
    with FlinkCluster(tmp_path_factory.mktemp("flink"), ANY_FLINK) as cluster:
        yield cluster
        tokens = [server.token for server in cluster.servers]
    assert [processes_of(token) for token in tokens] == [[]] * 4


@pytest.fixture(scope="session")
def world(tmp_path_factory, broker):
    """Both topics with some thousand impressions, and the options that name them."""
    return write_topics(broker, tmp_path_factory.mktemp("world"), "world-", 2000)


def write_topics(broker, folder, prefix, requests):
    """Both topics of a small world of so many requests, of five videos each; the options that name them."""
    place = ["--kafka", broker.bootstrap, "--kafka_prefix", prefix]
    assert replay.main([*WORLD, "--requests", str(requests), "--out", str(folder / "logs"), *place]) == 0
    return [*place, "--config", str(folder / "logs" / "feature_config.toml"), "--window", "500"]
