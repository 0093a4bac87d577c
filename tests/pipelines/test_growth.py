"""Figures over time: growth points and windows are a function of the logs, however they were cut into batches."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.evaluation import Progressive
from model.snapshot import merge
from pipelines.arms import arms_named
from pipelines.datasets import SimulatorOptions, simulate
from pipelines.growth import Growth
from pipelines.join import Join
from pipelines.learn import JoinAndLearn, LearnConfig
from pipelines.merge import MergedLogs
from pipelines.replay import replay
from pipelines.request_log import RequestLogWriter
from pipelines.windows import Windows
from schemas.config import load_config
from schemas.logs import FileLogs

REQUESTS, WINDOW, STEP = 800, 1000, 64
CONFIG = load_config(Path(__file__).parents[2] / "schemas" / "simulator.toml")
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
        FileLogs(str(logs)), CONFIG, Join(CONFIG).actions, {}, follow=False, shard=0, batch_rows=batch_rows,
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


ARMS = ("continuous", "frozen")
SMALL, MANY = 4, 2_600  # windows of four examples, for two doublings and more


@pytest.fixture(scope="module")
def stream():
    """Logits, labels and times of a long stream, some of its windows without both classes."""
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 2, (SMALL * MANY, len(ARMS))).astype(np.float32)
    labels = (rng.random(SMALL * MANY) < 1 / (1 + np.exp(-logits[:, 0]))).astype(np.float32)
    return logits, labels, np.arange(SMALL * MANY) * 100


def fed(stream, windows, first, last, cut=997):
    for start in range(first, last, cut):
        windows.update(*(part[start : min(start + cut, last)] for part in stream))
    return windows


def exactly(stream, first, last):
    measure = Progressive()
    measure.update(stream[0][first:last, 0], stream[1][first:last])
    return measure


def test_windows_do_not_grow_with_the_stream(stream):
    windows, sizes = Windows(ARMS, SMALL), []
    for first in range(0, SMALL * MANY, SMALL * 100):
        fed(stream, windows, first, first + SMALL * 100)
        found = windows.figures()
        sizes.append((len(found), len(json.dumps(found)), sum(array.nbytes for array in windows.state().values())))
        # Of equal width, without a hole, and each base window counts at once.
        width = found[0]["examples"]
        assert {window["examples"] for window in found} == {width}
        assert [window["end_ms"] for window in found] == [100 * (n * width - 1) for n in range(1, len(found) + 1)]
        end = first + SMALL * 100
        expected = exactly(stream, end - SMALL, end).auc
        assert windows.last_auc == (None if np.isnan(expected) else pytest.approx(expected, abs=1e-6))
    assert [part[0] for part in sizes] == [*range(100, 1000, 100), *range(500, 1000, 50), *range(500, 675, 25)]
    assert max(part[1] for part in sizes) < 1.1 * sizes[8][1]
    assert max(part[2] for part in sizes) < 1.1 * sizes[8][2]


def test_windows_of_a_pair_are_weighted_means_and_wider_ones_that_follow_are_exact(stream):
    apart = fed(stream, Windows(ARMS, SMALL), 0, 999 * SMALL).figures()
    windows = fed(stream, Windows(ARMS, SMALL), 0, 1200 * SMALL).figures()
    assert len(windows) == 600
    undefined = 0
    for pair, first, second in zip(windows, apart[::2], apart[1::2], strict=False):
        for name in ("auc", "logloss", "calibration"):
            for arm in ARMS:
                values = [value for value in (first[name][arm], second[name][arm]) if value is not None]
                undefined += len(values) < 2
                assert pair[name][arm] == (pytest.approx(np.mean(values), abs=1e-6) if values else None)
        assert pair["positive_rate"] == pytest.approx((first["positive_rate"] + second["positive_rate"]) / 2, abs=1e-6)
    assert undefined > 50
    for number in range(500, 600):
        measure = exactly(stream, 2 * SMALL * number, 2 * SMALL * (number + 1))
        for name in ("auc", "logloss", "calibration"):
            value = getattr(measure, name)
            found = windows[number][name]["continuous"]
            assert found == (None if np.isnan(value) else pytest.approx(value, abs=1e-6))
        assert windows[number]["positive_rate"] == pytest.approx(measure.positives / measure.count)


@pytest.fixture(scope="module")
def undisturbed(stream):
    return fed(stream, Windows(ARMS, SMALL), 0, SMALL * 2_100, cut=SMALL * 2_100)


@pytest.mark.parametrize("restart", [3999, 4006, 8001])
def test_restored_windows_go_on_as_if_nothing_had_happened(stream, undisturbed, restart):
    restored = Windows(ARMS, SMALL)
    restored.load(fed(stream, Windows(ARMS, SMALL), 0, restart).state())
    fed(stream, restored, restart, SMALL * 2_100)
    assert restored.figures() == undisturbed.figures()
    assert restored.last_auc == undisturbed.last_auc
    for name, array in undisturbed.state().items():
        np.testing.assert_allclose(restored.state()[name], array, rtol=1e-12)


class Table:
    """The size of a table of one row an example."""

    def __init__(self, rows):
        self._rows = rows
        self.nbytes = 100 * rows

    def __len__(self):
        return self._rows


def grown(growth, first, last, step=64):
    for before in range(first, last, step):
        growth.learned(before, before + step, 10 * (before + step), Table(before + step))
    return growth


@pytest.mark.parametrize("every", [64, 100, 1000])
def test_points_do_not_grow_with_the_stream_and_are_those_of_a_wider_stride(every):
    growth = Growth(every)
    for first in range(0, 64 * 60_000, 64 * 5_000):
        grown(growth, first, first + 64 * 5_000)
        assert len(growth.figures()) < 1000
        assert growth.state()["points"].nbytes < 32_000
    points = growth.state()["points"]
    stride = every << int(growth.state()["doublings"][0])
    assert stride > every
    np.testing.assert_array_equal(points, grown(Growth(stride), 0, 64 * 60_000).state()["points"])
    assert all(point["examples_per_s"] > 0 for point in growth.figures())


def test_restored_points_go_on_as_if_nothing_had_happened():
    restored = Growth(100)
    restored.load(grown(Growth(100), 0, 64 * 1_000).state())
    grown(restored, 64 * 1_000, 64 * 5_000)
    whole = grown(Growth(100), 0, 64 * 5_000)
    for name, array in whole.state().items():
        np.testing.assert_array_equal(restored.state()[name], array)


def test_the_pace_of_points_that_became_one_is_that_of_all_their_examples(monkeypatch):
    """A clock of its own for each step: the second half of the stream is learned four times as fast."""
    now = 0.0
    monkeypatch.setattr("pipelines.growth.time.monotonic", lambda: now)
    growth = Growth(64)
    for number in range(1_500):
        now += 1.0 if number < 600 else 0.25
        grown(growth, 64 * number, 64 * number + 64)
    paces = [point["examples_per_s"] for point in growth.figures()]
    assert len(paces) == 750
    assert set(paces[:300]) == {64.0}
    assert set(paces[300:]) == {256.0}
