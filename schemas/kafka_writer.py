"""Both logs as Kafka topics, written: what `schemas.log_files.LogWriter` is to files."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.avro import Record, encode_single
from schemas.kafka_client import ANSWER_S, client_log
from schemas.kafka_logs import TOPICS, KafkaTopics
from schemas.process import UserError

FLUSH_S = 60.0  # for a broker that is away to come back


class Deliveries:
    """Messages handed to a producer for one topic, and what became of them.

    Args:
        producer: takes them; may be shared.
        name: of the topic.

    Attributes:
        offsets: of those that have arrived.
    """

    def __init__(self, producer: Producer, name: str) -> None:
        self._producer, self._name = producer, name
        self._refused: KafkaError | None = None
        self.offsets: list[int] = []

    def put(self, value: bytes, key: bytes, partition: int = -1) -> None:
        """Hand over one message; its partition is the producer's to choose unless given.

        Raises:
            UserError: the client does not take it.
        """
        while True:
            try:
                self._producer.produce(self._name, value, key, partition, on_delivery=self._delivered)
                return
            except BufferError:  # the queue is full: wait until some are delivered
                self._producer.poll(0.1)
            except KafkaException as error:
                raise self._refusal(error.args[0]) from error

    def check(self) -> None:
        """Look at what became of those so far.

        Raises:
            UserError: the broker has refused one, now or before.
        """
        self._producer.poll(0)
        if self._refused is not None:
            raise self._refusal(self._refused)

    def wait(self) -> None:
        """Wait until all of them are in the topic.

        Raises:
            UserError: some are not.
        """
        left = self._producer.flush(FLUSH_S)
        self.check()
        if left:
            raise UserError(f"topic {self._name}: {left} messages were not taken within {FLUSH_S:g} s: is the broker up?")

    def _refusal(self, error: KafkaError) -> UserError:
        large = error.code() == KafkaError.MSG_SIZE_TOO_LARGE
        remedy = ": raise the topic's max.message.bytes and, in --kafka_config, message.max.bytes" if large else ""
        return UserError(f"topic {self._name}: a message was refused: {error.str()}{remedy}")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        self._refused = self._refused or error
        if error is None:
            self.offsets.append(message.offset())


class TopicWriter:
    """Appends records to a topic, keyed by user id, by an idempotent producer.

    Args:
        producer: shared by the topics.
        name: of the topic.
        topic: whose schema the records have.
    """

    def __init__(self, producer: Producer, name: str, topic: str) -> None:
        self._producer, self._name, self._topic = producer, name, topic
        self._deliveries = Deliveries(producer, name)

    def append(self, records: Sequence[Record]) -> None:
        """Hands records to the producer, in their order.

        Raises:
            UserError: the broker has refused one, now or before.
        """
        for record in records:
            self._deliveries.put(encode_single(self._topic, record), record["user_id"].encode())
        self._deliveries.check()

    def roll(self) -> None:
        """Waits until all that was appended is in the topic.

        Raises:
            UserError: some of it is not.
        """
        self._deliveries.wait()
        self._deliveries.offsets.clear()

    def close(self) -> None:
        """As `roll`."""
        self.roll()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # What was handed over before an exception may be in the topic: it is waited for, and cannot be taken back.
        if kind is None:
            self.roll()
        else:
            self._producer.flush(FLUSH_S)


def producer_of(place: KafkaTopics, **more: str | bool | int) -> Producer:
    """An idempotent producer that puts a user's messages into one partition, the same in both topics.

    Args:
        place: where the brokers are.
        more: settings of librdkafka besides these, which `place.options` come before.

    Raises:
        UserError: the settings do not go together.
    """
    ours: dict[str, str | bool | int] = {
        "bootstrap.servers": place.servers,
        "enable.idempotence": True,
        "partitioner": "consistent",  # CRC-32 of the key, as `log_files.partition_of` has it
        "linger.ms": 20,
        "compression.type": "zstd",
    }
    try:
        return Producer(ours | more | dict(place.options), logger=client_log)
    except KafkaException as error:
        raise UserError(f"--kafka_config: {error.args[0].str()}; put it right, or leave it out") from error


def create_topics(place: KafkaTopics, partitions: int) -> None:
    """Make both topics.

    Raises:
        UserError: one is there already, or the brokers refuse.
    """
    client = AdminClient({"bootstrap.servers": place.servers, **dict(place.options)}, logger=client_log)
    names = [place.prefix + topic for topic in TOPICS]
    made = client.create_topics([NewTopic(name, partitions) for name in names], operation_timeout=ANSWER_S)
    for name, future in made.items():
        try:
            future.result(ANSWER_S)
        except (KafkaException, TimeoutError) as error:
            known = isinstance(error, KafkaException)
            reason = error.args[0].str() if known else f"no answer within {ANSWER_S:g} s"
            raise UserError(f"topic {name} on {place.servers} cannot be made: {reason}; give another --kafka_prefix") from error
