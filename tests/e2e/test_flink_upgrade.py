"""On Flink: an upgrade with a slot more goes on from the state, and a batch that always crashes the step is let go."""

import json
from dataclasses import replace

import numpy as np
import pytest

from model.feature_ids import hash_strings
from pipelines import stop
from pipelines.state_files import StateFiles
from schemas.config import load_config
from schemas.kafka_logs import KafkaTopics
from tests.e2e.e2e_worlds import CONFIG, ITEMS, REQUEST, SIMPLE
from tests.e2e.flink_jobs import WAIT_S, Job, learned_locally, manifests, rows_of
from tests.e2e.topic_worlds import REQUESTS, Stream, place

pytestmark = pytest.mark.usefixtures("needs_servers")

#: A slot has been appended, which records of before do not have.
WIDER = replace(SIMPLE, slots=(*SIMPLE.slots, next(slot for slot in CONFIG.slots if slot.slot == REQUEST)))
SLOW = ("--step", "4", "--batch_rows", "64", "--window", "500", "--max_bundle_size=2", "--snapshot_interval", "2")


def request_counts(state):
    """Values of the slot that holds request ids, ascending, and how often each was learned."""
    keys, counts, _ = rows_of(state)
    own = (keys >> 48) == REQUEST
    return keys[own] & (1 << 48) - 1, counts[own]


def test_a_job_stopped_for_an_upgrade_goes_on_with_a_slot_more(broker, cluster, tmp_path, capsys):
    topics = KafkaTopics(broker.bootstrap, "wider-")
    stream = Stream(topics)
    stream.write(SIMPLE)
    first = Job(cluster, tmp_path, *place(topics, SIMPLE, tmp_path), *SLOW, "--follow")
    first.wait_for(lambda: first.figures()["examples"] > 300 and manifests(first.state))
    capsys.readouterr()
    assert stop.main(["--flink_master", cluster.rest, "--state_dir", str(first.state)]) == 0
    savepoint = capsys.readouterr().out.strip()
    assert first.process.wait(WAIT_S) == 2
    assert StateFiles(first.state, 0).newest()[0].fingerprint == SIMPLE.fingerprint

    sent = stream.write(WIDER, last=True)
    refused = Job(cluster, tmp_path, *place(topics, WIDER, tmp_path), f"--savepoint_path={savepoint}")
    assert refused.process.wait(60) == 2
    assert "leave out --savepoint_path, and the job goes on from --state_dir" in refused.log.read_text().splitlines()[-1]
    again = Job(cluster, tmp_path, *place(topics, WIDER, tmp_path), *SLOW)
    assert again.process.wait(WAIT_S) == 0, again.log.read_text()[-2000:]
    assert again.figures()["examples"] == 2 * REQUESTS * ITEMS
    assert again.figures()["dead_letters"] == again.figures()["duplicates"] == 0
    learned, counts = request_counts(again.state)
    assert learned.tolist() == sorted(hash_strings(sent).tolist())
    assert set(counts.tolist()) == {ITEMS}
    assert load_config(again.state / "feature_config.toml") == WIDER

    # Who has had the slot from the beginning has learned the same, by weights that began otherwise.
    other = tmp_path / "other"
    figures = learned_locally([*place(topics, WIDER, tmp_path), *SLOW[:6]], other)
    assert figures["examples"] == again.figures()["examples"]
    for mine, theirs in zip(rows_of(again.state)[:2], rows_of(other)[:2], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_batch_that_crashes_the_step_for_ever_becomes_dead_letters_and_the_job_goes_on(broker, cluster, tmp_path):
    topics = KafkaTopics(broker.bootstrap, "poison-")
    requests = Stream(topics).write(CONFIG, last=True)
    options = [*place(topics, CONFIG, tmp_path), *SLOW]
    job = Job(cluster, tmp_path, "features/p000", "80", *options, module="tests.e2e.poisoned_train")
    assert job.process.wait(WAIT_S) == 0, job.log.read_text()[-2000:]
    letters = [json.loads(line) for line in (job.state / "dead_letters" / "shard-000.jsonl").open()]
    crashed = [each for each in letters if each["reason"] == "the step crashed on its batch: RuntimeError: poison"]
    assert ("features/p000", 80) in {(each["partition"], each["offset"]) for each in crashed}
    assert len(crashed) <= 64  # a batch, and no more
    # Besides: actions whose requests were in it.
    assert {each["reason"] for each in letters} <= {crashed[0]["reason"], "an action without an impression"}
    lost = {(each["partition"], each["offset"]) for each in crashed if each["partition"].startswith("features")}
    learned, counts = request_counts(job.state)
    assert set(learned.tolist()) < set(hash_strings(requests).tolist())
    assert 0 <= len(lost) - (REQUESTS - len(learned)) <= 2  # a batch may begin and end within a request
    assert np.count_nonzero(counts != ITEMS) <= 2
    assert counts.sum() == job.figures()["examples"]
