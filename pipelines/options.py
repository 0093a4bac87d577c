"""Command line of ``pipelines.train``: argv to Beam options to one frozen config. Nothing else reads flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from schemas.config import FeatureConfig, load_config
from schemas.process import UserError

from .arms import Arm, arms_named
from .learn import LearnConfig
from .shard import ShardConfig

#: Beam's own local runner, by its path: the switch called DirectRunner would first try to download another one.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
LOCAL_NAMES = ("", "DirectRunner", "FnApiRunner", LOCAL_RUNNER)


class TrainOptions(PipelineOptions):
    """Options of the training job."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--logs", help="folder with features/ and actions/, as pipelines.replay writes it")
        parser.add_argument("--state_dir", help="folder for the shard's snapshots; the job goes on from what is there")
        parser.add_argument("--model_dir", help="folder for SavedModel versions, which a model server watches")
        parser.add_argument("--metrics_json", help="file that holds the newest figures")
        parser.add_argument("--config", help="feature configuration (default: LOGS/feature_config.toml)")
        parser.add_argument("--follow", action="store_true", help="go on reading as the logs grow, until SIGTERM")
        parser.add_argument(
            "--step", type=int, default=128, help="examples a step of the model: small while the stream is thin (default 128)"
        )
        parser.add_argument(
            "--emit",
            choices=("early", "complete"),
            default="early",
            help="learn each head when it is decided, or all at the end of the longest window",
        )
        parser.add_argument("--arms", default="", help="lagged copies to score beside the model: frozen,daily,hourly")
        parser.add_argument(
            "--warm_start_s",
            type=float,
            default=0.0,
            help="event time at the start that is learned but not evaluated; arms start at its end",
        )
        parser.add_argument("--window", type=int, default=10_000, help="examples a metrics window")
        parser.add_argument("--predictions_dir", help="write every prediction, once its label is known, as Parquet")
        parser.add_argument("--dead_letters_dir", help="folder for what could not be used (default: STATE_DIR/dead_letters)")
        parser.add_argument("--parameter_log", help="folder for parameter deltas")
        parser.add_argument(
            "--max_skew", type=float, default=3600.0, help="seconds an event may be ahead of its neighbours (default 3600)"
        )
        parser.add_argument(
            "--idle",
            type=float,
            default=2.0,
            help="with --follow: seconds after which a silent partition no longer holds back the others",
        )
        parser.add_argument("--sync_interval", type=float, default=10.0, help="seconds between parameter deltas")
        parser.add_argument(
            "--snapshot_interval", type=float, default=30.0, help="seconds between snapshots, and so between model versions"
        )
        parser.add_argument(
            "--inputs_bytes", type=int, default=64 << 20, help="bound of the batches kept in Beam state a shard"
        )
        parser.add_argument("--state_retention", type=float, default=24.0, help="hours that replaced snapshot files are kept")
        parser.add_argument("--keep_versions", type=int, default=3, help="SavedModel versions kept in --model_dir")
        parser.add_argument(
            "--progress_interval",
            type=float,
            default=10.0,
            help="seconds between log lines of progress, where stderr is no terminal",
        )
        parser.add_argument("--batch_rows", type=int, default=4096, help="rows a batch between steps")
        parser.add_argument("--seed", type=int, default=0, help="of the model's initial values")


@dataclass(frozen=True)
class TrainConfig:
    """Everything the training pipeline is built from."""

    features: FeatureConfig
    logs: str
    state_dir: str
    model_dir: str | None
    metrics_json: str | None
    predictions_dir: str | None
    dead_letters_dir: str
    parameter_log: str | None
    follow: bool
    learn: LearnConfig
    shard: ShardConfig
    batch_rows: int
    max_skew_ms: int
    idle_s: float
    sync_interval_s: float
    keep_versions: int
    progress_interval_s: float
    local: bool

    @classmethod
    def from_options(cls, options: PipelineOptions) -> TrainConfig:
        """Check what was given.

        Raises:
            UserError: naming the option, what is wrong with it and what to do.
        """
        train = options.view_as(TrainOptions)
        for name in ("logs", "state_dir"):
            if not getattr(train, name):
                raise UserError(f"--{name} is missing; see --help")
        logs = Path(train.logs)
        for topic in ("features", "actions"):
            if not (logs / topic).is_dir():
                raise UserError(
                    f"--logs {logs}: no folder {topic}/ in it; write logs with python -m pipelines.replay --out {logs}"
                )
        for name, least in (
            ("step", 1),
            ("window", 1),
            ("batch_rows", 1),
            ("keep_versions", 1),
            ("snapshot_interval", 0),
            ("max_skew", 0),
            ("progress_interval", 0.01),
        ):
            if getattr(train, name) < least:
                raise UserError(f"--{name} {getattr(train, name)}: must be at least {least}")
        arms: tuple[Arm, ...] = arms_named([name for name in train.arms.split(",") if name])
        config_path = Path(train.config) if train.config else logs / "feature_config.toml"
        return cls(
            features=load_config(config_path),
            logs=str(logs),
            state_dir=train.state_dir,
            model_dir=train.model_dir,
            metrics_json=train.metrics_json,
            predictions_dir=train.predictions_dir,
            dead_letters_dir=train.dead_letters_dir or str(Path(train.state_dir) / "dead_letters"),
            parameter_log=train.parameter_log,
            follow=train.follow,
            learn=LearnConfig(
                step=train.step,
                early=train.emit == "early",
                arms=arms,
                warm_start_s=train.warm_start_s,
                window=train.window,
                predictions=train.predictions_dir is not None,
                seed=train.seed,
            ),
            shard=ShardConfig(train.snapshot_interval, train.inputs_bytes, train.state_retention * 3600),
            batch_rows=train.batch_rows,
            max_skew_ms=round(train.max_skew * 1000),
            idle_s=train.idle,
            sync_interval_s=train.sync_interval,
            keep_versions=train.keep_versions,
            progress_interval_s=train.progress_interval,
            local=(options.view_as(StandardOptions).runner or "") in LOCAL_NAMES,
        )
