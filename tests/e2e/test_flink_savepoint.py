"""The training job on a Flink cluster is stopped and goes on from its savepoint: what it learns is the same."""

import re
from pathlib import Path

import pytest

from pipelines import stop
from pipelines.state_files import StateFiles
from schemas.kafka_logs import KafkaTopics
from tests.e2e.e2e_worlds import CONFIG
from tests.e2e.flink_jobs import WAIT_S, Job, assert_same, jobs, learned_locally, manifests
from tests.e2e.topic_worlds import Stream, place

pytestmark = pytest.mark.usefixtures("needs_servers")


def test_a_job_stopped_with_a_savepoint_goes_on_from_it_in_two_subtasks(broker, cluster, tmp_path, capsys):
    topics = KafkaTopics(broker.bootstrap, "savepoint-")
    stream = Stream(topics)
    stream.write(CONFIG)
    world = [*place(topics, CONFIG, tmp_path), "--step", "4", "--batch_rows", "64", "--window", "500"]
    options = [*world, "--follow", "--max_bundle_size=2", "--snapshot_interval", "2"]
    first = Job(cluster, tmp_path, *options)
    first.wait_for(lambda: first.figures()["examples"] > 300 and manifests(first.state))
    capsys.readouterr()
    assert stop.main(["--flink_master", cluster.rest, "--state_dir", str(first.state)]) == 0
    savepoint = capsys.readouterr().out.strip()
    assert first.process.wait(WAIT_S) == 2
    assert jobs(cluster, "RUNNING", "RESTARTING") == []
    pinned = {path.name.removesuffix(".pin") for path in first.state.glob("shard-000/*.pin")}
    assert pinned and pinned <= manifests(first.state)

    stream.write(CONFIG, last=True)
    undisturbed = tmp_path / "undisturbed" / "state"
    expected = (learned_locally(world, undisturbed), undisturbed)
    ends = StateFiles(undisturbed, 0).positions()
    assert StateFiles(first.state, 0).positions() != ends
    (manager,) = cluster.task_managers  # its log has the workers' lines
    said = manager.log.stat().st_size
    again = Job(cluster, tmp_path, *options, "--parallelism=2", f"--savepoint_path={savepoint}")
    again.wait_for(lambda: StateFiles(again.state, 0).positions() == ends)
    folder = tmp_path.as_uri()
    assert stop.main(["--flink_master", cluster.rest, "--state_dir", str(again.state), "--savepoint_dir", folder]) == 0
    second = capsys.readouterr().out.strip()
    assert second.startswith("file:") and Path(second.removeprefix("file:")).parent == tmp_path
    assert again.process.wait(WAIT_S) == 2
    with manager.log.open() as log:
        log.seek(said)
        # A job started anew would not have known of a version to restore.
        assert re.search(r"shard\.py:\d+ restoring", log.read())
    assert_same(again.state, learned_locally(world, again.state), expected)
