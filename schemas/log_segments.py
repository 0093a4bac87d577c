"""Where the segments of a log lie: the one place that knows the layout of file logs.

`LOGS/{topic}/p{partition:03d}/{base:020d}.avro`: a partition is a sequence of immutable files (segments), each
named by the number of bytes in the segments before it, and so one logical stream of bytes.
"""

import math
import os
import re
import time
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from schemas.process import UserError

_SEGMENT = re.compile(r"\d{20}\.avro")
_PARTITION = re.compile(r"p\d{3}")
_TICK_S = 2.0  # FAT's clock, the coarsest that stamps folders


class LogHoleError(UserError):
    """Part of a log is missing."""


@dataclass(frozen=True)
class Segment:
    """One file: bytes `[base, end)` of its partition."""

    base: int
    size: int
    path: Path

    @property
    def end(self) -> int:
        return self.base + self.size


def list_partitions(root: str | os.PathLike[str], topic: str) -> list[int]:
    """Numbers of a topic's partitions, none if there is no such topic."""
    folder = Path(root) / topic
    if not folder.is_dir():
        return []
    return sorted(int(path.name[1:]) for path in folder.iterdir() if _PARTITION.fullmatch(path.name))


def partition_folder(root: str | os.PathLike[str], topic: str, partition: int) -> Path:
    return Path(root) / topic / f"p{partition:03d}"


def segment_path(folder: Path, base: int) -> Path:
    return folder / f"{base:020d}.avro"


def segment_bases(folder: Path) -> list[int]:
    """Where the segments of a partition begin, in order."""
    return sorted(int(name[:20]) for name in _names(folder) if _SEGMENT.fullmatch(name))


def last_segment(folder: Path) -> Segment | None:
    bases = segment_bases(folder)
    return _segment(folder, bases[-1]) if bases else None


def newest_segment(root: str | os.PathLike[str], topic: str, partition: int) -> int:
    """The offset at which a partition's newest segment begins, 0 if there is none."""
    return max(segment_bases(partition_folder(root, topic, partition)), default=0)


def strangers(folder: Path) -> list[str]:
    """Names of the files in a partition that no writer of ours has made: their records are in no log."""
    return sorted(name for name in _names(folder) if not name.startswith(".") and not _SEGMENT.fullmatch(name))


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _segment(folder: Path, base: int) -> Segment:
    path = segment_path(folder, base)
    return Segment(base, path.stat().st_size, path)


class SegmentFinder:
    """Finds the segments of one partition for a reader, who asks again and again while it is at the end.

    The next segment's name is known before it is there, so a look for it costs no listing. The folder is listed only
    for what names do not tell, holes and overlaps, and only when it has changed: reading at the end of a log costs the
    same however many segments it has.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._end: tuple[int, int] | None = None  # an offset that was the log's end, and the folder's time when it was
        self._look_again = 0.0

    def find(self, offset: int, before: Segment | None) -> Segment | None:
        """The segment that holds an offset, None at the log's end; `before` has been read, up to its end.

        Raises:
            LogHoleError: the partition does not hold the offset, or two segments do; names the place and the remedy.
        """
        if (found := self._beginning_at(offset)) is not None:
            return found
        now = time.monotonic()
        seen = offset, self._changed_ns()
        if seen == self._end and now < self._look_again:
            return None
        found = self._listed(offset, before)
        if found is None:
            # A segment that came after the listing may have left the folder's time as it was: once its clock
            # has surely moved on, one more listing shows what came.
            self._look_again = math.inf if seen == self._end else now + _TICK_S
            self._end = seen
        return found

    def _beginning_at(self, offset: int) -> Segment | None:
        try:
            found = _segment(self._folder, offset)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found if found.size else None

    def _changed_ns(self) -> int:
        try:
            return self._folder.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return -1  # no writer has been here yet

    def _listed(self, offset: int, before: Segment | None) -> Segment | None:
        bases = segment_bases(self._folder)
        begun = bisect_right(bases, offset)
        last = _segment(self._folder, bases[begun - 1]) if begun else None
        if last is not None and offset < last.end:
            if before is not None and offset != last.base:
                raise LogHoleError(
                    f"{last.path} begins before the segment before it ends, at {offset}: "
                    "two writers have been at this log; write it anew"
                )
            return last
        at_end = last.end if last is not None else 0
        if offset == at_end and begun == len(bases):
            return None
        later = f"goes on at {bases[begun]}" if begun < len(bases) else "ends there"
        raise LogHoleError(
            f"{self._folder}: reading is at byte {offset}, but the log has nothing from {at_end} on "
            f"and {later}: restore the missing segments, or start anew without the old state"
        )
