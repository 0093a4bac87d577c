"""Command line of ``pipelines.train``: argv to Beam options to one frozen config. Nothing else reads flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from schemas.config import FeatureConfig, load_config
from schemas.logs import LogsPlace
from schemas.process import UserError

from .arms import ARMS, arms_named
from .learn_config import LearnConfig
from .monitoring import MetricsPlace
from .places import Topics, logs_of, topics_of
from .shard import ShardConfig

#: Where logs, and a state, say how their features became ids.
CONFIG_NAME = "feature_config.toml"
#: Beam's own local runner, by its path: the switch called DirectRunner would first try to download another one.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
LOCAL_NAMES = ("", "DirectRunner", "FnApiRunner", LOCAL_RUNNER)


_COUNT = 2**31 - 1
_SECONDS = 1e9  # thirty years
#: Least and most of every numeric option.
BOUNDS: dict[str, tuple[float, float]] = {
    "step": (1, _COUNT),
    "window": (1, _COUNT),
    "warm_start_s": (0, _SECONDS),
    "seed": (0, _COUNT),
    "max_skew": (0, _SECONDS),
    "idle": (0, _SECONDS),
    "batch_rows": (1, _COUNT),
    "sync_interval": (0, _SECONDS),
    "snapshot_interval": (0, _SECONDS),
    "keep_versions": (1, _COUNT),
    "state_retention": (0, _SECONDS / 3600),
    "inputs_bytes": (1, 2**40),
    "progress_interval": (0.01, _SECONDS),
    "table_bytes": (1, 2**50),
    "threads": (1, 4096),
    "metrics_port": (0, 65535),
}
#: Options that may be left out, and then mean what their help says.
_OPTIONAL = ("table_bytes", "threads", "metrics_port")


class TrainOptions(PipelineOptions):
    """Options of the training job."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        # Beam parses these, too, and for jobs that are none of ours: nothing can be marked as required here.
        add = parser.add_argument_group("what every run needs").add_argument
        add(
            "--logs",
            metavar="LOGS",
            help="required: folder with features/ and actions/, as pipelines.replay writes it, and feature_config.toml; or "
            "--kafka in its place",
        )
        add(
            "--kafka",
            metavar="HOST:PORT,...",
            help="brokers that have the topics features and actions, in place of --logs; --config is required then",
        )
        add(
            "--state_dir",
            metavar="STATE",
            help="required: folder for the job's snapshots, made if it is not there; a job with a state goes on from it, and "
            "for a fresh start takes an empty folder",
        )

        add = parser.add_argument_group("how it reaches Kafka").add_argument
        add(
            "--kafka_prefix",
            metavar="TEXT",
            default="",
            help="of the topics' names: TEXTfeatures and TEXTactions (default: none)",
        )
        add(
            "--kafka_config",
            metavar="FILE",
            help="further settings of librdkafka, a NAME=VALUE a line, such as security.protocol=SASL_SSL; "
            "schema.registry.url=URL and other settings of its client for messages in Confluent's wire format",
        )

        add = parser.add_argument_group("what it leaves behind").add_argument
        add(
            "--model_dir",
            metavar="MODELS",
            help="folder for SavedModel versions, which serving.server or TF Serving watches; without it the job learns and "
            "keeps its state, and there is nothing to serve",
        )
        add(
            "--keep_versions",
            metavar="N",
            type=int,
            default=3,
            help="versions kept in MODELS, the newest (default: %(default)s)",
        )
        add(
            "--metrics_json",
            metavar="FILE",
            help="file with the newest figures: examples, dead letters, AUC and log loss of what was evaluated, window by "
            "window; without it there are only the figures that are shown while it runs",
        )
        add("--predictions_dir", metavar="DIR", help="folder for every prediction, once its label is known, as Parquet")
        add(
            "--dead_letters_dir",
            metavar="DIR",
            help="folder for what could not be used, with reason, place and bytes (default: STATE/dead_letters)",
        )
        add("--parameter_log", metavar="DIR", help="folder for the parameters that changed, as deltas; without it none is kept")
        add(
            "--dead_letters_topic",
            metavar="TOPIC",
            help="topic for what could not be used, of the same brokers, in place of --dead_letters_dir; it must be there",
        )
        add(
            "--parameter_topic",
            metavar="TOPIC",
            help="topic for the deltas, of the same brokers, in place of --parameter_log; it must be there, and its "
            "max.message.bytes be above the largest delta",
        )
        add(
            "--examples_topic",
            metavar="TOPIC",
            help="topic for the examples that were learned from, of the same brokers: an archive; it must be there (default: "
            "none is kept)",
        )
        add(
            "--progress_interval",
            metavar="SECONDS",
            type=float,
            default=10.0,
            help="between lines of progress where stderr is no terminal (default: %(default)s)",
        )

        add(
            "--metrics_port",
            metavar="PORT",
            type=int,
            help="publish Prometheus metrics, from the process that holds the table; 0 takes a free port, which the log names "
            "(default: none are published)",
        )
        add(
            "--metrics_host",
            metavar="HOST",
            default="127.0.0.1",
            help="address for --metrics_port; 0.0.0.0 for all (default: %(default)s)",
        )

        add = parser.add_argument_group("how it reads").add_argument
        add(
            "--config",
            metavar="FILE",
            help="feature configuration, that of the logs or one with slots appended to it (default: LOGS/feature_config.toml)",
        )
        add(
            "--follow",
            action="store_true",
            help="go on reading as the logs grow, until SIGTERM; otherwise the job ends with the logs",
        )
        add(
            "--idle",
            metavar="SECONDS",
            type=float,
            default=2.0,
            help="with --follow: silence after which a partition no longer holds back the others (default: %(default)s)",
        )
        add(
            "--max_skew",
            metavar="SECONDS",
            type=float,
            default=3600.0,
            help="how far an event may be ahead of its neighbours; beyond, it is a dead letter (default: %(default)s)",
        )
        add(
            "--batch_rows",
            metavar="N",
            type=int,
            default=4096,
            help="events that are passed on together (default: %(default)s)",
        )

        add = parser.add_argument_group(
            "how it learns", "A state stays with the options it was made with; --step alone may be another in the next run."
        ).add_argument
        add(
            "--step",
            metavar="N",
            type=int,
            default=128,
            help="examples a step of the model: small ones learn sooner, large ones more a second (default: %(default)s)",
        )
        add(
            "--emit",
            choices=("early", "complete"),
            default="early",
            help="early: each head (click, like, ...) is learned when it is decided; complete: all of them when the longest "
            "attribution window ends (default: %(default)s)",
        )
        add(
            "--warm_start_s",
            metavar="SECONDS",
            type=float,
            default=0.0,
            help="event time at the start that is learned but not evaluated; arms start at its end (default: %(default)s)",
        )
        add(
            "--arms",
            metavar="NAMES",
            default="",
            help=f"copies of the model that lag behind it, scored on the same rows to show what freshness is worth: any of "
            f"{','.join(ARMS)} (default: none)",
        )
        add(
            "--window",
            metavar="N",
            type=int,
            default=10_000,
            help="evaluated examples a window of figures (default: %(default)s)",
        )
        add("--seed", metavar="N", type=int, default=0, help="of the model's initial values (default: %(default)s)")

        add = parser.add_argument_group("what it may use").add_argument
        add(
            "--table_bytes",
            metavar="N",
            type=int,
            help="most memory for the embedding table; where it is full, the rows seen least recently make room (default: all "
            "there is)",
        )
        add("--threads", metavar="N", type=int, help="that share a step; results do not depend on it (default: one a core)")

        add = parser.add_argument_group("how it keeps its state").add_argument
        add(
            "--snapshot_interval",
            metavar="SECONDS",
            type=float,
            default=30.0,
            help="between snapshots, and so between model versions (default: %(default)s)",
        )
        add(
            "--sync_interval",
            metavar="SECONDS",
            type=float,
            default=10.0,
            help="between deltas in --parameter_log (default: %(default)s)",
        )
        add(
            "--state_retention",
            metavar="HOURS",
            type=float,
            default=24.0,
            help="that replaced snapshot files are kept, and so the age at which a savepoint is too old (default: %(default)s)",
        )
        add(
            "--inputs_bytes",
            metavar="N",
            type=int,
            default=64 << 20,
            help="bound of what a shard keeps in Beam's state, which each checkpoint copies (default: %(default)s)",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Everything the training pipeline is built from."""

    features: FeatureConfig
    logs: LogsPlace
    state_dir: str
    model_dir: str | None
    metrics_json: str | None
    predictions_dir: str | None
    dead_letters_dir: str
    parameter_log: str | None
    topics: Topics
    follow: bool
    learn: LearnConfig
    shard: ShardConfig
    batch_rows: int
    max_skew_ms: int
    idle_s: float
    sync_interval_s: float
    keep_versions: int
    progress_interval_s: float
    metrics: MetricsPlace | None
    local: bool

    @classmethod
    def from_options(cls, options: PipelineOptions) -> TrainConfig:
        """Check what was given.

        Raises:
            UserError: naming the option, what is wrong with it and what to do.
        """
        train = options.view_as(TrainOptions)
        if not train.state_dir:
            raise UserError("--state_dir is missing; see python -m pipelines.train --help")
        for name, (least, most) in BOUNDS.items():
            value = getattr(train, name)
            if value is None and name in _OPTIONAL:
                continue
            # Not a number is within no bounds.
            if not least <= value <= most:
                raise UserError(f"--{name} {value}: must be from {least:,.15g} to {most:,.15g}")
        arms = arms_named([name.strip() for name in train.arms.split(",") if name.strip()])
        logs = logs_of(train)
        topics = topics_of(train, logs)
        return cls(
            features=load_config(Path(train.config) if train.config else Path(train.logs) / CONFIG_NAME),
            logs=logs,
            state_dir=train.state_dir,
            model_dir=train.model_dir,
            metrics_json=train.metrics_json,
            predictions_dir=train.predictions_dir,
            dead_letters_dir=train.dead_letters_dir or str(Path(train.state_dir) / "dead_letters"),
            parameter_log=train.parameter_log,
            topics=topics,
            follow=train.follow,
            learn=LearnConfig(
                step=train.step,
                early=train.emit == "early",
                arms=arms,
                warm_start_s=train.warm_start_s,
                window=train.window,
                predictions=train.predictions_dir is not None,
                examples=topics.examples is not None,
                seed=train.seed,
                table_bytes=train.table_bytes,
                threads=train.threads,
            ),
            shard=ShardConfig(train.snapshot_interval, train.inputs_bytes, train.state_retention * 3600),
            batch_rows=train.batch_rows,
            max_skew_ms=round(train.max_skew * 1000),
            idle_s=train.idle,
            sync_interval_s=train.sync_interval,
            keep_versions=train.keep_versions,
            progress_interval_s=train.progress_interval,
            metrics=None if train.metrics_port is None else MetricsPlace(train.metrics_host, train.metrics_port),
            local=(options.view_as(StandardOptions).runner or "") in LOCAL_NAMES,
        )
