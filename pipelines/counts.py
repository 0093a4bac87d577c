"""What the training step counts: for Beam's counters, which reach Flink's metrics, and for the worker's own endpoint."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, fields


def _of(meaning: str) -> int:
    counted: int = field(default=0, metadata={"meaning": meaning})
    return counted


@dataclass(frozen=True)
class Counts:
    """Running totals, or what one batch added to them."""

    events: int = _of("Events read from both logs")
    impressions: int = _of("Impressions taken: videos of requests in the features log")
    actions: int = _of("Actions that met their impression in time")
    joined: int = _of("Impressions of which an action has decided a head")
    examples: int = _of("Impressions learned from, each counted once")
    learned: int = _of("Rows of learning steps: an impression comes back for each head that is decided later")
    duplicates: int = _of("Events that had come before")
    late: int = _of("Actions after their attribution window")
    unmatched: int = _of("Actions that never met their impression")
    dead_letters: int = _of("Records and actions that could not be used")
    admitted: int = _of("Ids that were given a row of the table")
    expired: int = _of("Rows let go because their time to live had passed")
    evicted: int = _of("Rows let go because the table was full")
    deltas: int = _of("Parameter deltas cut")
    delta_rows: int = _of("Rows of parameter deltas")
    delta_bytes: int = _of("Bytes of parameter deltas")

    def since(self, before: Counts) -> Counts:
        """What was added to earlier totals."""
        return Counts(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


#: By counter, what it counts.
MEANINGS: dict[str, str] = {each.name: each.metadata["meaning"] for each in fields(Counts)}
