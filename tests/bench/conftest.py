"""Metrics of a short run, made by the pipeline's own step."""

import json
from pathlib import Path

import pytest

from pipelines.arms import arms_named
from pipelines.datasets import SimulatorOptions, simulate
from pipelines.join import Join
from pipelines.learn import JoinAndLearn, LearnConfig
from pipelines.merge import MergedLogs
from pipelines.replay import replay
from pipelines.request_log import RequestLogWriter
from schemas.config import load_config
from schemas.logs import FileLogs


@pytest.fixture(scope="session")
def simulator_config():
    return load_config(Path(__file__).parents[2] / "schemas" / "simulator.toml")


@pytest.fixture(scope="session")
def run_metrics(tmp_path_factory, simulator_config):
    """Metrics, as JSON has them, of a short simulated stream learned with these settings."""
    logs = tmp_path_factory.mktemp("logs")
    with RequestLogWriter(logs, simulator_config) as writer:
        replay(simulate(SimulatorOptions(users=60, days=3, requests=600, seed=3)), writer)

    def run(*arms, window=250, warm_start_s=86_400):
        learn = LearnConfig(step=64, arms=arms_named(arms), warm_start_s=warm_start_s, window=window)
        step = JoinAndLearn(simulator_config, learn)
        merged = MergedLogs(
            FileLogs(str(logs)), simulator_config, Join(simulator_config).actions, {}, follow=False, shard=0, batch_rows=512,
            max_skew_ms=3_600_000, idle_s=2.0, sync_interval_s=1e9,
        )  # fmt: skip
        while not merged.finished:
            if (batch := merged.next(stop=False)) is not None:
                step.apply(batch)
        return json.loads(json.dumps(step.figures()))

    return run


@pytest.fixture(scope="session")
def metrics(run_metrics):
    return run_metrics("frozen", "daily", "hourly")
