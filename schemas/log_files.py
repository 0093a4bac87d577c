"""File logs: the one place that knows their layout.

``LOGS/{topic}/p{partition:03d}/{base:020d}.avro``: a partition is a sequence of immutable Avro object container files,
named by the number of bytes in the files before, and so one logical stream of bytes. A record's offset is where its block
starts in that stream plus its index in the block: unique, increasing, and found again by reading block headers.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import fastavro
import numpy as np

from schemas.avro import schema
from schemas.process import UserError

_SEGMENT = re.compile(r"\d{20}\.avro")
_RAW_LIMIT = 64 << 10
_SYNC = 16
_GROUP = 1024  # records decoded at once: fastavro's start costs as much as a few dozen

Record = dict[str, Any]


class LogHoleError(UserError):
    """Part of a log is missing."""


@dataclass(frozen=True)
class Fault:
    """A stretch ``[offset, next_offset)`` of a partition that cannot be read, and why."""

    offset: int
    next_offset: int
    reason: str
    raw: bytes


@dataclass
class Chunk:
    """Records with their offsets (int64[n]), what could not be read between them, and where to go on."""

    records: list[Record] = field(default_factory=list)
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    next_offset: int = 0
    faults: list[Fault] = field(default_factory=list)


def partition_of(user_id: str, partitions: int) -> int:
    """The partition that all of a user's records go to."""
    return zlib.crc32(user_id.encode()) % partitions


def partitions_of(user_ids: Iterable[str], partitions: int) -> np.ndarray:
    """:func:`partition_of` for many: int64[N]."""
    return np.array([partition_of(user_id, partitions) for user_id in user_ids], np.int64)


def list_partitions(root: str | os.PathLike[str], topic: str) -> list[int]:
    """Numbers of a topic's partitions."""
    folder = Path(root) / topic
    return sorted(int(p.name[1:]) for p in folder.iterdir() if re.fullmatch(r"p\d{3}", p.name)) if folder.is_dir() else []


def _segments(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.stem), path) for path in folder.iterdir() if _SEGMENT.fullmatch(path.name))


class LogWriter:
    """Appends to one partition; a segment appears under its final name when it is whole and on disk.

    Args:
        root: folder of the logs.
        topic: ``features``, ``actions`` or ``parameters``.
        partition: its number.
        segment_bytes: size at which the next segment begins.
    """

    def __init__(self, root: str | os.PathLike[str], topic: str, partition: int, segment_bytes: int = 64 << 20) -> None:
        self._folder = Path(root) / topic / f"p{partition:03d}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._schema, self._segment_bytes = schema(topic), segment_bytes
        last = _segments(self._folder)
        self._base = last[-1][0] + last[-1][1].stat().st_size if last else 0
        self._temporary = self._folder / f".{os.getpid()}.tmp"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()
            self._temporary.unlink()

    def append(self, records: list[Record]) -> None:
        """Write records to the open segment."""
        if not records:
            return
        if self._file is None:
            self._file = self._temporary.open("w+b")
            fastavro.writer(self._file, self._schema, records)
        else:
            # Behind what is there: fastavro keeps its header and sync marker.
            fastavro.writer(self._file, self._schema, records)
        if self._file.tell() >= self._segment_bytes:
            self.roll()

    def roll(self) -> None:
        """Give the open segment its final name: from now on readers see it."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.seek(0, os.SEEK_END)
        self._file.close()
        self._file = None
        self._temporary.rename(self._folder / f"{self._base:020d}.avro")
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._base += size

    def close(self) -> None:
        """Roll what is open."""
        self.roll()


class PartitionReader:
    """Reads one partition from an offset; whatever is corrupt becomes a fault, and reading goes on behind it.

    Args:
        root, topic, partition: which.
        offset: where to begin: 0, or a ``next_offset`` or record offset seen before.
    """

    def __init__(self, root: str | os.PathLike[str], topic: str, partition: int, offset: int = 0) -> None:
        self._folder = Path(root) / topic / f"p{partition:03d}"
        self._name = f"{topic}/p{partition:03d}"
        self._schema = schema(topic)
        self._plain_schema = fastavro.reader(io.BytesIO(_empty_file(self._schema))).writer_schema
        self._from = offset
        self._next = offset
        self._blocks: Iterator[Chunk] | None = None
        self._last: tuple[int, Path] | None = None
        self._cut_short = False

    def end_offset(self) -> int:
        """Bytes of the partition so far."""
        segments = _segments(self._folder)
        return segments[-1][0] + segments[-1][1].stat().st_size if segments else 0

    def read(self, max_records: int) -> Chunk:
        """Up to about ``max_records`` records (whole blocks); an empty chunk when there is nothing new.

        Raises:
            LogHoleError: if a segment is missing.
        """
        parts: list[Chunk] = []
        count = 0
        while count < max_records:
            if self._blocks is None and not self._open_next():
                break
            assert self._blocks is not None
            part = next(self._blocks, None)
            if part is None:
                self._blocks = None
                continue
            parts.append(part)
            count += len(part.records)
            self._next = part.next_offset
        return Chunk(
            [record for part in parts for record in part.records],
            np.concatenate([part.offsets for part in parts]) if parts else np.zeros(0, np.int64),
            self._next,
            [fault for part in parts for fault in part.faults],
        )

    def _open_next(self) -> bool:
        """Begin the segment that holds the next offset, if it is there yet."""
        after = self._last[0] if self._last else -1
        segments = [s for s in _segments(self._folder) if s[0] > after]
        if self._last is None:
            # The segment to start in is the last one that begins at or before the offset.
            begun = [s for s in segments if s[0] <= self._from]
            if segments and not begun:
                raise LogHoleError(
                    f"{self._folder}: begins at {segments[0][0]}, after {self._from}; restore the older segments"
                )
            segments = segments[len(begun) - 1 :] if begun else []
        if not segments:
            return False
        base, path = segments[0]
        if self._last is not None:
            expected = self._last[0] + self._last[1].stat().st_size
            # A segment that was cut short has reported its loss already.
            if base > expected and not self._cut_short:
                raise LogHoleError(f"{self._folder}: nothing between {expected} and {base}; restore the missing segment")
        self._last = (base, path)
        self._blocks = self._read_segment(base, path)
        return True

    def _read_segment(self, base: int, path: Path) -> Iterator[Chunk]:
        self._cut_short = False
        data = path.read_bytes()
        try:
            header = fastavro.reader(io.BytesIO(data), reader_schema=self._schema)
            same = header.writer_schema == self._plain_schema
            start = _after_header(data)
        except Exception as error:  # fastavro raises whatever the bytes lead to
            reason = f"{path.name}: not an Avro file of {self._name}: {type(error).__name__}: {error}"
            yield Chunk(next_offset=base + len(data), faults=[Fault(base, base + len(data), reason, data[:_RAW_LIMIT])])
            return
        segment = _Segment(data, base, data[:start], None if same else self._schema)
        at = start
        while at < len(data):
            frames, end = segment.frames(at)
            if frames and base + end > self._from:
                yield self._group(segment, frames, path)
            at = end
            if not frames:
                found = data.find(data[start - _SYNC : start], at)
                end = found + _SYNC if found >= 0 else len(data)
                self._cut_short = found < 0
                if base + end > self._from:
                    yield segment.fault(at, end, f"{path.name}: corrupt block at byte {at}")
                at = end

    def _group(self, segment: _Segment, frames: list[_Frame], path: Path) -> Chunk:
        """Records of consecutive blocks; a block that cannot be decoded becomes a fault, the others are kept."""
        try:
            records = segment.decode(frames)
            offsets = np.concatenate([segment.base + f.start + np.arange(f.count) for f in frames])
            keep = int(np.searchsorted(offsets, self._from))
            return Chunk(records[keep:], offsets[keep:], segment.base + frames[-1].end)
        except Exception as error:  # corrupt bytes may raise anything
            if len(frames) == 1:
                return segment.fault(
                    frames[0].start,
                    frames[0].end,
                    f"{path.name}: corrupt block at byte {frames[0].start}: {type(error).__name__}: {error}",
                )
        parts = [self._group(segment, [frame], path) for frame in frames if segment.base + frame.end > self._from]
        return Chunk(
            [record for part in parts for record in part.records],
            np.concatenate([part.offsets for part in parts]),
            parts[-1].next_offset,
            [fault for part in parts for fault in part.faults],
        )


@dataclass(frozen=True)
class _Frame:
    start: int
    end: int
    count: int


@dataclass(frozen=True)
class _Segment:
    """A segment in memory: where it begins in the partition, its header, and the schema to resolve to, if any."""

    data: bytes
    base: int
    header: bytes
    reader_schema: Any

    def frames(self, at: int) -> tuple[list[_Frame], int]:
        """Well-framed consecutive blocks from ``at`` on, about a group's worth, and where they end."""
        frames: list[_Frame] = []
        records = 0
        while at < len(self.data) and records < _GROUP:
            try:
                frame = _frame(self.data, at, self.header[-_SYNC:])
            except (ValueError, IndexError):
                break
            frames.append(frame)
            records += frame.count
            at = frame.end
        return frames, at

    def decode(self, frames: list[_Frame]) -> list[Record]:
        """All records of consecutive blocks."""
        body = self.data[frames[0].start : frames[-1].end]
        records = list(fastavro.reader(io.BytesIO(self.header + body), reader_schema=self.reader_schema))
        if len(records) != sum(frame.count for frame in frames):
            raise ValueError("not as many records as its header says")
        return records

    def fault(self, start: int, end: int, reason: str) -> Chunk:
        """A stretch that cannot be read."""
        raw = self.data[start : min(end, start + _RAW_LIMIT)]
        return Chunk(next_offset=self.base + end, faults=[Fault(self.base + start, self.base + end, reason, raw)])


def _empty_file(parsed: Any) -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, parsed, [])
    return out.getvalue()


def _after_header(data: bytes) -> int:
    """Bytes of the header: magic, metadata map, sync marker."""
    at = 4
    while True:
        count, at = _varint(data, at)
        if count == 0:
            return at + _SYNC
        if count < 0:
            count = -count
            _, at = _varint(data, at)
        for _ in range(2 * count):
            size, at = _varint(data, at)
            at += size


def _frame(data: bytes, at: int, sync: bytes) -> _Frame:
    """The block at ``at``, if it is followed by the file's sync marker."""
    count, begin = _varint(data, at)
    size, begin = _varint(data, begin)
    end = begin + size
    if count < 0 or size < 0 or data[end : end + _SYNC] != sync:
        raise ValueError("no sync marker behind it")
    return _Frame(at, end + _SYNC, count)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A zig-zag long and where the next thing starts."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
