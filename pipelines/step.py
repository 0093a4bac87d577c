"""What an event-sourced shard stands between: a step, its working state, and a runner, which keeps what rebuilds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from model.snapshot import Increment

from .batches import EventBatch

T_co = TypeVar("T_co", covariant=True)


class Version(NamedTuple):
    """Batches applied, and a token drawn at each write: equal only if memory and Beam state mean the same."""

    applied: int
    token: str


class Durable(Protocol):
    """What a runner keeps for a shard and rolls back with a failed bundle."""

    def version(self) -> Version | None: ...
    def base(self) -> str | None: ...
    def inputs(self) -> list[bytes]: ...
    def append(self, version: Version, payload: bytes) -> None:
        """Record one applied batch."""

    def rebase(self, version: Version, base: str, later: Sequence[bytes]) -> None:
        """Replace the recorded batches by a manifest that holds them, and the `later` ones, which it does not."""


class Step(Protocol[T_co]):
    """A working state that batches are applied to; all it knows must come from them."""

    fingerprint: int
    #: Of the configurations whose state it can load: its own, and those it has grown from.
    readable_fingerprints: frozenset[int]

    @property
    def newest_event_ms(self) -> int: ...
    @property
    def publishable(self) -> bool: ...
    def apply(self, batch: EventBatch) -> T_co: ...
    def increment(self) -> Increment:
        """What changed since the last :meth:`committed`; everything, if there was none. It must not change any more:
        batches are applied while it is written."""

    def committed(self) -> None:
        """The last increment is durable, with nothing that was applied after it."""

    def load(self, state: Increment) -> None: ...
