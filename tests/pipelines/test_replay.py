"""Data set in, two logs out: whole, in time order, with the ids the featuriser gives."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.featuriser import Featuriser
from pipelines.datasets import Events, Stream, World
from pipelines.replay import main, replay, signals_noted
from pipelines.request_log import RequestLogWriter
from schemas.config import FeatureConfig, load_config
from schemas.log_files import PartitionReader, partition_of
from schemas.process import UserError

REAL = Path(os.environ.get("KUAIRAND_DIR", "../shared/data/kuairand_pure"))
CONFIG = Path(__file__).parents[2] / "schemas" / "simulator.toml"
SMALL = ["--dataset", "simulator", "--users", "200", "--days", "2", "--requests", "3000", "--seed", "4"]


def records(root: Path, topic: str, partition: int = 0) -> list[dict[str, Any]]:
    reader = PartitionReader(root, topic, partition)
    found: list[dict[str, Any]] = []
    while (chunk := reader.read(10_000)).records:
        assert not chunk.faults
        found += list(chunk.records)
    return found


@pytest.fixture(scope="module")
def config() -> FeatureConfig:
    return load_config(CONFIG)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replay") / "logs"
    assert main([*SMALL, "--out", str(out)]) == 0
    return out


def test_both_logs_are_whole_and_in_time_order(logs: Path):
    features, actions = records(logs, "features"), records(logs, "actions")
    assert len(features) == 3_000
    assert all(len(record["items"]) == 5 for record in features)
    for topic in (features, actions):
        assert (np.diff([record["time_ms"] for record in topic]) >= 0).all()
    shown = {(record["request_id"], item["item_id"]) for record in features for item in record["items"]}
    assert {(record["request_id"], record["item_id"]) for record in actions} <= shown
    assert {record["action"] for record in actions} == {"click", "long_view", "like"}
    assert actions[-1]["time_ms"] > features[-1]["time_ms"], "the last requests' actions are missing"


def test_records_hold_the_ids_of_the_featuriser(logs: Path, config: FeatureConfig):
    assert load_config(logs / "feature_config.toml") == config
    world = World(seed=4, users=200, requests_per_day=1_500)
    requests = world.requests(2_000).requests
    featuriser = Featuriser(config)
    user_ids = featuriser.pack(featuriser.featurise(requests.user_columns, "user"))
    item_ids = featuriser.pack(featuriser.featurise(requests.item_columns, "item"))
    features = records(logs, "features")[: len(requests)]
    assert [record["user_ids"] for record in features] == user_ids
    assert [item["ids"] for record in features for item in record["items"]] == item_ids
    assert [item["item_id"] for record in features for item in record["items"]] == requests.item_id.tolist()
    assert [record["user_id"] for record in features] == requests.user_id.tolist()
    assert {record["fingerprint"] for record in features} == {config.fingerprint}
    assert {record["raw"] for record in features} == {None}


def test_the_truth_lies_aside(logs: Path):
    truth = pq.read_table(logs / "truth")
    features = records(logs, "features")
    assert truth.column_names == ["request_id", "item_id", "time_ms", "p_click", "p_long_view", "p_like"]
    shown = [(record["request_id"], item["item_id"]) for record in features for item in record["items"]]
    assert list(zip(*(truth[name].to_pylist() for name in ("request_id", "item_id")), strict=True)) == shown
    clicks = sum(record["action"] == "click" for record in records(logs, "actions"))
    assert np.sum(truth["p_click"]) == pytest.approx(clicks, rel=0.05)
    assert [path.name for path in (logs / "truth").iterdir()] == ["part-00000.parquet"]


def test_the_summary_names_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main([*SMALL, "--requests", "300", "--out", str(tmp_path / "logs")])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("simulator: 300 requests with 1,500 impressions; actions: ")
    assert second.startswith("oracle AUC: click 0.")


def test_partitions_keep_a_user_together(logs: Path, tmp_path: Path):
    out = tmp_path / "logs"
    main([*SMALL, "--partitions", "3", "--out", str(out)])
    for topic in ("features", "actions"):
        parts = [records(out, topic, partition) for partition in range(3)]
        assert all(parts)
        for partition, part in enumerate(parts):
            assert {partition_of(record["user_id"], 3) for record in part} == {partition}
            assert (np.diff([record["time_ms"] for record in part]) >= 0).all()
        together = sorted((record for part in parts for record in part), key=repr)
        assert together == sorted(records(logs, topic), key=repr)


def test_raw_features_on_demand(tmp_path: Path):
    out = tmp_path / "logs"
    main([*SMALL, "--requests", "50", "--log_raw", "--out", str(out)])
    requests = World(seed=4, users=200, requests_per_day=25).requests(50).requests
    raw = [{name: json.loads(text) for name, text in record["raw"].items()} for record in records(out, "features")]
    assert [row["user_id"] for row in raw] == requests.user_id.tolist()
    assert [row["country"] for row in raw] == requests.user_columns["country"].tolist()
    assert [tags for row in raw for tags in row["hashtags"]] == requests.item_columns["hashtags"].tolist()
    assert [age for row in raw for age in row["age_hours"]] == requests.item_columns["age_hours"].tolist()


def test_a_live_process_goes_on_where_the_logs_end(tmp_path: Path, config: FeatureConfig):
    world = World(seed=1, users=50, videos=200)
    for _ in range(2):
        with RequestLogWriter(tmp_path, config) as writer:
            events = world.requests(20)
            writer.append(events.requests, events.actions)
            writer.roll()
            before = len(records(tmp_path, "features"))
            alive = world.alive()
            writer.append(world.show(f"guest-{before}", "guest", alive.item_id[:20], world.now_ms), events.actions)
    found = records(tmp_path, "features")
    assert [len(record["items"]) for record in found] == ([5] * 20 + [20]) * 2
    assert [record["request_id"] for record in found if record["user_id"] == "guest"] == [
        "guest-20",
        "guest-41",
    ]


def test_stopping_early_leaves_whole_requests(tmp_path: Path, config: FeatureConfig):
    world = World(seed=1, users=50)
    written: list[Events] = []

    def endless() -> Iterator[Events]:
        while True:
            written.append(world.requests(200))
            yield written[-1]

    with RequestLogWriter(tmp_path, config) as writer:
        tally = replay(Stream(0, endless()), writer, stopped=lambda: len(written) == 3)
    assert tally.requests == len(records(tmp_path, "features")) == 600
    actions = records(tmp_path, "actions")
    assert len(actions) == sum(len(events.actions) for events in written) == sum(tally.actions.values())


def test_a_signal_is_noted_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with signals_noted() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_ends_it_cleanly(tmp_path: Path):
    out = tmp_path / "logs"
    command = [sys.executable, "-m", "pipelines.replay", "--dataset", "simulator", "--out", str(out)]
    process = subprocess.Popen([*command, "--requests", "50000000", "--days", "10"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()  # the first line of progress: it is writing
    while line and "impressions" not in line:
        line = process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(60) == 130
    assert "stopped by a signal" in rest
    assert "Traceback" not in rest
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    features = records(out, "features")
    truth = pq.read_table(out / "truth")
    assert len(features) * 5 == truth.num_rows
    assert {record["request_id"] for record in records(out, "actions")} <= {r["request_id"] for r in features}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset", "kuairand", "--path", "nowhere"], "nowhere: no such folder: give --path"),
        (["--dataset", "movielens"], "--path is missing"),
        (["--dataset", "kuairand", "--path", ".", "--users", "3"], "--users is an option of the simulator"),
        (["--dataset", "simulator", "--path", "."], "leave out --path and --rows"),
        (
            ["--dataset", "simulator", "--config", "nothing.toml"],
            "nothing.toml: no such feature configuration",
        ),
    ],
)
def test_wrong_options_leave_nothing_behind(tmp_path: Path, argv: list[str], message: str):
    with pytest.raises(UserError, match=message):
        main([*argv, "--out", str(tmp_path / "logs")])
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("option", [["--requests", "0"], ["--days", "-1"], ["--partitions", "x"], ["--dataset", "x"]])
def test_options_out_of_range_are_one_line(tmp_path: Path, option: list[str]):
    with pytest.raises(UserError, match=f"^argument {option[0]}: .*{option[1]}.*see python -m pipelines.replay --help$"):
        main(["--dataset", "simulator", "--out", str(tmp_path / "logs"), *option])


def test_an_output_folder_that_is_not_empty_is_refused(tmp_path: Path):
    (tmp_path / "old").touch()
    with pytest.raises(UserError, match="is not empty: remove it, or give --out another folder"):
        main([*SMALL, "--out", str(tmp_path)])
    with pytest.raises(UserError, match="is a file: give --out a folder"):
        main([*SMALL, "--out", str(tmp_path / "old")])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"KuaiRand-Pure is not at {REAL}: set KUAIRAND_DIR to it")
def test_kuairand(tmp_path: Path):
    assert main(["--dataset", "kuairand", "--path", str(REAL), "--rows", "2000", "--out", str(tmp_path)]) == 0
    features, actions = records(tmp_path, "features"), records(tmp_path, "actions")
    assert sum(len(record["items"]) for record in features) == 2_000
    assert 700 < sum(record["action"] == "click" for record in actions) < 1_100
    assert not (tmp_path / "truth").exists()


def test_movielens(tmp_path: Path):
    data = tmp_path / "ml"
    data.mkdir()
    (data / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,7,4.0,100\n1,8,2.0,200\n")
    (data / "movies.csv").write_text('movieId,title,genres\n7,"Heat (1995)",Action|Crime\n8,Up,(no genres listed)\n')
    assert main(["--dataset", "movielens", "--path", str(data), "--out", str(tmp_path / "logs")]) == 0
    features, actions = records(tmp_path / "logs", "features"), records(tmp_path / "logs", "actions")
    assert [record["items"][0]["item_id"] for record in features] == ["7", "8"]
    assert [(record["item_id"], record["time_ms"]) for record in actions] == [("7", 101_000)]
