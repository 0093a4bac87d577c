"""Kafka topics that shards append to: each shard in one partition, in order, and every record once however often it comes.

A topic remembers better than a process: before a shard's records are appended, what others have put there is read, an
earlier attempt of the same job or another worker. So nothing but the topic is asked what is in it already.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

from schemas.avro import AvroError, Record, encode_single
from schemas.kafka_client import ANSWER_S, BrokerConsumer, client_log
from schemas.kafka_logs import KafkaTopics
from schemas.kafka_writer import FLUSH_S, Deliveries, producer_of
from schemas.messages import MessageDecoder
from schemas.process import UserError

log = logging.getLogger(__name__)

_POLL_S = 0.2
#: Bytes of a message that are neither key nor value: what the batch around it adds, at most.
_OVERHEAD = 512
#: Of messages that go to the broker together: the limit of a topic is one of such batches.
_BATCH_BYTES = 64 << 10
_LIMIT = "max.message.bytes"
_LEAST_BYTES, _MOST_BYTES = 1_000, 1_000_000_000  # that the client may be told for it


@dataclass(frozen=True)
class OutputTopic:
    """A topic for what a job puts out; it can be sent to another process, and opened there.

    Attributes:
        place: the brokers, and how to reach them.
        name: of the topic.
        schema: of its records, by the name that `schemas.avro.load_schema` knows.
        option: that names the topic.
        smaller: what else helps where a record is too large for the broker.
    """

    place: KafkaTopics
    name: str
    schema: str
    option: str
    smaller: str = ""

    def open(self) -> ShardTopic:
        """Ready to be appended to.

        Raises:
            UserError: no broker answers, or the topic is not there.
        """
        return ShardTopic(self)


class ShardTopic:
    """An open topic.

    Args:
        output: which.

    Raises:
        UserError: no broker answers, or the topic is not there.
    """

    def __init__(self, output: OutputTopic) -> None:
        self._output, self._decoder = output, MessageDecoder(output.schema)
        broker = BrokerConsumer(output.place.servers, output.place.settings())
        self._consumer = broker.client
        self._producer: Producer | None = None
        #: By shard, up to where its partition is known to the caller of `unseen`.
        self._seen: dict[int, int] = {}
        try:
            self._partitions = broker.count_partitions(output.name, f"give {output.option} the name of another")
            self._limit = self._message_limit()
        except BaseException:
            self._consumer.close()
            raise

    def unseen(self, shard: int, newest: int = 1) -> list[Record]:
        """A shard's records that neither an earlier call returned nor `append` has put there since.

        Args:
            shard: whose.
            newest: records returned of those that were there before the first call, or before an `append` that failed.

        Raises:
            UserError: the broker does not answer, or what is there is not ours.
        """
        partition = shard % self._partitions
        low, high = self._ends(partition)
        at = self._seen.get(shard)
        if at is not None and at > high:
            raise UserError(f"{self._name} ends at {high} and had {at} messages: it was made anew; start the job again")
        if at is None:
            found = self._last(partition, low, high, shard, newest)
        else:
            found = self._between(partition, max(at, low), high, shard)
        records = [self._decoded(message) for message in found]
        self._seen[shard] = high  # not before: a topic that is not ours is refused each time
        return records

    def append(self, shard: int, records: Sequence[Record]) -> None:
        """Append a shard's records; they are in the topic, on all replicas in sync, when this returns.

        Raises:
            UserError: one is too large, or the broker refuses or stays away. Some may be in the topic all the same, the
                first ones: `unseen` tells.
        """
        values, key = [encode_single(self._output.schema, record) for record in records], b"%d" % shard
        self._check_size(max(map(len, values), default=0) + len(key) + _OVERHEAD)
        try:
            if self._producer is None:
                self._producer = self._make_producer()
            deliveries = Deliveries(self._producer, self._output.name)
            for value in values:
                deliveries.put(value, key, shard % self._partitions)
                if self._limit is None:  # one may be refused and those behind it taken: a gap, which nobody would find
                    deliveries.wait()
            deliveries.wait()
        except UserError as error:
            self._give_up(shard)
            raise UserError(f"{self._output.option}: {error}") from error
        except BaseException:
            self._give_up(shard)
            raise
        at, arrived = self._seen.get(shard), deliveries.offsets
        if at is not None and arrived == list(range(at, at + len(arrived))):
            self._seen[shard] = at + len(arrived)

    def close(self) -> None:
        """Leave the cluster."""
        self._drop_producer()
        self._consumer.close()

    @property
    def _name(self) -> str:
        return f"{self._output.option} {self._output.name}"

    def _make_producer(self) -> Producer:
        limit = self._limit or _MOST_BYTES  # the broker's is the one that counts
        # Messages wait for their broker as long as we do: if some gave up before others, there would be a gap.
        more = {"message.timeout.ms": 0, "batch.size": min(_BATCH_BYTES, limit), "message.max.bytes": max(limit, _LEAST_BYTES)}
        return producer_of(self._output.place, **more)

    def _give_up(self, shard: int) -> None:
        """What was handed over may be in the topic, or not: the topic will tell."""
        self._seen.pop(shard, None)
        self._drop_producer()

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()  # otherwise they would go on trying beside the next attempt's
            producer.flush(0)

    def _check_size(self, size: int) -> None:
        if self._limit is None or size <= self._limit:
            return
        before, self._limit = self._limit, self._message_limit()  # it may have been raised since
        if self._limit != before:
            self._drop_producer()  # which was told the limit; it holds nothing
        if self._limit is not None and size > self._limit:
            raise UserError(
                f"{self._name}: a message of {size:,} bytes, and the topic takes {self._limit:,}: raise its {_LIMIT} "
                f"(kafka-configs.sh --alter){self._output.smaller}"
            )

    def _message_limit(self) -> int | None:
        """Bytes that the topic takes in a message; None if we may not know."""
        place = self._output.place
        client = AdminClient({"bootstrap.servers": place.servers, **dict(place.options)}, logger=client_log)
        resource = ConfigResource(ConfigResource.Type.TOPIC, self._output.name)
        (future,) = client.describe_configs([resource], request_timeout=ANSWER_S).values()
        try:
            return int(future.result(2 * ANSWER_S)[_LIMIT].value)
        except KafkaException as error:
            reason = error.args[0].str()
            log.warning(
                "a topic's %s is not told: messages go one by one", _LIMIT, extra={"topic": resource.name, "why": reason}
            )
            return None

    def _ends(self, partition: int) -> tuple[int, int]:
        """First offset of a partition, and the one behind its last; a broker that is away is waited for."""
        deadline = time.monotonic() + FLUSH_S
        while True:
            try:
                return self._consumer.get_watermark_offsets(TopicPartition(self._output.name, partition), timeout=ANSWER_S)
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise UserError(f"{self._name}: no broker answers ({error.args[0].str()}): start it") from error
                self._consumer.poll(_POLL_S)  # serves the client's own events meanwhile

    def _last(self, partition: int, low: int, high: int, shard: int, newest: int) -> list[Message]:
        """The newest messages of a shard: looked for from the end, ever further back."""
        back = newest
        while True:
            start = max(low, high - back)
            found = self._between(partition, start, high, shard)
            if len(found) >= newest or start == low:
                return found[-newest:]
            back *= 8

    def _between(self, partition: int, start: int, end: int, shard: int) -> list[Message]:
        """The messages of a shard from one offset to before another."""
        found: list[Message] = []
        if start >= end:
            return found
        place, key = TopicPartition(self._output.name, partition, start), b"%d" % shard
        deadline = time.monotonic() + FLUSH_S
        self._consumer.assign([place])
        try:
            while start < end:
                message = self._consumer.poll(_POLL_S)
                error = None if message is None else message.error()
                if time.monotonic() > deadline:
                    raise UserError(f"{self._name}: its messages {start} to {end} do not come: start the broker")
                if message is None:
                    continue
                if error is None:
                    deadline, start = time.monotonic() + FLUSH_S, message.offset() + 1
                    if message.key() == key and start <= end:
                        found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    start = max(start, message.offset())
                elif error.fatal() or not error.retriable():
                    raise UserError(f"{self._name}, partition {partition}: {error.str()}")
        finally:
            self._consumer.unassign()
        return found

    def _decoded(self, message: Message) -> Record:
        try:
            return self._decoder.decode(message.value() or b"")
        except AvroError as error:
            raise UserError(
                f"{self._name}, offset {message.offset()}: {error}; give a topic that is the job's alone"
            ) from error
