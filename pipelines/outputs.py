"""What the join-and-learn step puts out, by tag."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.delta import Delta

from .counts import Counts
from .examples import Examples

METRICS, DELTAS, SNAPSHOTS, DEAD_LETTERS = "metrics", "deltas", "snapshots", "dead_letters"
PREDICTIONS, EXAMPLES = "predictions", "examples"


@dataclass(frozen=True)
class DeadLetter:
    """Something that could not be used.

    Attributes:
        number: counts the shard's dead letters; a function of the logs, so a sink can tell what it has already.
        partition: name of the log partition.
        offset: of the record in it.
        reason: why, in one line.
        raw: its bytes as far as they are known.
    """

    number: int
    partition: str
    offset: int
    reason: str
    raw: bytes

    def to_record(self, shard: int) -> dict[str, Any]:
        """As a record of a topic (`dead_letter.avsc`)."""
        return {"shard": shard, **vars(self)}


@dataclass(frozen=True)
class Metrics:
    """The shard's running figures, whole each time: a later one replaces an earlier one."""

    shard: int
    figures: dict[str, Any]


@dataclass(frozen=True)
class SnapshotRef:
    """A manifest that the version writer may turn into a SavedModel."""

    state_dir: str
    shard: int
    manifest: str


@dataclass(frozen=True)
class Predictions:
    """Predictions made at request time, now met by their labels, of one head.

    Attributes:
        head: name of the head.
        key: int64[N], hash of request and item.
        time_ms: int64[N], event time of the request.
        label: float32[N].
        logits: by arm, float32[N].
    """

    head: str
    key: np.ndarray
    time_ms: np.ndarray
    label: np.ndarray
    logits: dict[str, np.ndarray]


@dataclass
class Outputs:
    """All that one batch gave rise to."""

    counts: Counts = field(default_factory=Counts)
    metrics: dict[str, Any] | None = None
    deltas: list[Delta] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    predictions: list[Predictions] = field(default_factory=list)
    examples: list[Examples] = field(default_factory=list)
