"""The benchmarks as commands, small: a table, and as the last line one JSON object with all that is promised."""

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import join, kuairand, pipeline, rank, step
from bench.output import finish
from schemas.process import UserError

DAY_MS = 86_400_000
START_MS = 1_650_816_000_000  # midnight of 25 April 2022 in Beijing
FLAGS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "long_view")
ARMS = ["continuous", "frozen", "daily", "hourly"]


def write_kuairand(folder, impressions=900, days=3, users=30, videos=40):
    """A log in the official layout, evenly over some days; users like some videos."""
    rng = np.random.default_rng(0)
    user, video = rng.integers(1, users, impressions), rng.integers(1, videos, impressions)
    time_ms = START_MS + np.arange(impressions) * (days * DAY_MS // impressions)
    log = pd.DataFrame({"user_id": user, "video_id": video, "time_ms": time_ms, "tab": 1, "play_time_ms": 5_000})
    log["date"] = 20220425 + np.arange(impressions) * days // impressions
    log[[*FLAGS]] = 0
    log["is_click"] = rng.random(impressions) < rng.random(videos)[video]
    log["is_click"] = log["is_click"].astype(int)
    log.to_csv(folder / "log_standard_4_22_to_5_08_pure.csv", index=False)
    people = pd.DataFrame({"user_id": range(1, users)})
    numbers = ("is_lowactive_period", "is_live_streamer", "is_video_author", *(f"onehot_feat{n}" for n in range(18)))
    texts = (f"{name}_range" for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days"))
    people[[*numbers]] = 0
    people[["user_active_degree", *texts]] = "some"
    people.to_csv(folder / "user_features_pure.csv", index=False)
    films = pd.DataFrame({"video_id": range(1, videos), "author_id": 7, "music_id": 8, "music_type": 9, "tag": "20,43"})
    films[["video_type", "upload_type", "upload_dt"]] = ("NORMAL", "Web", "2022-04-20")
    films["video_duration"] = 12_000
    films.to_csv(folder / "video_features_basic_pure.csv", index=False)
    return log


def last_line(capsys):
    """The JSON object at the end; a table stands before it."""
    *before, last = capsys.readouterr().out.splitlines()
    assert any("┃" in line for line in before)
    return json.loads(last)


def test_kuairand(tmp_path, capsys):
    log = write_kuairand(tmp_path)
    command = ("--path", tmp_path, "--dump", tmp_path / "dump", "--seeds", 1, "--days", 2, "--warm_days", 0.8, "--rows", 550)
    assert kuairand.main([*map(str, command), "--step", "32"]) == 0
    fields = last_line(capsys)
    figures = [f"auc_{arm}" for arm in ARMS]
    assert fields.keys() >= {*figures, "logloss_continuous", "auc_scored_at_emission", "attribution_window_s"}
    assert all(0 < fields[name] < 1 for name in (*figures, "logloss_continuous", "auc_scored_at_emission"))
    # One run has no deviation.
    assert {fields[f"{name}_deviation"] for name in (*figures, "logloss_continuous")} == {0}
    assert (fields["attribution_window_s"], fields["seeds"], fields["step"]) == (60, 1, 32)
    assert isinstance(fields["ordered_in_every_seed"], bool)
    made = pq.read_table(tmp_path / "dump" / "predictions.parquet")
    assert made.schema.names == ["arm", "user_id", "video_id", "time_ms", "label", "score"]
    types = [made.schema.field(name).type for name in ("user_id", "video_id", "time_ms", "label", "score")]
    assert types == [pa.int64(), pa.int64(), pa.int64(), pa.int8(), pa.float64()]
    made = made.to_pandas()
    assert made["arm"].unique().tolist() == ARMS
    # Of the last two of three days the first 550 rows were taken; what lies behind 0.8 days is scored, by every arm.
    taken = log[log["date"] >= 20220426].iloc[:550]
    expected = taken[taken["time_ms"] >= taken["time_ms"].iloc[0] + round(0.8 * DAY_MS)]
    assert fields["impressions_scored"] == len(expected)
    for arm in ARMS:
        own = made[made["arm"] == arm].reset_index(drop=True)
        columns = {"user_id": "user_id", "video_id": "video_id", "time_ms": "time_ms", "is_click": "label"}
        for source, column in columns.items():
            assert own[column].tolist() == expected[source].tolist()
        assert own["score"].between(0, 1).all()
    assert made.groupby("arm", observed=True)["score"].mean().nunique() == len(ARMS)


def test_a_missing_data_set_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder: give --path") as told:
        kuairand.main(["--path", str(tmp_path / "none")])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("seeds", [1, 3])
def test_deviations_are_of_a_sample(seeds):
    runs = [
        {
            "arms": {arm: {"auc": 0.7 + seed / 100, "logloss": 0.5, "calibration": 1.0, "count": 9} for arm in ARMS},
            "auc_scored_at_emission": 0.75,
        }
        for seed in range(seeds)
    ]
    _, fields = kuairand.measured(runs)
    assert fields["auc_continuous"] == pytest.approx(0.7 + (seeds - 1) / 200)
    assert fields["auc_continuous_deviation"] == pytest.approx(0.01 if seeds == 3 else 0)
    assert fields["ordered_in_every_seed"] is False


def test_pipeline(capsys):
    assert pipeline.main(["--requests", "300", "--days", "0.2", "--step", "128"]) == 0
    fields = last_line(capsys)
    assert fields["examples"] == 1500
    assert fields["examples_per_s"] > 0
    assert len(fields["rss_mb_by_quarter"]) == 4
    # The kernel's mark is of the same process: no less than what was seen of it, and not much more, as its parent's would be.
    most = max(fields["rss_mb_by_quarter"])
    assert 100 < most <= fields["peak_rss_mb"] < most + 100
    assert abs(fields["rss_growth_mb"] - (fields["rss_mb_by_quarter"][3] - fields["rss_mb_by_quarter"][2])) <= 1
    assert fields["table_rows"] > 100


def test_rank(capsys):
    assert rank.main(["--requests", "20", "--keys", "3000"]) == 0
    fields = last_line(capsys)
    assert 0 < fields["rank_p50_ms"] <= fields["rank_p99_ms"]
    assert (fields["candidates"], fields["ids_per_candidate"], fields["requests"]) == (500, 30, 20)


def test_step(capsys):
    assert step.main(["--rounds", "1", "--seconds", "0.05", "--batch", "256", "--rows", "2600"]) == 0
    fields = last_line(capsys)
    assert fields["table_rows"] == 2600
    rates = [fields[name] for name in ("examples_per_s", "examples_per_s_at_128", "keras_examples_per_s")]
    assert min(rates) > 0
    assert fields["ratio_to_keras"] == pytest.approx(rates[0] / rates[2], abs=0.01)


def test_join_reads_all_that_it_wrote_and_joins_it(tmp_path):
    """Without the textbook's, which takes Beam half a minute."""
    config = join.feature_config()
    join.write_logs(tmp_path / "logs", config, requests=20_000, seed=1)
    found = join.join_logs(tmp_path / "logs", config)
    actions = found.events - 20_000
    assert actions == pytest.approx(20_000 * sum(join.RATES.values()), rel=0.05)
    assert found.examples == 20_000 * len(join.HEADS)  # each head of a row is decided at a moment of its own
    assert 320 < found.nbytes / found.waiting < 3 * 320
    assert found.waiting == 20_000  # forty seconds, of which all are remembered
    again = join.join_logs(tmp_path / "logs", config)
    assert again[:2] == found[:2]


@pytest.mark.parametrize("nothing", [math.nan, math.inf, None])
def test_what_was_not_measured_is_told(nothing, capsys):
    with pytest.raises(UserError, match="nothing was measured for auc: give"):
        finish([{"AUC": nothing}], {"auc": nothing, "step": 3})
    assert "{" not in capsys.readouterr().out
