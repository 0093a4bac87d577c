"""Settings of Kafka's clients, and what brokers answer to questions, or why they do not."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import ClusterMetadata, TopicMetadata

from schemas.process import UserError

T = TypeVar("T")

ANSWER_S = 10.0  # to wait for a broker that is asked something
_REGISTRY = "schema.registry."
_AGAIN_S = 30.0
#: What the client says where it has no answer, and where a broker would not have it.
_SILENT = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)
_REFUSED = (
    *(KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED),
    *(KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED),
)


class _Sparse(logging.Filter):
    """Lets what differs from an earlier message in its numbers alone pass every so often: a client tries ten times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        said, now = re.sub(r"\d+", "", record.getMessage()), time.monotonic()
        if now - self._said.get(said, -_AGAIN_S) < _AGAIN_S:
            return False
        self._said[said] = now
        return True


#: For all clients, whose threads say what becomes of their connections.
client_log = logging.getLogger(__name__)
client_log.addFilter(_Sparse())


class ClientSettings(NamedTuple):
    """What a file of settings says, by name.

    Attributes:
        kafka: settings of librdkafka.
        registry: of the schema registry's client, without their prefix `schema.registry.`.
    """

    kafka: tuple[tuple[str, str], ...] = ()
    registry: tuple[tuple[str, str], ...] = ()


def client_settings(file: Path | None) -> ClientSettings:
    """Settings from a file of lines NAME=VALUE; None: no settings.

    Raises:
        UserError: it cannot be read, or a line is none.
    """
    if file is None:
        return ClientSettings()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--kafka_config {file}: cannot be read ({error}); give a text file of lines NAME=VALUE") from error
    kafka, registry = [], []
    for number, line in enumerate(lines, 1):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not name or name.startswith("#"):
            continue
        if not equals:
            raise UserError(f"--kafka_config {file}, line {number}: {line!r} is no NAME=VALUE; # begins a comment")
        if name.startswith(_REGISTRY):
            registry.append((name.removeprefix(_REGISTRY), value))
        else:
            kafka.append((name, value))
    if registry and "url" not in dict(registry):
        raise UserError(f"--kafka_config {file}: {_REGISTRY}{registry[0][0]} without a {_REGISTRY}url: give that, too")
    return ClientSettings(tuple(kafka), tuple(registry))


class BrokerConsumer:
    """A consumer that remembers what it last said of its brokers: the client's own answer is only that none came.

    Args:
        servers: `bootstrap.servers`, for errors.
        settings: of the client.

    Raises:
        UserError: the settings do not go together.
    """

    def __init__(self, servers: str, settings: dict[str, Any]) -> None:
        self._servers = servers
        self._complaint: KafkaError | None = None
        try:
            self.client = Consumer(settings | {"error_cb": self._complained}, logger=client_log)
        except KafkaException as error:
            raise UserError(f"--kafka_config: {error.args[0].str()}; put it right, or leave it out") from error

    def asked(self, question: Callable[[], T]) -> T:
        """What the brokers answer.

        Raises:
            UserError: nothing.
        """
        self._complaint = None
        try:
            return question()
        except KafkaException as error:
            why = error.args[0]
            if why.code() in _SILENT:
                self.client.poll(0)  # has the client say why
                why = self._complaint or why
            refused = why.code() in _REFUSED
            remedy = "give what it asks for in --kafka_config" if refused else "start it, or give its address"
            raise UserError(f"--kafka {self._servers}: no broker answers ({why.str()}): {remedy}") from error

    def count_partitions(self, topic: str, other: str) -> int:
        """How many partitions a topic has.

        Raises:
            UserError: no broker answers, or there is no such topic: it is to be made, or what `other` says.
        """
        metadata: ClusterMetadata = self.asked(lambda: self.client.list_topics(topic, timeout=ANSWER_S))
        found: TopicMetadata = metadata.topics[topic]
        if found.error is not None:
            raise UserError(f"topic {topic} on {self._servers}: {found.error.str()}: create it, or {other}")
        return len(found.partitions)

    def _complained(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # which is no reason
            self._complaint = error
