"""Where the tagged outputs go that are asked for as Kafka topics: appended once, however often the runner repeats itself.

Whether something is in a topic already is asked of the topic (`schemas.shard_topic`), by its number or by what it holds. A
sink waits for its broker with every element, not only at the end of a bundle: the manifest that follows an element in the
same bundle makes a restart skip it. What the broker refuses fails the bundle, and the runner repeats it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import apache_beam as beam

from schemas.avro import Record
from schemas.process import UserError
from schemas.shard_topic import OutputTopic, ShardTopic

from .failures import noted
from .outputs import DeadLetter
from .sinks import DeltaSink

#: Deltas read back at first: more than a job started anew has put out since its newest manifest.
_DELTAS_BACK = 16
#: Topics belong to the process, as Beam keeps several instances of a DoFn: one producer and one consumer each.
_topics: dict[OutputTopic, ShardTopic] = {}
#: By topic and shard, the newest dead letter in it.
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


class WriteDeadLettersToTopic(beam.DoFn):
    """Appends dead letters to a topic, one message each; those already there are told by their number."""

    def __init__(self, output: OutputTopic) -> None:
        self._output = output

    def setup(self) -> None:
        """A topic that is not there is told before the first dead letter."""
        with noted():
            _opened(self._output)

    def process(self, element: tuple[int, list[DeadLetter]]) -> None:
        shard, letters = element
        with noted(), _lock:
            topic = _opened(self._output)
            for record in topic.unseen(shard):
                _newest[self._output, shard] = record
            newest = _newest.get((self._output, shard))
            records = [letter.to_record(shard) for letter in letters]
            if newest is not None:
                self._check_same(newest, records)
                records = [record for record in records if record["number"] > newest["number"]]
            if records:
                topic.append(shard, records)
                _newest[self._output, shard] = records[-1]

    def _check_same(self, newest: Record, records: list[dict[str, Any]]) -> None:
        """A number tells a letter among those of the same logs only."""
        for record in records:
            here = record["partition"], record["offset"]
            if record["number"] == newest["number"] and here != (newest["partition"], newest["offset"]):
                raise UserError(
                    f"{self._output.option} {self._output.name} has another dead letter {record['number']:,}, of "
                    f"{newest['partition']} at {newest['offset']:,}: it is of another job; give this one a topic of its own"
                )


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
