"""Learn from the two logs as they come: join, score, learn, publish. The main job.

Features (what the model was asked with) and actions (what users then did) are merged by event time, joined on the
request, and learned from, in one event-sourced step a shard; parameters leave by side outputs.

    # a laptop: bounded logs, Beam's local runner
    python -m pipelines.train --logs LOGS --state_dir STATE --model_dir MODELS --metrics_json metrics.json

    # logs that grow: goes on until SIGTERM, then snapshots and ends with status 0 (a job on a cluster goes on by itself)
    python -m pipelines.train --logs LOGS --state_dir STATE --model_dir MODELS --follow --snapshot_interval 5

Run again with the same --state_dir it goes on where it stopped, however it stopped: each example is learned exactly once.
"""

from __future__ import annotations

import argparse
import logging
import signal
import time
from types import FrameType

import apache_beam as beam
from apache_beam.options.pipeline_options import FlinkRunnerOptions, GoogleCloudOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from schemas.process import CommandParser, UserError, run_main, setup_logging
from schemas.quiet import quiet_imports

with quiet_imports():
    from . import failures, flink, monitoring, read, sinks, source, topic_sinks
    from .command_line import has_savepoint, pipeline_options
    from .compatibility import check_configuration, record_configuration
    from .join import Join
    from .options import LOCAL_RUNNER, TrainConfig, TrainOptions
    from .outputs import DEAD_LETTERS, DELTAS, EXAMPLES, METRICS, PREDICTIONS, SNAPSHOTS
    from .read import JoinAndLearnLogs
    from .shard import forget
    from .source import LogsSource
    from .state_files import Lease, StateFiles
    from .step_fn import JoinAndLearnFn, train_shard
    from .watch import ProgressDisplay

log = logging.getLogger(__name__)

#: Between two looks at whether a job elsewhere has come to the end.
_POLL_S = 0.5
#: Modules that remember something of a run in this process; each has a ``reset``.
STATEFUL = (source, read, sinks, topic_sinks, failures, monitoring)


def logs_source(config: TrainConfig) -> LogsSource:
    """Both logs, from where the newest manifest ends."""
    return LogsSource(
        logs=config.logs,
        config=config.features,
        actions=Join(config.features).actions,
        positions=tuple(sorted(StateFiles(config.state_dir, 0).positions().items())),
        follow=config.follow,
        shard=0,
        batch_rows=config.batch_rows,
        max_skew_ms=config.max_skew_ms,
        idle_s=config.idle_s,
        sync_interval_s=config.sync_interval_s,
    )


def build_pipeline(pipeline: beam.Pipeline, config: TrainConfig) -> beam.pvalue.DoOutputsTuple:
    """The whole job; returns the step's outputs, so that a test can look at them."""
    outputs = pipeline | JoinAndLearnLogs(logs_source(config), JoinAndLearnFn(config), config.local)
    letters = (
        topic_sinks.WriteDeadLettersToTopic(config.topics.dead_letters)
        if config.topics.dead_letters
        else sinks.WriteDeadLetters(config.dead_letters_dir)
    )
    _ = outputs[DEAD_LETTERS] | "Write dead letters" >> beam.ParDo(letters)
    if config.metrics_json:
        _ = outputs[METRICS] | "Write metrics" >> beam.ParDo(sinks.WriteMetrics(config.metrics_json))
    if config.model_dir:
        write = sinks.WriteVersion(config.model_dir, config.features, config.keep_versions)
        _ = outputs[SNAPSHOTS] | "Write model versions" >> beam.ParDo(write)
    if config.topics.parameters:
        write_deltas = topic_sinks.WriteDeltasToTopic(config.topics.parameters)
        _ = outputs[DELTAS] | "Write parameter deltas" >> beam.ParDo(write_deltas)
    elif config.parameter_log:
        _ = outputs[DELTAS] | "Write parameter deltas" >> beam.ParDo(sinks.WriteDeltas(config.parameter_log))
    if config.topics.examples:
        _ = outputs[EXAMPLES] | "Write examples" >> beam.ParDo(topic_sinks.WriteExamplesToTopic(config.topics.examples))
    if config.predictions_dir:
        _ = outputs[PREDICTIONS] | "Write predictions" >> beam.ParDo(sinks.WritePredictions(config.predictions_dir))
    return outputs


def run(argv: list[str] | None = None) -> int:
    """Parse, check, run until the logs end or SIGTERM."""
    parser = CommandParser(
        prog="python -m pipelines.train",
        usage="python -m pipelines.train --logs LOGS --state_dir STATE [--model_dir MODELS] [option ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any option of Beam and its runners may follow, such as --runner=FlinkRunner --flink_master=HOST:8081.",
    )
    TrainOptions._add_argparse_args(parser)
    options = pipeline_options(parser, argv)
    config = TrainConfig.from_options(options)
    lease = Lease(config.state_dir)
    try:
        check_configuration(config, from_savepoint=has_savepoint(options))
        if not config.local:
            # What a worker on a cluster cannot open it would try to open for ever, where nobody is told.
            config.logs.open(config.follow).close()
            for output in filter(None, config.topics):
                output.open().close()
        record_configuration(config)
        _run(options, config)
        record_configuration(config)
    finally:
        lease.release()
    return 0


def _run(options: PipelineOptions, config: TrainConfig) -> None:
    if config.local:
        options.view_as(StandardOptions).runner = LOCAL_RUNNER
    for module in STATEFUL:
        module.reset()
    if config.local and config.metrics is not None:
        monitoring.serve(config.metrics)  # a port that is taken is told before anything begins
    previous = signal.signal(signal.SIGTERM, _on_sigterm if config.local else _leave)
    try:
        pipeline = beam.Pipeline(options=options)
        build_pipeline(pipeline, config)
        with ProgressDisplay(config, lambda: train_shard(config, 0)):
            result = pipeline.run()
            if config.local or config.follow:
                result.wait_until_finish()
            else:
                _end(result, options, config)
    except _LeftError:
        name = options.view_as(GoogleCloudOptions).job_name
        log.info("the job goes on without its submitter: python -m pipelines.stop ends it", extra={"job": name})
    except Exception as error:
        said = failures.first()
        if said is None and "JobCancellationException" in str(error):  # Flink's, through a job server that tells no other state
            said = UserError(f"the job was cancelled: submitted again, it goes on from --state_dir {config.state_dir}")
        if said is None:
            raise
        raise said from error
    finally:
        signal.signal(signal.SIGTERM, previous)
        source.reset()
        read.reset()
        topic_sinks.reset()
        monitoring.reset()
        forget(config.state_dir)


def _end(result: PipelineResult, options: PipelineOptions, config: TrainConfig) -> None:
    """Cancel a job on a cluster once all there is in the logs is in its state, and in the model that it publishes: by itself
    it would wait for more, for ever."""
    files = StateFiles(config.state_dir, 0)
    while not PipelineState.is_terminal(result.state):
        if files.ended() and (config.model_dir is None or sinks.published(config.model_dir, config.state_dir, files)):
            master = options.view_as(FlinkRunnerOptions).flink_master
            if master.startswith("["):  # a cluster of the job server's own, which ends with it
                result.cancel()
            else:
                flink.cancel(master.removeprefix("http://"), options.view_as(GoogleCloudOptions).job_name)
            return
        time.sleep(_POLL_S)
    result.wait_until_finish()


class _LeftError(Exception):
    """A submitter that is asked to end leaves its job where it runs."""


def _leave(signum: int, frame: FrameType | None) -> None:
    raise _LeftError


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    log.info("stopping: the last batch is marked, then state and model are written")
    source.request_stop()


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    setup_logging()
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    # It warns of every option that only a job server knows; what is wrong has been told by then.
    logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.ERROR)
    return run(argv)


if __name__ == "__main__":
    run_main(main)
