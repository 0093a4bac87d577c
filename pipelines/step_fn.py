"""The stateful step of the job as Beam's DoFn: each batch to the shard it is for, the shard's outputs to their tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder, StrUtf8Coder
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec

from . import monitoring
from .batches import EventBatch
from .counts import MEANINGS, Counts
from .failures import noted
from .learn import JoinAndLearn
from .options import TrainConfig
from .outputs import DEAD_LETTERS, DELTAS, EXAMPLES, METRICS, PREDICTIONS, SNAPSHOTS, Metrics, Outputs, SnapshotRef
from .shard import Shard, ShardCounts, shard_of
from .state_files import StateFiles
from .step import Version

TAGS = (METRICS, DELTAS, SNAPSHOTS, DEAD_LETTERS, PREDICTIONS, EXAMPLES)


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
        yield from self.apply(EventBatch.decode(element[1]), element[1], BeamState(version, base, inputs))

    def apply(self, batch: EventBatch, payload: bytes, state: BeamState) -> Iterator[Any]:
        """Tagged outputs of a batch, which the payload is the encoding of."""
        number = batch.shard
        if self._config.metrics is not None:
            monitoring.serve_when_free(self._config.metrics)
        shard = train_shard(self._config, number)
        before = asdict(shard.counts)
        with noted():
            outputs = shard.process(state, payload, batch)
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
