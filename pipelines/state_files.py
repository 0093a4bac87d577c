"""Where a shard's state rests: immutable files and the manifests that name them.

``STATE/shard-000/`` holds part files (Arrow IPC, written by :mod:`model.snapshot`) and manifests. A manifest lists a base
and the increments after it, with the log positions they were cut at; it is written last, so what no manifest names is
garbage. File names carry the shard's version and a token drawn for them: no attempt ever overwrites another's.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, TypeVar

from model.snapshot import FileEntry, Increment, SnapshotError, merge, read_increment, seal, unseal, verify, write_increment
from schemas.files import replace_file
from schemas.process import UserError

from .batches import Position

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a file without a manifest is kept: from its first byte to the manifest that names it takes less.
_YOUNG_S = 600.0
_PIN = ".pin"
_MANIFEST = re.compile(r"manifest-(\d{12})-([0-9a-f]{16})\.json")


class StateError(UserError):
    """A state directory that cannot be used, with the remedy."""


@dataclass(frozen=True)
class Manifest:
    """A state of one shard, as files.

    Attributes:
        shard: number of the shard.
        version: batches applied.
        token: drawn at each write; tells two attempts at one version apart.
        fingerprint: of the feature configuration.
        positions: by partition name, how far its log has been applied.
        segments: groups of files, oldest first: a base, then increments.
        newest_event_ms: newest event time in it.
        created_ms: wall clock, for retention only.
        publishable: whether the model in it may be served.
        ended: whether the logs had ended, and it holds all there was in them.
    """

    shard: int
    version: int
    token: str
    fingerprint: int
    positions: dict[str, Position]
    segments: tuple[tuple[FileEntry, ...], ...]
    newest_event_ms: int
    created_ms: int
    publishable: bool = True
    ended: bool = False

    @property
    def name(self) -> str:
        return f"manifest-{self.version:012d}-{self.token}.json"

    @property
    def bytes(self) -> list[int]:
        """Size of each segment."""
        return [sum(entry.bytes for entry in segment) for segment in self.segments]


class StateFiles:
    """The files of one shard.

    Args:
        root: the state directory (``--state_dir``).
        shard: number of the shard.
    """

    def __init__(self, root: str | os.PathLike[str], shard: int) -> None:
        self.directory = Path(root) / f"shard-{shard:03d}"
        self.shard = shard
        #: By manifest, the stems of its segments' files. Manifests are immutable: each is read once.
        self._stems: dict[str, tuple[str, ...]] = {}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"{self.directory}: cannot be created ({error.strerror}); choose another --state_dir") from error

    def write(self, manifest: Manifest) -> None:
        """Commit: the manifest appears whole or not at all.

        Raises:
            OSError: the disk refuses, or a file that it names is gone; there is no such manifest then.
        """
        for entry in chain.from_iterable(manifest.segments):
            path = self.directory / entry.name
            if path.stat().st_size != entry.bytes:
                raise OSError(errno.EIO, f"{path.stat().st_size} bytes instead of {entry.bytes}", str(path))
        path = self.directory / manifest.name
        try:
            replace_file(path, seal(asdict(manifest)), durable=True)
        except BaseException:
            path.unlink(missing_ok=True)  # it may be there, and not for good
            raise
        self._stems[manifest.name] = _stems(manifest)

    def write_segment(self, stem: str, increment: Increment) -> tuple[FileEntry, ...]:
        """Files of one segment, for a manifest to name.

        Raises:
            OSError: the disk refuses; nothing is left of the segment then.
        """
        return tuple(write_increment(self.directory, stem, increment))

    def discard(self, entries: tuple[FileEntry, ...]) -> None:
        """Remove a segment that no manifest came to name: a full disk needs its room."""
        for entry in entries:
            (self.directory / entry.name).unlink(missing_ok=True)

    def read(self, name: str) -> Manifest:
        """A manifest by name.

        Raises:
            StateError: if it is gone or unreadable.
        """
        path = self.directory / name
        try:
            fields = unseal(path.read_bytes())
            segments = tuple(tuple(FileEntry(**entry) for entry in segment) for segment in fields.pop("segments"))
            positions = {name: Position(*at) for name, at in fields.pop("positions").items()}
            manifest = Manifest(segments=segments, positions=positions, **fields)
        except FileNotFoundError as error:
            raise StateError(f"{path}: gone; start anew with the same --state_dir, from the newest manifest left") from error
        except OSError as error:
            raise StateError(f"{path}: cannot be read ({error.strerror}); make it readable or remove it") from error
        except (ValueError, TypeError, KeyError) as error:
            raise StateError(f"{path}: not a manifest ({error}); restore the file or remove it") from error
        self._stems[name] = _stems(manifest)
        return manifest

    def load(self, manifest: Manifest) -> Increment:
        """The state a manifest names.

        Raises:
            SnapshotError: if a file is missing, truncated or altered.
        """
        return merge([read_increment(self.directory, segment) for segment in manifest.segments])

    def newest(self) -> tuple[Manifest, Increment] | None:
        """The highest manifest whose files are whole, with its state; None in an empty directory.

        Raises:
            StateError: if there are manifests but none is whole.
        """
        return self._highest(lambda manifest: (manifest, self.load(manifest)))

    def manifests(self) -> list[str]:
        """Names of all manifests, oldest first."""
        return sorted(path.name for path in self.directory.iterdir() if _MANIFEST.fullmatch(path.name))

    def pin(self, manifests: Sequence[str]) -> None:
        """Keep manifests, with all that they name, until somebody removes their pins."""
        for name in manifests:
            (self.directory / f"{name}{_PIN}").touch()

    def ended(self) -> bool:
        """Whether the highest manifest is of logs that have ended."""
        names = self.manifests()
        return bool(names) and self.read(names[-1]).ended

    def positions(self) -> dict[str, Position]:
        """Positions of the manifest that :meth:`newest` gives, for a source that starts; empty if there is none.

        Files are checked but not taken into memory.

        Raises:
            StateError: if there are manifests but none is whole.
        """
        return self._highest(self._checked_positions) or {}

    def _checked_positions(self, manifest: Manifest) -> dict[str, Position]:
        for segment in manifest.segments:
            verify(self.directory, segment)
        return dict(manifest.positions)

    def _highest(self, take: Callable[[Manifest], T]) -> T | None:
        """What ``take`` makes of the highest manifest of which it finds every file whole."""
        names = self.manifests()
        for name in reversed(names):
            try:
                return take(self.read(name))
            except (SnapshotError, StateError) as error:
                log.error("manifest passed over", extra={"manifest": name, "reason": str(error)})
        if names:
            raise StateError(f"{self.directory}: none of {len(names)} manifests is whole; start with an empty --state_dir")
        return None

    def collect(self, keep: Manifest, retention_s: float, merging: str | None = None) -> int:
        """Remove manifests replaced more than ``retention_s`` ago and the files that none left names, unless they are young.

        Args:
            keep: the newest manifest.
            retention_s: seconds.
            merging: stem of a base that is being made and that no manifest names yet.

        Returns:
            How many files were removed.

        Raises:
            OSError: something could not be removed; the rest has been.
        """
        now_ms = time.time() * 1000
        with os.scandir(self.directory) as listing:
            found = {entry.name: at for entry in listing if (at := _changed_ms(entry)) is not None}
        pins = {name for name in found if name.endswith(_PIN)}
        kept = {keep.name} | {name.removesuffix(_PIN) for name in pins} & found.keys()
        # A manifest is replaced when the one after it was created.
        for name, successor in pairwise(sorted(filter(_MANIFEST.fullmatch, found))):
            if now_ms - found[successor] <= retention_s * 1000:
                kept.add(name)
        self._stems = {name: self._stems_named_by(name) for name in kept}
        stems = {merging}.union(*self._stems.values())
        removed, refusal = 0, None
        for name, changed_ms in found.items():
            # It may belong to an attempt that is still writing, one that has been overtaken included.
            if (
                name in kept
                or name in pins
                or _stem(name) in stems
                or changed_ms >= min(keep.created_ms, now_ms - _YOUNG_S * 1000)
            ):
                continue
            try:
                (self.directory / name).unlink(missing_ok=True)
                removed += 1
            except OSError as error:
                refusal = error
        if refusal is not None:
            raise refusal
        return removed

    def _stems_named_by(self, name: str) -> tuple[str, ...]:
        if name not in self._stems:
            try:
                self.read(name)
            except StateError as error:
                log.warning("manifest passed over", extra={"manifest": name, "reason": str(error)})
                self._stems[name] = ()  # told once, not at every snapshot as long as it is kept
        return self._stems[name]


def _changed_ms(entry: os.DirEntry[str]) -> float | None:
    """When a file was written; None if another attempt has removed it meanwhile."""
    try:
        return entry.stat().st_mtime * 1000
    except FileNotFoundError:
        return None


def _stem(file: str) -> str:
    """What the names of a segment's files have in common."""
    return file.rpartition("-")[0]


def _stems(manifest: Manifest) -> tuple[str, ...]:
    # Neighbouring manifests name the same segments: one string serves all.
    return tuple(sys.intern(_stem(segment[0].name)) for segment in manifest.segments if segment)


class Lease:
    """One job at a time owns a state directory; the lock goes with the process that holds it, however it dies.

    Raises:
        StateError: if another process holds it.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        path = Path(root) / "lease"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = path.open("a+")
        except OSError as error:
            raise StateError(f"{root}: cannot be written ({error.strerror}); choose another --state_dir") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise StateError(f"{root}: in use by {holder}; stop that job or choose another --state_dir") from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()}")
        self._file.flush()

    def release(self) -> None:
        """Give the directory free."""
        self._file.close()
