"""The training job on a Flink cluster, fed by Kafka: what it learns is what the local runner learns."""

import json
import os
import signal
import urllib.request

import pytest

from deploy import install
from pipelines import train
from tests.e2e.flink_jobs import WAIT_S, Job, assert_same, jobs, manifests, workers_of

pytestmark = pytest.mark.usefixtures("needs_servers")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, world):
    """What the local runner makes of it: figures, and the state's folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    figures = folder / "figures.json"
    assert train.main([*world, "--state_dir", str(folder / "state"), "--metrics_json", str(figures)]) == 0
    return json.loads(figures.read_text()), folder / "state"


def test_topics_with_an_end_are_learned_and_the_job_ends(cluster, tmp_path, world, undisturbed):
    job = Job(cluster, tmp_path, *world, shell=True)
    assert job.process.wait(WAIT_S) == 0, job.log.read_text()[-2000:]
    assert_same(job.state, job.figures(), undisturbed)
    assert jobs(cluster, "RUNNING") == []


def test_the_runner_that_brings_its_own_job_server_does_the_same(cluster, tmp_path, world, undisturbed):
    jar = install.job_server_jar()
    runner = ["--runner=FlinkRunner", f"--flink_master={cluster.rest}", f"--flink_job_server_jar={jar}", "--flink_version=1.19"]
    runner += ["--environment_type=EXTERNAL", f"--environment_config={cluster.worker_pool}"]
    job = Job(cluster, tmp_path, *world, runner=runner, shell=True)
    assert job.process.wait(WAIT_S) == 0, job.log.read_text()[-2000:]
    assert_same(job.state, job.figures(), undisturbed)
    assert jobs(cluster, "RUNNING") == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--kafka", "127.0.0.1:1"), "error: --kafka 127.0.0.1:1: no broker answers"),
        (("--kafka_prefix", "nowhere-"), "error: topic nowhere-features on "),
    ],
)
def test_logs_that_are_not_there_are_told_before_anything_is_submitted(cluster, tmp_path, world, option, said):
    job = Job(cluster, tmp_path, *world, *option)
    assert job.process.wait(60) == 2
    assert job.log.read_text().splitlines()[-1].startswith(said)
    assert jobs(cluster, "CREATED", "RUNNING", "RESTARTING") == []


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
