"""Where a training job reads its logs, and which topics it writes: what options say of it, checked together."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from apache_beam.options.pipeline_options import PipelineOptions

from schemas.kafka_logs import TOPICS, KafkaTopics
from schemas.log_segments import list_partitions
from schemas.logs import FileLogs, LogsPlace
from schemas.process import UserError
from schemas.shard_topic import OutputTopic


class Topics(NamedTuple):
    """What goes to topics; None: what does not."""

    dead_letters: OutputTopic | None
    parameters: OutputTopic | None
    examples: OutputTopic | None


#: By schema of the records: the option, the one (if any) that names another place for them, and what makes messages smaller.
_OUTPUTS = {
    "dead_letters": ("--dead_letters_topic", "--dead_letters_dir", ""),
    "parameters": ("--parameter_topic", "--parameter_log", ", or give a shorter --sync_interval"),
    "examples": ("--examples_topic", None, ""),
}


def topics_of(train: PipelineOptions, logs: LogsPlace) -> Topics:
    """The topics that options ask for, of the brokers that have the logs.

    Raises:
        UserError: naming the options that do not go together.
    """
    found: dict[str, OutputTopic | None] = {}
    taken = {logs.prefix + topic: f"the log of {topic}" for topic in TOPICS} if isinstance(logs, KafkaTopics) else {}
    for schema, (option, other, smaller) in _OUTPUTS.items():
        name = getattr(train, option.removeprefix("--"))
        found[schema] = None
        if not name:
            continue
        if not isinstance(logs, KafkaTopics):
            raise UserError(f"{option} {name}: topics are of --kafka: leave it out, or read the logs from there")
        if other is not None and getattr(train, other.removeprefix("--")):
            raise UserError(f"{option} and {other} are two places for the same: give one of them")
        if name in taken:
            raise UserError(f"{option} {name}: that topic is {taken[name]}; give one of its own")
        taken[name] = f"the one of {option}"
        found[schema] = OutputTopic(logs, name, schema, option, smaller)
    return Topics(**found)


def logs_of(train: PipelineOptions) -> LogsPlace:
    """Where the logs are."""
    if not (train.logs or train.kafka):
        raise UserError("--logs is missing; see python -m pipelines.train --help")
    if train.logs and train.kafka:
        raise UserError("--logs and --kafka are two places for the same logs: give one of them")
    if train.logs:
        if train.kafka_prefix or train.kafka_config:
            raise UserError("--kafka_prefix and --kafka_config are of --kafka: leave them out")
        _check_logs(Path(train.logs), train.follow)
        return FileLogs(train.logs)
    if not train.config:
        raise UserError("--config is missing: topics do not say how features became ids; give what pipelines.replay took")
    return KafkaTopics.configured(train.kafka, train.kafka_prefix, Path(train.kafka_config) if train.kafka_config else None)


def _check_logs(logs: Path, follow: bool) -> None:
    """Whether there is something to read, or with ``follow`` a place where it may yet appear."""
    remedy = f"write logs with python -m pipelines.replay --out {logs}"
    if follow:
        if not logs.is_dir():
            raise UserError(f"--logs {logs}: no such folder; make it, or {remedy}")
        return
    for topic in ("features", "actions"):
        if not (logs / topic).is_dir():
            raise UserError(f"--logs {logs}: no folder {topic}/ in it; {remedy}")
        if not list_partitions(logs, topic):
            raise UserError(f"--logs {logs}: no partitions in {topic}/; {remedy}, or wait for them with --follow")
