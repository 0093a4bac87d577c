"""What the fault tests send, and what must come of it: requests by their ids, and messages that none can learn from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from confluent_kafka import KafkaError, Message, Producer

from model.feature_ids import hash_strings
from pipelines.datasets.requests import PendingActions
from pipelines.datasets.simulator import World
from pipelines.request_log import RequestLogWriter
from schemas.avro import encode_single
from schemas.kafka_logs import TOPICS, KafkaTopics
from schemas.kafka_writer import create_topics
from tests.e2e.e2e_worlds import CONFIG, REQUEST
from tests.e2e.flink_jobs import rows_of

PARTITIONS = 2
_CHUNK = 1000  # requests between two moments at which something is planted
_NO_USER = {"request_id": "r", "user_id": "", "time_ms": 0}
#: By topic, messages that can be learned from by nobody: no record, none at all, one of an unknown schema, one without a user.
PLANTS: dict[str, tuple[bytes | None, ...]] = {
    "features": (
        *(b"no record", None, b"\xc3\x01 of no schema"),
        encode_single("features", {**_NO_USER, "fingerprint": CONFIG.fingerprint, "user_ids": b"", "items": []}),
    ),
    "actions": (
        *(b"no record", None, b"\xc3\x01 of no schema"),
        encode_single("actions", {**_NO_USER, "item_id": "i", "action": "click"}),
    ),
}

Place = tuple[str, int]  # partition as dead letters name it, and offset


class Sent:
    """Requests of one video each, in both topics, and what was planted among them.

    Args:
        broker: HOST:PORT of one that has no topics yet.
        folder: for the feature configuration.
        requests: how many, over a day.
        seed: of the world and of the places of what is planted.

    Attributes:
        config: file of the feature configuration, in which a slot holds the request id.
        requests: ids of all requests.
        planted: places of the messages that must become dead letters.
    """

    def __init__(self, broker: str, folder: Path, requests: int, seed: int) -> None:
        folder.mkdir()
        self.config = folder / "feature_config.toml"
        CONFIG.dump(self.config)
        self.requests: list[str] = []
        self.planted: set[Place] = set()
        self._producer = Producer({"bootstrap.servers": broker, "enable.idempotence": True})
        self._random = np.random.default_rng(seed)
        topics = KafkaTopics(broker)
        create_topics(topics, PARTITIONS)
        world, pending = World(seed=seed, users=400, requests_per_day=requests, videos_per_request=1), PendingActions()
        with RequestLogWriter(topics, CONFIG) as writer:
            for at in range(0, requests, _CHUNK):
                batch, actions, _ = world.requests(min(_CHUNK, requests - at))
                batch = replace(batch, user_columns={**batch.user_columns, "request_id": batch.request_id})
                self.requests += batch.request_id.tolist()
                pending.push(actions)
                writer.append(batch, pending.pop_before(int(batch.time_ms[-1])))
                writer.roll()  # in the topics before what comes now
                self._plant()
            writer.append_actions(pending.pop_all())

    def _plant(self) -> None:
        """One message of any kind into any partition of each topic."""
        for topic in TOPICS:
            plant = PLANTS[topic][self._random.integers(len(PLANTS[topic]))]
            self._producer.produce(topic, plant, partition=int(self._random.integers(PARTITIONS)), on_delivery=self._delivered)
        if self._producer.flush(60):
            raise AssertionError("the broker does not take what is planted")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise AssertionError(f"the broker does not take what is planted: {error.str()}")
        place, offset = (f"{message.topic()}/p{message.partition():03d}", message.offset())
        assert offset is not None
        self.planted.add((place, offset))

    def check(self, state: Path) -> None:
        """Whether a state has learned each request once, and has what was planted, once, and nothing else, as dead letters.

        Raises:
            AssertionError: it has not.
        """
        keys, counts, _ = rows_of(state)
        own = (keys >> 48) == REQUEST
        learned = keys[own] & (1 << 48) - 1
        sent = np.sort(hash_strings(self.requests))
        assert len(np.unique(sent)) == len(self.requests), "two request ids share a key: take another seed"
        lost, strange = np.setdiff1d(sent, learned).size, np.setdiff1d(learned, sent).size
        assert not (lost or strange), f"{lost} requests were not learned, and {strange} that nobody sent were"
        again = np.count_nonzero(counts[own] != 1)
        assert not again, f"{again} requests were learned more than once"
        letters = [json.loads(line) for file in (state / "dead_letters").glob("*.jsonl") for line in file.open()]
        places = [(letter["partition"], letter["offset"]) for letter in letters]
        assert len(set(places)) == len(places), "a dead letter was written twice"
        assert set(places) == self.planted, f"dead letters but not planted, or the reverse: {set(places) ^ self.planted}"
        assert [letter["number"] for letter in letters] == list(range(len(letters)))
