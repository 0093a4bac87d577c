"""What tests with real servers share."""

import os

import pytest

from deploy import install
from deploy.flink_cluster import FlinkCluster
from deploy.flink_config import FlinkOptions
from deploy.kafka_broker import KafkaBroker, KafkaOptions
from pipelines import replay
from schemas.process import UserError

ANY_FLINK = FlinkOptions(rest_port=0, rpc_port=0, job_port=0, artifact_port=0, expansion_port=0, pool_port=0)
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
