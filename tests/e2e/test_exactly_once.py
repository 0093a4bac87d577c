"""A training run that is killed again and again learns each request once, and ends where an undisturbed one ends.

A slot of the configuration holds the request id: its rows' counts tell how often each request was learned.
"""

import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from e2e_worlds import (
    CONFIG,
    ITEMS,
    REQUEST,
    copy_world,
    figures,
    letters,
    records_of,
    table,
    train_arguments,
    write_world,
)

from model.feature_ids import hash_strings
from pipelines import train
from tests.e2e.forked import Forked

REQUESTS = 1600
PARTITIONS = 2
DEADLINE_S = 120


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A world in two partitions; some records cannot be used, and some actions have no impression."""
    folder = tmp_path_factory.mktemp("logs")
    write_world(folder / "clean", REQUESTS, PARTITIONS)

    def spoil(topic, records):
        for number in range(10, len(records), 40):
            records[number] |= {"user_id": ""} if topic == "features" else {"item_id": "none of these"}
        return records

    copy_world(folder / "clean", folder / "logs", spoil)
    return folder / "logs"


def sent(logs):
    """Ids of the requests that can be learned."""
    return {r["request_id"] for p in range(PARTITIONS) for r in records_of(logs, "features", p) if r["user_id"]}


def arguments(logs, folder, *more):
    return train_arguments(logs, folder, "--predictions_dir", str(folder / "predictions"), "--batch_rows", "64", *more)


@pytest.fixture(scope="module")
def undisturbed(logs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train.run(arguments(logs, folder)) == 0
    return folder


def versions(folder):
    """Batches applied in each manifest."""
    return [int(path.name.split("-")[1]) for path in (folder / "state" / "shard-000").glob("manifest-*.json")]


def amid_a_snapshot(folder):
    """Whether there is a file of a snapshot whose manifest is still to be written."""
    newest = max(versions(folder), default=-1)
    return any(int(path.name.split("-")[0]) > newest for path in (folder / "state" / "shard-000").glob("*.arrow"))


def put_out(folder):
    """Batches whose predictions are there."""
    return max((int(path.stem.split("-")[1]) for path in (folder / "predictions").glob("0*.parquet")), default=0)


def killed(logs, folder, condition, snapshot_interval=0):
    """A run that is killed with -9 once the condition holds; batches in its newest manifest."""
    more = ("--snapshot_interval", str(snapshot_interval), "--follow")
    process = Forked("pipelines.train", arguments(logs, folder, *more), folder / "log")
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return max(versions(folder), default=0)


@pytest.fixture(scope="module")
def disturbed(logs, tmp_path_factory):
    """Killed thrice: soon, while a snapshot is written, long after one; then left to end, with batches of another size."""
    folder = tmp_path_factory.mktemp("disturbed")
    first = killed(logs, folder, lambda: max(versions(folder), default=0) >= 3)
    second = killed(logs, folder, lambda: max(versions(folder)) >= first + 20 and amid_a_snapshot(folder))
    assert killed(logs, folder, lambda: put_out(folder) >= second + 20, snapshot_interval=1000) == second
    assert train.run([*arguments(logs, folder), "--batch_rows", "2000"]) == 0
    assert second < max(versions(folder)) < second + 20
    return folder


def test_an_undisturbed_run_learns_each_request_once(logs, undisturbed):
    found = figures(undisturbed)
    assert found["examples"] == found["impressions"] == ITEMS * len(sent(logs))
    assert found["duplicates"] == 0
    assert found["dead_letters"] > 0
    assert 0.55 < found["auc"] < 1


def test_a_killed_run_learns_each_request_once(logs, disturbed):
    keys, _, counts = table(disturbed)
    requests = (keys >> 48) == REQUEST
    assert set((keys[requests] & (1 << 48) - 1).tolist()) == set(hash_strings(sorted(sent(logs))).tolist())
    assert set(counts[requests].tolist()) == {ITEMS}


def test_a_killed_run_ends_with_the_undisturbed_runs_table(disturbed, undisturbed):
    keys, values, counts = table(disturbed)
    expected_keys, expected_values, expected_counts = table(undisturbed)
    assert len(keys) > REQUESTS
    np.testing.assert_array_equal(keys, expected_keys)
    np.testing.assert_array_equal(counts, expected_counts)
    np.testing.assert_allclose(values, expected_values, atol=1e-5)


def test_a_killed_run_says_the_same_of_the_stream(disturbed, undisturbed):
    found, expected = figures(disturbed), figures(undisturbed)
    for name in ("examples", "positives", "actions", "dead_letters", "duplicates", "unmatched", "late", "model_version"):
        assert found[name] == expected[name], name
    for name in ("auc", "logloss", "auc_last_window"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name
    assert len(found["windows"]) == len(expected["windows"]) > 3


def test_a_killed_run_leaves_the_same_dead_letters(disturbed, undisturbed):
    assert letters(disturbed) == letters(undisturbed)
    assert len(letters(disturbed)) == figures(disturbed)["dead_letters"]


def test_a_killed_run_leaves_each_prediction_once(disturbed, undisturbed):
    def rows(folder):
        return pq.read_table(folder / "predictions").sort_by([("head", "ascending"), ("key", "ascending")])

    found, expected = rows(disturbed), rows(undisturbed)
    assert found.num_rows == len(CONFIG.heads) * figures(undisturbed)["examples"]
    for name in ("head", "key", "time_ms", "label"):
        assert found[name].to_pylist() == expected[name].to_pylist()
    np.testing.assert_allclose(found["logit_continuous"], expected["logit_continuous"], atol=1e-5)
