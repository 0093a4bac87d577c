"""Both logs as Kafka topics, written: what `schemas.log_files.LogWriter` is to files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.avro import Record, encode_single
from schemas.kafka_logs import TOPICS, KafkaTopics
from schemas.process import UserError

log = logging.getLogger(__name__)

_ANSWER_S = 10.0
_FLUSH_S = 60.0


class TopicWriter:
    """Appends records to a topic, keyed by user id, by an idempotent producer.

    Args:
        producer: shared by the topics.
        name: of the topic.
        topic: whose schema the records have.
    """

    def __init__(self, producer: Producer, name: str, topic: str) -> None:
        self._producer, self._name, self._topic = producer, name, topic
        self._refused: KafkaError | None = None

    def append(self, records: Sequence[Record]) -> None:
        """Hands records to the producer, in their order.

        Raises:
            UserError: the broker has refused one, now or before.
        """
        for record in records:
            value, key = encode_single(self._topic, record), record["user_id"].encode()
            while True:
                try:
                    self._producer.produce(self._name, value, key, on_delivery=self._delivered)
                    break
                except BufferError:  # the queue is full: wait until some are delivered
                    self._producer.poll(0.1)
        self._producer.poll(0)
        self._check()

    def roll(self) -> None:
        """Waits until all that was appended is in the topic.

        Raises:
            UserError: some of it is not.
        """
        left = self._producer.flush(_FLUSH_S)
        self._check()
        if left:
            raise UserError(f"topic {self._name}: {left} messages were not taken within {_FLUSH_S:g} s: is the broker up?")

    def close(self) -> None:
        """As `roll`."""
        self.roll()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # What was handed over before an exception may be in the topic: it is waited for, and cannot be taken back.
        if kind is None:
            self.roll()
        else:
            self._producer.flush(_FLUSH_S)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        self._refused = self._refused or error

    def _check(self) -> None:
        if self._refused is not None:
            raise UserError(f"topic {self._name}: a message was refused: {self._refused.str()}")


def producer_of(place: KafkaTopics) -> Producer:
    """An idempotent producer that puts a user's messages into one partition, the same in both topics."""
    ours: dict[str, str | bool | int] = {
        "bootstrap.servers": place.servers,
        "enable.idempotence": True,
        "partitioner": "consistent",  # CRC-32 of the key, as `log_files.partition_of` has it
        "linger.ms": 20,
        "compression.type": "zstd",
    }
    return Producer(ours | dict(place.options), logger=log)


def create_topics(place: KafkaTopics, partitions: int) -> None:
    """Make both topics.

    Raises:
        UserError: one is there already, or the brokers refuse.
    """
    client = AdminClient({"bootstrap.servers": place.servers, **dict(place.options)}, logger=log)
    names = [place.prefix + topic for topic in TOPICS]
    made = client.create_topics([NewTopic(name, partitions) for name in names], operation_timeout=_ANSWER_S)
    for name, future in made.items():
        try:
            future.result(_ANSWER_S)
        except (KafkaException, TimeoutError) as error:
            known = isinstance(error, KafkaException)
            reason = error.args[0].str() if known else f"no answer within {_ANSWER_S:g} s"
            raise UserError(f"topic {name} on {place.servers} cannot be made: {reason}; give another --kafka_prefix") from error
