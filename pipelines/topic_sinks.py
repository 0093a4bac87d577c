"""Where the tagged outputs go that are asked for as Kafka topics: appended once, however often the runner repeats itself.

Whether something is in a topic already is asked of the topic (`schemas.shard_topic`), by its number or by what it holds. A
sink waits for its broker with every element, not only at the end of a bundle: the manifest that follows an element in the
same bundle makes a restart skip it. What the broker refuses fails the bundle, and the runner repeats it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import apache_beam as beam
import numpy as np

from schemas.avro import Record
from schemas.process import UserError
from schemas.shard_topic import OutputTopic, ShardTopic

from .examples import Examples
from .failures import noted
from .outputs import DeadLetter
from .sinks import DeltaSink

#: Deltas read back at first: more than a job started anew has put out since its newest manifest.
_DELTAS_BACK = 16
#: Topics belong to the process, as Beam keeps several instances of a DoFn: one producer and one consumer each.
_topics: dict[OutputTopic, ShardTopic] = {}
#: By topic and shard, the newest record in it of those that are numbered.
_newest: dict[tuple[OutputTopic, int], Record] = {}
_lock = threading.RLock()


def reset() -> None:
    """Leave the topics, and forget what is in them, before and after a run."""
    with _lock:
        for topic in _topics.values():
            topic.close()
        _topics.clear()
        _newest.clear()


def _opened(output: OutputTopic) -> ShardTopic:
    with _lock:
        if output not in _topics:
            _topics[output] = output.open()
        return _topics[output]


def _newest_in(output: OutputTopic, shard: int) -> Record | None:
    """A shard's newest record in a topic."""
    for record in _opened(output).unseen(shard):
        _newest[output, shard] = record
    return _newest.get((output, shard))


def _append(output: OutputTopic, shard: int, records: list[Record]) -> None:
    if records:
        _opened(output).append(shard, records)
        _newest[output, shard] = records[-1]


def _of_another_job(output: OutputTopic, what: str) -> UserError:
    return UserError(
        f"{output.option} {output.name} has another {what}: it is of another job; give this one a topic of its own"
    )


class NumberedSink(beam.DoFn):
    """Appends what is numbered to a topic: what is there already is told by its number."""

    def __init__(self, output: OutputTopic) -> None:
        self._output = output

    def setup(self) -> None:
        """A topic that is not there is told before there is anything for it."""
        with noted():
            _opened(self._output)


class WriteDeadLettersToTopic(NumberedSink):
    """Dead letters, one message each."""

    def process(self, element: tuple[int, list[DeadLetter]]) -> None:
        shard, letters = element
        with noted(), _lock:
            newest = _newest_in(self._output, shard)
            records = [letter.to_record(shard) for letter in letters]
            if newest is not None:
                self._check_same(newest, records)
                records = [record for record in records if record["number"] > newest["number"]]
            _append(self._output, shard, records)

    def _check_same(self, newest: Record, records: list[Record]) -> None:
        """A number tells a letter among those of the same logs only."""
        for record in records:
            here = record["partition"], record["offset"]
            if record["number"] == newest["number"] and here != (newest["partition"], newest["offset"]):
                what = f"dead letter {record['number']:,}, of {newest['partition']} at {newest['offset']:,}"
                raise _of_another_job(self._output, what)


class WriteExamplesToTopic(NumberedSink):
    """An archive of what was learned from, many rows a message; an attempt may cut them elsewhere than the one before it."""

    def process(self, element: tuple[int, list[Examples]]) -> None:
        shard, parts = element
        with noted(), _lock:
            record, written = _newest_in(self._output, shard), 0
            if record is not None:
                newest = Examples.from_record(record)
                self._check_same(newest, parts)
                written = newest.end
            new = (part.between(written, part.end) for part in parts)
            _append(self._output, shard, [message.to_record(shard) for part in new for message in part.messages()])

    def _check_same(self, newest: Examples, parts: list[Examples]) -> None:
        """A number tells a row among those of the same logs only."""
        for part in parts:
            there, here = newest.between(part.number, part.end), part.between(newest.number, newest.end)
            if not np.array_equal(there.keys, here.keys):
                raise _of_another_job(self._output, f"example {here.number:,}")


class WriteDeltasToTopic(DeltaSink):
    """A parameter log in a topic, one message a delta."""

    def __init__(self, output: OutputTopic) -> None:
        super().__init__(output, f"{output.option} {output.name}")
        self._output = output

    def setup(self) -> None:
        """A topic that is not there is told before the first delta."""
        with noted():
            _opened(self._output)

    def _unseen(self, shard: int, known: bool) -> Iterable[Record]:
        with _lock:
            return _opened(self._output).unseen(shard, _DELTAS_BACK)

    def _append(self, shard: int, record: Record) -> None:
        with _lock:
            _opened(self._output).append(shard, [record])
