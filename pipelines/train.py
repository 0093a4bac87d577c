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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from types import FrameType
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder, StrUtf8Coder
from apache_beam.options.pipeline_options import FlinkRunnerOptions, GoogleCloudOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult, PipelineState
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec

from schemas.process import CommandParser, UserError, run_main, setup_logging
from schemas.quiet import quiet_imports

with quiet_imports():
    from . import failures, flink, monitoring, read, sinks, source, topic_sinks
    from .command_line import has_savepoint, pipeline_options
    from .compatibility import check_configuration, record_configuration
    from .counts import MEANINGS, Counts
    from .failures import noted
    from .join import Join
    from .learn import JoinAndLearn
    from .options import LOCAL_RUNNER, TrainConfig, TrainOptions
    from .outputs import DEAD_LETTERS, DELTAS, EXAMPLES, METRICS, PREDICTIONS, SNAPSHOTS, Metrics, Outputs, SnapshotRef
    from .read import ReadLogs
    from .shard import Shard, ShardCounts, forget, shard_of
    from .source import LogsSource
    from .state_files import Lease, StateFiles
    from .step import Version
    from .watch import ProgressDisplay

log = logging.getLogger(__name__)

TAGS = (METRICS, DELTAS, SNAPSHOTS, DEAD_LETTERS, PREDICTIONS, EXAMPLES)
#: Between two looks at whether a job elsewhere has come to the end.
_POLL_S = 0.5
#: Modules that remember something of a run in this process; each has a ``reset``.
STATEFUL = (source, read, sinks, topic_sinks, failures, monitoring)


class BeamState:
    """A shard's durable part in Beam state cells; a :class:`pipelines.step.Durable`."""

    def __init__(self, version: Any, base: Any, inputs: Any) -> None:
        self._version, self._base, self._inputs = version, base, inputs

    def version(self) -> Version | None:
        text = self._version.read()
        if not text:
            return None
        applied, _, token = text.partition(":")
        return Version(int(applied), token)

    def base(self) -> str | None:
        return self._base.read() or None

    def inputs(self) -> list[bytes]:
        return list(self._inputs.read())

    def append(self, version: Version, payload: bytes) -> None:
        self._inputs.add(payload)
        self._version.write(f"{version.applied}:{version.token}")

    def rebase(self, version: Version, base: str, later: Sequence[bytes]) -> None:
        self._inputs.clear()
        for payload in later:
            self._inputs.add(payload)
        self._base.write(base)
        self._version.write(f"{version.applied}:{version.token}")


class JoinAndLearnFn(beam.DoFn):
    """Hands each batch to the shard it is for, and the shard's outputs to their tags."""

    VERSION = ReadModifyWriteStateSpec("version", StrUtf8Coder())
    BASE = ReadModifyWriteStateSpec("base", StrUtf8Coder())
    INPUTS = BagStateSpec("inputs", BytesCoder())

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        counter = beam.metrics.Metrics.counter
        self._batches = counter("train", "batches")
        self._counters = {name: counter("train", name) for name in (*MEANINGS, *asdict(ShardCounts()))}

    def process(
        self,
        element: tuple[bytes, bytes],
        version: Any = beam.DoFn.StateParam(VERSION),
        base: Any = beam.DoFn.StateParam(BASE),
        inputs: Any = beam.DoFn.StateParam(INPUTS),
    ) -> Iterator[Any]:
        number = int(element[0].rpartition(b"-")[2])
        if self._config.metrics is not None:
            monitoring.serve_when_free(self._config.metrics)
        shard = train_shard(self._config, number)
        before = asdict(shard.counts)
        state = BeamState(version, base, inputs)
        with noted():
            outputs = shard.process(state, element[1])
        yield from self._tagged(outputs, number, shard.version.applied)
        # The outputs are in their sinks: from here on they need not be put out again.
        with noted():
            manifest = shard.settle(state)
        self._count(number, outputs.counts, {name: now - before[name] for name, now in asdict(shard.counts).items()})
        if manifest is not None and manifest.publishable:
            yield beam.pvalue.TaggedOutput(SNAPSHOTS, SnapshotRef(self._config.state_dir, number, manifest.name))

    def _count(self, shard: int, counts: Counts, faults: dict[str, int]) -> None:
        self._batches.inc()
        for name, more in (asdict(counts) | faults).items():
            self._counters[name].inc(more)
        monitoring.of_process().shard(shard).counted(counts, faults)

    def _tagged(self, outputs: Outputs, shard: int, applied: int) -> Iterator[beam.pvalue.TaggedOutput]:
        if outputs.metrics is not None:
            yield beam.pvalue.TaggedOutput(METRICS, Metrics(shard, outputs.metrics))
        for delta in outputs.deltas:
            yield beam.pvalue.TaggedOutput(DELTAS, delta)
        if outputs.dead_letters:
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, (shard, outputs.dead_letters))
        if outputs.examples:
            yield beam.pvalue.TaggedOutput(EXAMPLES, (shard, outputs.examples))
        if self._config.predictions_dir:
            # An empty part, too: it takes the place of what an earlier attempt may have put there.
            yield beam.pvalue.TaggedOutput(PREDICTIONS, (shard, applied, outputs.predictions))


def train_shard(config: TrainConfig, number: int) -> Shard[Outputs]:
    """This process's shard of the job that owns ``config.state_dir``."""

    def make() -> Shard[Outputs]:
        learn, monitor = replace(config.learn, shard=number), monitoring.of_process().shard(number)
        return Shard(
            lambda: JoinAndLearn(config.features, learn, monitor),
            StateFiles(config.state_dir, number),
            config.shard,
            on_snapshot=monitor.wrote,
        )

    return shard_of(config.state_dir, "join-and-learn", number, make)


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


class JoinAndLearnLogs(beam.PTransform):
    """Both logs to the step's tagged outputs."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, begin: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        config = self._config
        return (
            begin
            | "Read both logs by event time" >> ReadLogs(logs_source(config), config.local)
            | "Join and learn" >> beam.ParDo(JoinAndLearnFn(config)).with_outputs(*TAGS)
        )


def build_pipeline(pipeline: beam.Pipeline, config: TrainConfig) -> beam.pvalue.DoOutputsTuple:
    """The whole job; returns the step's outputs, so that a test can look at them."""
    outputs = pipeline | JoinAndLearnLogs(config)
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
