"""Requests and actions into the features and actions logs: what a recommender writes as it serves.

The same class serves a replay and a live process: what was asked of the model is featurised once, here, and
training reads exactly that.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from model.featuriser import Featuriser
from pipelines.datasets.requests import ActionBatch, Columns, RequestBatch
from schemas.config import FeatureConfig
from schemas.kafka_logs import KafkaTopics
from schemas.kafka_writer import TopicWriter, producer_of
from schemas.log_files import LogWriter, partitions_of

FEATURES, ACTIONS = "features", "actions"


class RequestLogWriter:
    """Appends to both logs, partitioned by user id, after what is there already: files in the folder `logs`, or topics.

    `partitions` are those of files; topics have theirs.

    Batches must come in time order. With `log_raw`, a features record also carries its raw features by source
    name: JSON of the value for the user's, JSON of the list of values (one an item) for the items'.
    """

    def __init__(
        self, logs: str | Path | KafkaTopics, config: FeatureConfig, partitions: int = 1, log_raw: bool = False
    ) -> None:
        self._config = config
        self._featuriser = Featuriser(config)
        self._log_raw = log_raw
        self._features: Sequence[LogWriter | TopicWriter]
        self._actions: Sequence[LogWriter | TopicWriter]
        if isinstance(logs, KafkaTopics):
            producer = producer_of(logs)
            self._features = [TopicWriter(producer, logs.prefix + FEATURES, FEATURES)]
            self._actions = [TopicWriter(producer, logs.prefix + ACTIONS, ACTIONS)]
        else:
            self._features = [LogWriter(logs, FEATURES, partition) for partition in range(partitions)]
            self._actions = [LogWriter(logs, ACTIONS, partition) for partition in range(partitions)]

    def append(self, requests: RequestBatch, actions: ActionBatch) -> None:
        """Writes both batches.

        Raises:
            ConfigError: a raw feature is missing or of the wrong type.
        """
        _scatter(self._features, requests.user_id, self._feature_records(requests))
        self.append_actions(actions)

    def append_actions(self, actions: ActionBatch) -> None:
        """Writes actions alone: those still to come when the requests have ended."""
        _scatter(self._actions, actions.user_id, _action_records(actions))

    def roll(self) -> None:
        """Makes all that was appended visible to readers, as finished segments."""
        for log in (*self._features, *self._actions):
            log.roll()

    def close(self) -> None:
        """As `roll`; leaving a `with` block by an exception drops what was not rolled instead."""
        for log in (*self._features, *self._actions):
            log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for log in (*self._features, *self._actions):
            log.__exit__(kind, error, trace)

    def _feature_records(self, requests: RequestBatch) -> list[dict[str, Any]]:
        pack, featurise = self._featuriser.pack, self._featuriser.featurise
        user_ids = pack(featurise(requests.user_columns, "user"))
        item_ids = pack(featurise(requests.item_columns, "item"))
        items = [{"item_id": item_id, "ids": ids} for item_id, ids in zip(requests.item_id, item_ids, strict=True)]
        edges = requests.item_offsets.tolist()
        fingerprint = self._config.fingerprint
        records = [
            {
                "request_id": request_id,
                "user_id": user_id,
                "time_ms": time_ms,
                "fingerprint": fingerprint,
                "user_ids": ids,
                "items": items[first:last],
            }
            for request_id, user_id, time_ms, ids, first, last in zip(
                requests.request_id,
                requests.user_id,
                requests.time_ms.tolist(),
                user_ids,
                edges[:-1],
                edges[1:],
                strict=True,
            )
        ]
        if self._log_raw:
            for record, raw in zip(records, _raw(requests), strict=True):
                record["raw"] = raw
        return records


def _action_records(actions: ActionBatch) -> list[dict[str, Any]]:
    columns = (
        actions.request_id,
        actions.user_id,
        actions.item_id,
        actions.action,
        actions.time_ms.tolist(),
    )
    return [
        {
            "request_id": request_id,
            "user_id": user_id,
            "item_id": item_id,
            "action": action,
            "time_ms": time_ms,
        }
        for request_id, user_id, item_id, action, time_ms in zip(*columns, strict=True)
    ]


def _scatter(logs: Sequence[LogWriter | TopicWriter], user_id: np.ndarray, records: list[dict[str, Any]]) -> None:
    if len(logs) == 1:
        logs[0].append(records)
        return
    partition = partitions_of(user_id.tolist(), len(logs))
    for number, log in enumerate(logs):
        log.append([records[row] for row in np.flatnonzero(partition == number).tolist()])


def _raw(requests: RequestBatch) -> list[dict[str, str]]:
    users = _plain(requests.user_columns)
    items = _plain(requests.item_columns)
    edges = requests.item_offsets.tolist()
    return [
        {name: json.dumps(column[row]) for name, column in users.items()}
        | {name: json.dumps(column[edges[row] : edges[row + 1]]) for name, column in items.items()}
        for row in range(len(requests))
    ]


def _plain(columns: Columns) -> dict[str, list[Any]]:
    return {name: column.tolist() for name, column in columns.items()}
