"""The job's metrics on a Flink cluster: the worker's own endpoint, and Beam's counters by Flink's Prometheus reporter."""

import dataclasses
import re
import socket
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.flink_cluster import FlinkCluster
from deploy.server import wait_until
from pipelines import flink
from pipelines.memory import need
from schemas.config import load_config
from tests.deploy.test_dashboard import all_queried
from tests.e2e.conftest import ANY_FLINK
from tests.e2e.flink_jobs import WAIT_S, Job

pytestmark = pytest.mark.usefixtures("needs_servers")


def free_ports(count):
    sought = [socket.socket() for _ in range(count)]
    for each in sought:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sought]
    for each in sought:
        each.close()
    return found


def scraped(*ports):
    """Values by sample name of those that answer."""
    found = {}
    for port in ports:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                families = text_string_to_metric_families(answer.read().decode())
                found |= {sample.name: sample.value for family in families for sample in family.samples}
        except OSError:
            continue
    return found


def memory_of(processes):
    """Bytes that processes take together. A worker is a fork, and shares much of what it needs with those it comes from: a
    proportional part each; but what it has of files, which others on the machine may have open, too, counts as its own."""
    own, files = 0, []
    for process in processes:
        rollup, status = (Path(f"/proc/{process.pid}/{name}").read_text() for name in ("smaps_rollup", "status"))
        own += sum(int(kib) for kib in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB", rollup, re.MULTILINE))
        files.append(int(re.search(r"^RssFile:\s+(\d+) kB", status, re.MULTILINE)[1]))
    return (own + max(files)) * 1024


@pytest.fixture(scope="module")
def reporters():
    return free_ports(2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, reporters):
    """One whose processes publish their metrics as those of compose.yaml do, on the first of these ports that is free."""
    settings = {
        "metrics.reporter.prom.factory.class": "org.apache.flink.metrics.prometheus.PrometheusReporterFactory",
        "metrics.reporter.prom.port": ",".join(map(str, reporters)),
    }
    with FlinkCluster(tmp_path_factory.mktemp("flink"), dataclasses.replace(ANY_FLINK, config=settings)) as cluster:
        yield cluster


def test_the_worker_and_flink_publish_what_the_dashboard_shows(cluster, reporters, tmp_path, world):
    (port,) = free_ports(1)
    job = Job(cluster, tmp_path, *world, "--follow", "--snapshot_interval", "2", "--metrics_port", str(port))
    examples = "flink_taskmanager_job_task_operator_train_examples"

    def all_there():
        own, flinks = scraped(port), scraped(*reporters)
        return (
            own.get("freshet_trainer_snapshots_total", 0) > 1
            and flinks.get("flink_jobmanager_job_lastCheckpointSize", 0) > 0
            and 0 < own["freshet_trainer_examples_total"] == flinks.get(examples)
        )

    job.wait_for(all_there)
    own, flinks = scraped(port), scraped(*reporters)
    assert {name for name in all_queried() if name.startswith("flink_")} <= flinks.keys()
    # One worker holds the shard and reads the logs: nothing was opened or restored twice.
    assert own["freshet_trainer_consumer_connects_total"] == 1
    assert own["freshet_trainer_restores_total"] == 0
    assert flinks["flink_taskmanager_job_task_operator_source_consumer_connects"] == 1
    config = load_config(Path(world[world.index("--config") + 1]))
    needed = need(config, round(own["freshet_trainer_table_rows"]), impressions_per_s=1)
    assert own["process_resident_memory_bytes"] < needed.total - needed.pool
    pool = psutil.Process(cluster.pool.pid)
    assert 0.4 < memory_of([pool, *pool.children(recursive=True)]) / needed.total < 1
    job.process.terminate()
    assert job.process.wait(WAIT_S) == 0
    assert "the job goes on without its submitter: python -m pipelines.stop ends it" in job.log.read_text()
    (running,) = flink.alive(cluster.rest)
    assert scraped(port)["freshet_trainer_examples_total"] == own["freshet_trainer_examples_total"]
    flink.cancel(cluster.rest, running.name)
    wait_until(lambda: scraped(port) == {}, cluster.servers, time.monotonic() + WAIT_S, "end the worker")  # and its metrics
