"""The training job on a Flink cluster is stopped and goes on from its savepoint: what it learns is the same."""

import re
from pathlib import Path

import pytest

from pipelines import stop
from pipelines.state_files import StateFiles
from tests.e2e.conftest import write_topics
from tests.e2e.flink_jobs import WAIT_S, Job, assert_same, jobs, learned_locally, manifests

pytestmark = pytest.mark.usefixtures("needs_servers")


@pytest.fixture(scope="module")
def slow(tmp_path_factory, broker):
    """Options by which few requests last so long that something can happen, and what the local runner makes of them."""
    folder = tmp_path_factory.mktemp("slow")
    world = [*write_topics(broker, folder, "slow-", 700), "--step", "4", "--batch_rows", "64"]
    return world, (learned_locally(world, folder / "state"), folder / "state")


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

    (manager,) = cluster.task_managers  # its log has the workers' lines
    said = manager.log.stat().st_size
    again = Job(cluster, tmp_path, *options, "--parallelism=2", f"--savepoint_path={savepoint}")
    again.wait_for(lambda: StateFiles(again.state, 0).positions() == ends)
    folder = tmp_path.as_uri()
    assert stop.main(["--flink_master", cluster.rest, "--state_dir", str(again.state), "--savepoint_dir", folder]) == 0
    place = capsys.readouterr().out.strip()
    assert place.startswith("file:") and Path(place.removeprefix("file:")).parent == tmp_path
    assert again.process.wait(WAIT_S) == 2
    with manager.log.open() as log:
        log.seek(said)
        # A job started anew would not have known of a version to restore.
        assert re.search(r"shard\.py:\d+ restoring", log.read())
    assert_same(again.state, learned_locally(world, again.state), expected)
