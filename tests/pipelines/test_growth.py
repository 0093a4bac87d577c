"""Figures over time: growth points and windows are a function of the logs, however they were cut into batches."""

import numpy as np
import pytest

from model.snapshot import merge
from pipelines.arms import arms_named
from pipelines.datasets import SimulatorOptions, simulate
from pipelines.join import Join
from pipelines.learn import JoinAndLearn, LearnConfig
from pipelines.merge import MergedLogs
from pipelines.replay import replay
from pipelines.request_log import RequestLogWriter
from schemas.config import load_config

REQUESTS, WINDOW, STEP = 800, 1000, 64
CONFIG = load_config("schemas/simulator.toml")
LEARN = LearnConfig(step=STEP, arms=arms_named(["frozen", "hourly"]), warm_start_s=6 * 3600, window=WINDOW)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    with RequestLogWriter(folder, CONFIG) as writer:
        replay(simulate(SimulatorOptions(users=60, days=1, requests=REQUESTS, seed=3)), writer)
    return folder


def learned(logs, batch_rows):
    step = JoinAndLearn(CONFIG, LEARN)
    merged = MergedLogs(
        str(logs), CONFIG, Join(CONFIG).actions, {}, follow=False, shard=0, batch_rows=batch_rows,
        max_skew_ms=3_600_000, idle_s=2.0, sync_interval_s=1e9,
    )  # fmt: skip
    while not merged.finished:
        if (batch := merged.next(stop=False)) is not None:
            step.apply(batch)
    return step


@pytest.fixture(scope="module")
def step(logs):
    return learned(logs, 4096)


def test_a_point_every_window_of_examples(step):
    points = step.figures()["growth"]
    assert len(points) == 5 * REQUESTS // WINDOW
    for number, point in enumerate(points, start=1):
        assert number * WINDOW <= point["examples"] < number * WINDOW + STEP
        assert point["examples_per_s"] > 0
    for name in ("event_ms", "table_rows", "table_bytes"):
        values = [point[name] for point in points]
        assert values == sorted(values)
    # The last point was taken as the last examples were learned.
    assert points[-1]["table_rows"] == len(step.trainer.table)


def test_windows_hold_every_arm(step):
    windows = step.figures()["windows"]
    assert windows
    for window in windows:
        assert window["examples"] == WINDOW
        for figure in ("auc", "logloss", "calibration"):
            assert set(window[figure]) == {"continuous", "frozen", "hourly"}
    assert windows[-1]["auc"]["continuous"] != windows[-1]["auc"]["frozen"]


def test_reliability_of_every_arm_covers_what_was_evaluated(step):
    for figures in step.figures()["arms"].values():
        assert sum(part[2] for part in figures["reliability"]) == figures["count"]
        assert sum(part[1] * part[2] for part in figures["reliability"]) == pytest.approx(figures["positives"], abs=0.1)


def test_the_cut_into_batches_changes_neither_growth_nor_arms(logs, step):
    other = learned(logs, 200)
    np.testing.assert_array_equal(other.growth.state()["points"], step.growth.state()["points"])
    for ours, theirs in zip(other.figures()["windows"], step.figures()["windows"], strict=True):
        for arm, auc in ours["auc"].items():
            assert auc == pytest.approx(theirs["auc"][arm], abs=1e-4)


def test_a_restored_step_keeps_points_but_not_the_pace(step):
    again = JoinAndLearn(CONFIG, LEARN)
    again.load(merge([step.increment()]))
    assert again.learned == step.learned
    points = again.figures()["growth"]
    assert [point["examples_per_s"] for point in points] == [None] * len(points)
    assert [point["table_rows"] for point in points] == [point["table_rows"] for point in step.figures()["growth"]]
