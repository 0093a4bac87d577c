"""Kafka topics as logs: one consumer reads all partitions, each into a buffer of its own.

Positions are the caller's: partitions are assigned, not subscribed to, and nothing is committed but for those who watch a
group's lag. A partition whose buffer is full is paused, so that one which nobody reads on does not fill the memory.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from schemas.avro import Schema
from schemas.kafka_client import ANSWER_S, BrokerConsumer, client_settings
from schemas.log_files import Chunk, Fault
from schemas.log_segments import LogHoleError
from schemas.messages import MessageDecoder
from schemas.process import UserError

log = logging.getLogger(__name__)

TOPICS = ("features", "actions")
_POLL_S = 0.05
_SILENCE_S = 60.0  # to wait for messages that are known to be there
_AT_ONCE = 2048  # messages taken from the client
#: What a partition's buffer holds when it is paused; it goes on at a quarter of it. To pause is to throw away what the client
#: has fetched ahead, a megabyte, which is 30,000 small messages.
FULL_MESSAGES, FULL_BYTES = 65536, 16 << 20
_RAW_LIMIT = 64 << 10
_COUNTED_S = 30.0  # between two looks at the number of partitions
#: Consumers that this process has made so far: one a run without faults.
connects = 0


@dataclass(frozen=True)
class KafkaTopics:
    """Both logs as topics of a Kafka cluster.

    Attributes:
        servers: `bootstrap.servers`.
        prefix: of the topics' names: PREFIXfeatures and PREFIXactions.
        options: further settings of librdkafka, by name, which come before ours.
        registry: settings of the client of the schema registry that messages in Confluent's wire format name; none: no such
            messages are read.
    """

    servers: str
    prefix: str = ""
    options: tuple[tuple[str, str], ...] = ()
    registry: tuple[tuple[str, str], ...] = ()

    @classmethod
    def configured(cls, servers: str, prefix: str, file: Path | None) -> KafkaTopics:
        """With the settings that a file has.

        Raises:
            UserError: it cannot be read, or a line is none.
        """
        settings = client_settings(file)
        return cls(servers, prefix, settings.kafka, settings.registry)

    def open(self, follow: bool) -> KafkaLogs:
        """A consumer of both topics, which are there and have the same number of partitions.

        Raises:
            UserError: no broker answers, a topic is not there, or their partitions differ.
        """
        return KafkaLogs(self, follow)

    def settings(self) -> dict[str, str | bool | int]:
        """Of a consumer."""
        ours: dict[str, str | bool | int] = {
            "bootstrap.servers": self.servers,
            "group.id": f"freshet-{self.prefix or 'train'}",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": 65536,
            "fetch.wait.max.ms": 50,
            "fetch.queue.backoff.ms": 20,
        }
        return ours | dict(self.options)


class KafkaLogs:
    """Open topics.

    Args:
        place: where they are.
        follow: whether they go on past the ends that they have now.
    """

    def __init__(self, place: KafkaTopics, follow: bool) -> None:
        global connects
        self._place, self._follow = place, follow
        self._registry = _registry_of(place)
        self._broker = BrokerConsumer(place.servers, place.settings())
        self._consumer = self._broker.client
        connects += 1
        try:
            self._partitions = {topic: self._count(topic) for topic in TOPICS}
        except BaseException:
            self._consumer.close()
            raise
        self._counted = time.monotonic()
        self._readers: dict[tuple[str, int], KafkaReader] = {}

    def partitions(self, topic: str, known: Collection[int] = ()) -> Sequence[int]:
        """Numbers of a topic's partitions.

        Raises:
            UserError: there are others than at first, or than `known`: a user's events would be in two of them.
        """
        if known and len(known) != self._partitions[topic]:
            raise self._spread_anew(topic, self._partitions[topic], len(known))
        if time.monotonic() - self._counted > _COUNTED_S:
            self._counted = time.monotonic()
            for each, before in self._partitions.items():
                if (now := self._count(each)) != before:
                    raise self._spread_anew(each, now, before)
        return range(self._partitions[topic])

    def _spread_anew(self, topic: str, now: int, before: int) -> UserError:
        place = self._place
        prefix = f" --kafka_prefix {place.prefix}" if place.prefix else ""
        return UserError(
            f"topic {place.prefix}{topic} has {now} partitions now and had {before}: users are spread over them anew; stop, "
            f"run python -m pipelines.rekey --kafka {place.servers}{prefix} --to_prefix NEW --partitions {now}, and train with "
            "--kafka_prefix NEW and an empty --state_dir"
        )

    def reader(self, topic: str, partition: int, offset: int) -> KafkaReader:
        """A reader of one partition, from an offset on.

        Raises:
            LogHoleError: the broker does not hold that offset any more.
        """
        name = self._place.prefix + topic
        place = TopicPartition(name, partition)
        low, high = self._broker.asked(lambda: self._consumer.get_watermark_offsets(place, timeout=ANSWER_S))
        if offset == 0 and low > 0:
            log.warning("a topic's beginning is gone", extra={"topic": name, "partition": partition, "begins": low})
            offset = low
        if not low <= offset <= high:
            raise LogHoleError(
                f"topic {name}, partition {partition}: offset {offset} is not there, only {low} to {high}: retention took it, "
                "or it is another topic; give that one, or begin with an empty --state_dir"
            )
        decoder = MessageDecoder(topic, registry=self._registry)
        reader = KafkaReader(self, decoder, TopicPartition(name, partition, offset), None if self._follow else high)
        self._readers[name, partition] = reader
        self._consumer.incremental_assign([TopicPartition(name, partition, offset)])
        return reader

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Tell those who watch the group's lag how far it has come; nobody reads it back."""
        if offsets:
            places = [TopicPartition(self._place.prefix + topic, number, at) for (topic, number), at in offsets.items()]
            self._consumer.commit(offsets=places, asynchronous=True)

    def close(self) -> None:
        """Leave the cluster."""
        self._consumer.close()

    def poll(self, seconds: float) -> bool:
        """Put what has come into the buffers of its partitions; whether anything has.

        Raises:
            LogHoleError: an offset is not there any more.
            UserError: the broker refuses for good.
        """
        messages = self._consumer.consume(_AT_ONCE, timeout=seconds)
        for message in messages:
            error = message.error()
            if error is None:
                self._readers[message.topic(), message.partition()].put(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._readers[message.topic(), message.partition()].reach(message.offset())
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise LogHoleError(
                    f"topic {message.topic()}, partition {message.partition()}: {error.str()}: retention took what was not "
                    "read yet; begin with an empty --state_dir"
                )
            elif error.fatal() or not error.retriable():
                raise UserError(f"topic {message.topic()}, partition {message.partition()}: {error.str()}")
            else:
                log.warning("the broker stumbles", extra={"topic": message.topic(), "reason": error.str()})
        for reader in self._readers.values():
            reader.hold_back(self._consumer)
        return bool(messages)

    def _count(self, topic: str) -> int:
        name = self._place.prefix + topic
        return self._broker.count_partitions(name, "give its --kafka_prefix")


def _registry_of(place: KafkaTopics) -> Callable[[int], Schema] | None:
    if not place.registry:
        return None
    from schemas.schema_registry import SchemaRegistry  # its HTTP client takes half a second to import

    return SchemaRegistry(dict(place.registry))


class KafkaReader:
    """One partition; see `schemas.logs.Reader`."""

    def __init__(self, logs: KafkaLogs, decoder: MessageDecoder, place: TopicPartition, end: int | None) -> None:
        self._logs, self._decoder, self._place = logs, decoder, place
        self._next, self._end = place.offset, end
        self._buffer: deque[Message] = deque()
        self._bytes = 0
        self._paused = False
        self._reached = -1

    def put(self, message: Message) -> None:
        """A message that has come."""
        self._buffer.append(message)
        self._bytes += len(message)

    def reach(self, offset: int) -> None:
        """There is nothing before this offset that has not come: its last messages may be markers, which are not handed out."""
        self._reached = offset

    @property
    def at_end(self) -> bool:
        """Whether the broker has said that there is no more, since the last message came."""
        return not self._buffer and self._reached >= self._next

    def hold_back(self, consumer: Consumer) -> None:
        """Have no more sent while the buffer is full."""
        full = max(len(self._buffer) / FULL_MESSAGES, self._bytes / FULL_BYTES)
        if not self._paused and full > 1:
            consumer.pause([self._place])
            self._paused = True
        elif self._paused and full < 0.25:
            consumer.resume([self._place])
            self._paused = False

    def read(self, max_records: int) -> Chunk:
        """The next messages; where the log has an end, it is waited for.

        Raises:
            LogHoleError: the broker does not hold the next offset any more.
            UserError: the broker refuses for good.
        """
        while self._logs.poll(0.0) and not self._buffer:
            pass  # the client has one queue, in which thousands of other partitions' messages may stand before ours
        deadline = time.monotonic() + _SILENCE_S
        while not self._buffer and self._end is not None and max(self._next, self._reached) < self._end:
            self._logs.poll(_POLL_S)
            if time.monotonic() > deadline:
                where = f"topic {self._place.topic}, partition {self._place.partition}"
                missing = self._end - self._next
                raise UserError(
                    f"{where}: {missing} messages are missing, and none came for {_SILENCE_S:g} s: start the broker"
                )
        messages, offsets = self._take(max_records)
        records, errors = self._decoder.decode_all(messages)
        faults = [Fault(offsets[i], offsets[i] + 1, str(error), messages[i][:_RAW_LIMIT]) for i, error in errors.items()]
        return Chunk(records, np.delete(np.array(offsets, np.int64), list(errors)), self._next, faults)

    def _take(self, most: int) -> tuple[list[bytes], list[int]]:
        """The next messages in the buffer, and their offsets."""
        messages: list[bytes] = []
        offsets: list[int] = []
        while self._buffer and len(messages) < most:
            message = self._buffer.popleft()
            self._bytes -= len(message)
            offset = message.offset()
            if self._end is not None and offset >= self._end:
                self._buffer.clear()
                self._bytes = 0
                break
            self._next = offset + 1
            messages.append(message.value() or b"")
            offsets.append(offset)
        return messages, offsets
