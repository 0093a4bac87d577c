"""The main job in processes of its own: a whole run, and runs that are killed."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from pipelines import replay, train
from pipelines.state_files import StateFiles
from schemas.config import load_config
from tests.e2e.forked import ROOT, Forked

REQUESTS = 1500
TTL_S = 3 * 3600


def command(*arguments):
    return [sys.executable, "-m", "pipelines.train", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def train_arguments(logs, folder):
    return (
        *("--logs", logs, "--state_dir", folder / "state", "--metrics_json", folder / "metrics.json"),
        *("--snapshot_interval", "0.1", "--batch_rows", "512", "--window", "1000"),
    )


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Two days of the simulator for a model that forgets videos within hours, so that rows expire all along."""
    folder = tmp_path_factory.mktemp("logs")
    config = load_config(ROOT / "schemas" / "simulator.toml")
    slots = tuple(slot if slot.ttl_s is None else replace(slot, ttl_s=TTL_S) for slot in config.slots)
    replace(config, slots=slots).dump(folder / "short.toml")
    world = ("--dataset", "simulator", "--config", folder / "short.toml", "--requests", REQUESTS, "--days", 2)
    assert replay.main([*map(str, world), "--out", str(folder / "logs")]) == 0
    return folder / "logs"


@pytest.fixture(scope="module")
def undisturbed(logs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(*train_arguments(logs, folder), "--model_dir", folder / "models")
    assert done.returncode == 0, done.stderr
    return folder


def table_of(folder):
    """Rows of the final state, sorted by key: key, values, counts, where they lie, when last seen."""
    rows = StateFiles(folder / "state", 0).newest()[1].keyed["table"].rows.sort_by("key").combine_chunks()
    values = np.asarray(rows["values"].combine_chunks().flatten()).reshape(rows.num_rows, -1)
    return rows["key"].to_numpy(), values, *(rows[name].to_numpy() for name in ("counts", "row", "last_seen_ms"))


def figures(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_whole_run_learns_every_impression_once(undisturbed):
    found = figures(undisturbed)
    assert found["examples"] == found["impressions"] == 5 * REQUESTS
    assert found["dead_letters"] == found["duplicates"] == 0
    assert 0.5 < found["auc"] < 1
    assert sorted(p.name for p in (undisturbed / "models").iterdir())[-1].isdigit()
    keys, _, counts, _, seen = table_of(undisturbed)
    users, videos = (keys >> 48) == 1, (keys >> 48) == 4
    assert counts[users].sum() == 5 * REQUESTS
    assert counts[videos].sum() < 5 * REQUESTS - 500  # of many that were let go, some came back
    assert np.count_nonzero(seen[videos] < seen.max() - 1000 * TTL_S) > 0  # and some have yet to be


@pytest.mark.parametrize("progress", [1, 4])
def test_a_killed_run_ends_with_the_undisturbed_runs_table(logs, undisturbed, tmp_path, progress):
    """Killed with -9 once ``progress`` manifests are there, then started again with the same state directory."""
    arguments = train_arguments(logs, tmp_path)
    process = Forked("pipelines.train", arguments, tmp_path / "log")
    shard = tmp_path / "state" / "shard-000"
    deadline = time.monotonic() + 120
    while len(list(shard.glob("manifest-*.json"))) < progress:
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert train.main([*map(str, arguments)]) == 0
    keys, values, *others = table_of(tmp_path)
    expected_keys, expected_values, *expected_others = table_of(undisturbed)
    np.testing.assert_array_equal(keys, expected_keys)
    np.testing.assert_array_equal(others, expected_others)
    np.testing.assert_allclose(values, expected_values, atol=1e-5)
    for name in ("examples", "auc", "logloss", "positives", "actions"):
        assert figures(tmp_path)[name] == pytest.approx(figures(undisturbed)[name], abs=1e-5)


def test_sigterm_writes_state_and_model_and_ends_with_0(logs, tmp_path):
    arguments = (*train_arguments(logs, tmp_path), "--model_dir", tmp_path / "models", "--follow", "--idle", "0.2")
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    assert StateFiles(tmp_path / "state", 0).newest() is not None
    versions = [path for path in (tmp_path / "models").iterdir() if path.name.isdigit()]
    assert versions
    assert all((path / "saved_model.pb").is_file() for path in versions)


def test_a_wrong_option_is_one_line_and_status_2(tmp_path):
    done = run("--logs", tmp_path, "--state_dir", tmp_path / "state", "--no_such_option")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert "--no_such_option: no such option" in errors[0]
    assert "Traceback" not in done.stderr
