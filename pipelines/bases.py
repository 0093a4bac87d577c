"""New bases: a manifest's base and increments become one, from their files, in the background.

It happens once the increments outweigh the base, so each byte is rewritten a bounded number of times, and the live table
is never walked. A merge saves space and the time of a restart; where it fails, the segments it was of are as good.
"""

from __future__ import annotations

import logging
import secrets
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from model.snapshot import FileEntry, SnapshotError

from .state_files import Manifest, StateFiles

log = logging.getLogger(__name__)

Segments = tuple[tuple[FileEntry, ...], ...]


class _Merging(NamedTuple):
    """The first ``segments`` segments of a manifest, becoming one base."""

    stem: str
    segments: int
    base: Future[tuple[FileEntry, ...]]


class Bases:
    """Bases of one shard, one in the making at a time.

    Args:
        files: where segments are.
        again_s: seconds to wait after a merge that failed: it takes time and space that snapshots need.

    Attributes:
        failures: merges that failed.
    """

    def __init__(self, files: StateFiles, again_s: float) -> None:
        self.failures = 0
        self._files = files
        self._again_s = again_s
        self._due = time.monotonic()
        self._pool: ThreadPoolExecutor | None = None
        self._merging: _Merging | None = None

    @property
    def stem(self) -> str | None:
        """Stem of the files of the base in the making, which no manifest names yet."""
        return self._merging.stem if self._merging else None

    def start_if_due(self, manifest: Manifest) -> None:
        """Begin a base of all of a manifest's segments if they have come to that."""
        sizes = manifest.bytes
        if self._merging is not None or len(sizes) < 3 or sum(sizes[1:]) < sizes[0] or time.monotonic() < self._due:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"merge-{manifest.shard}")
        # Drawn anew: a process that has been replaced may still be merging the same manifest.
        stem = f"{manifest.version:012d}-{secrets.token_hex(8)}-base"
        self._merging = _Merging(stem, len(sizes), self._pool.submit(self._merge, manifest, stem))

    def wait(self) -> None:
        """Until no base is in the making."""
        if self._merging is not None:
            self._merging.base.exception()

    def merged(self, segments: Segments) -> Segments:
        """The segments, or their first ones' new base and the others if it is done."""
        if self._merging is None or not self._merging.base.done():
            return segments
        try:
            return (self._merging.base.result(), *segments[self._merging.segments :])
        except Exception as error:  # memory that ran out, say: whatever it was, the segments are as good
            self._merging = None
            self.failures += 1
            self._due = time.monotonic() + self._again_s
            known = isinstance(error, OSError | SnapshotError)
            reason = str(error) or type(error).__name__
            extra = {"shard": self._files.shard, "reason": reason}
            log.error("merging state files failed", extra=extra, exc_info=None if known else error)
            return segments

    def named(self, segments: Segments) -> None:
        """A manifest that names these is durable: if they begin with the new base, the next one may be made."""
        if self._merging is not None and self._merging.base.done() and segments[0] == self._merging.base.result():
            self._merging = None

    def forget(self) -> None:
        """What is being made is of another state than the one to come."""
        self._merging = None

    def _merge(self, manifest: Manifest, stem: str) -> tuple[FileEntry, ...]:
        return self._files.write_segment(stem, self._files.load(manifest))
