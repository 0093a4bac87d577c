"""Both logs, wherever they are: what a reader of them needs to know, and the folder that holds them as files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from schemas.log_files import Chunk, PartitionReader
from schemas.log_segments import list_partitions


class Reader(Protocol):
    """One partition, read from an offset on."""

    def read(self, max_records: int) -> Chunk:
        """The next records, about so many; none if there are none yet, or no more."""

    @property
    def at_end(self) -> bool:
        """Where a read has brought nothing: whether there was nothing, rather than that it is still to come."""


class Logs(Protocol):
    """Open logs."""

    def partitions(self, topic: str, known: Collection[int] = ()) -> Sequence[int]:
        """Numbers of a topic's partitions, as they are now.

        Args:
            topic: whose.
            known: those that a state speaks of, if it does of any.

        Raises:
            UserError: there are others than `known`, and these logs cannot have more in time.
        """

    def reader(self, topic: str, partition: int, offset: int) -> Reader:
        """A reader of one partition, from an offset on."""

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Tell those who watch how far reading has come, by topic and partition; nobody reads it back."""

    def close(self) -> None:
        """Nobody reads them any more."""


class LogsPlace(Protocol):
    """Where logs are; it can be sent to another process, and opened there."""

    def open(self, follow: bool) -> Logs:
        """Open the logs; without `follow` they end where they end now.

        Raises:
            UserError: they cannot be read, with the remedy.
        """


@dataclass(frozen=True)
class FileLogs:
    """A folder with a folder a topic, as `schemas.log_files` has them."""

    root: str

    def open(self, follow: bool) -> FileLogs:
        """Itself: there is nothing to hold open."""
        return self

    def partitions(self, topic: str, known: Collection[int] = ()) -> Sequence[int]:
        """Numbers of the partitions that have a folder: there may be more in time."""
        return list_partitions(Path(self.root), topic)

    def reader(self, topic: str, partition: int, offset: int) -> PartitionReader:
        """See `PartitionReader`."""
        return PartitionReader(self.root, topic, partition, offset)

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Nobody watches."""

    def close(self) -> None:
        """Nothing was held open."""
