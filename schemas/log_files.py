"""File logs: writing and reading a partition, whose files `log_segments` knows.

A segment is an Avro object container file. A record's offset is where its block starts in the partition's stream
of bytes plus its number in the block: unique, increasing, and found again by reading block headers.
"""

import fcntl
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from schemas.avro import AvroError, Record, load_schema
from schemas.avro_blocks import (
    FRAME_HEAD_BYTES,
    SYNC_BYTES,
    BlockDecoder,
    BlockEncoder,
    Frame,
    Header,
    make_header,
    parse_frame,
    parse_header,
)
from schemas.files import sync_path
from schemas.log_segments import (
    Segment,
    SegmentFinder,
    last_segment,
    partition_folder,
    segment_bases,
    segment_path,
    strangers,
)
from schemas.process import UserError
from schemas.records import Records

_RAW_LIMIT = 64 << 10  # of a fault's bytes: enough to see what it was
_READ_BYTES = 64 << 20
_HEADER_LIMIT = 1 << 20
_SEARCH_BYTES = 1 << 20
_FIRST_BLOCK_RECORDS = 64  # before the size of records is known
_STRANGER = "is no segment of this log: segments are named by 20 digits and .avro"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """A stretch `[offset, next_offset)` of a partition that cannot be read, why, and its first 64 KiB."""

    offset: int
    next_offset: int
    reason: str
    raw: bytes


@dataclass(frozen=True)
class Chunk:
    """Records with their offsets (int64[n]), what could not be read between them, and where to go on."""

    records: Records
    offsets: NDArray[np.int64]
    next_offset: int
    faults: list[Fault] = field(default_factory=list)


def partition_of(user_id: str, partitions: int) -> int:
    """The partition of all of a user's records: CRC-32 of the id, as librdkafka's `consistent` has it."""
    return zlib.crc32(user_id.encode()) % partitions


def partitions_of(user_ids: Iterable[str], partitions: int) -> NDArray[np.int64]:
    """`partition_of` of many: int64[N]."""
    return np.fromiter(map(partial(partition_of, partitions=partitions), user_ids), np.int64)


class LogWriter:
    """Appends to one partition; a segment gets its final name when it is whole and on disk.

    It goes on after what is there; a partition has one writer at a time. `segment_bytes` is the size at which
    the next segment begins, `block_bytes` that of a block before compression: what a corrupt byte costs.

    Raises:
        UserError: the partition has another writer.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        topic: str,
        partition: int,
        segment_bytes: int = 64 << 20,
        block_bytes: int = 32 << 10,
    ) -> None:
        self._folder = partition_folder(root, topic, partition)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(f"{self._folder} is being written by another process: stop that one first") from None
        last = last_segment(self._folder)
        self._base = 0 if last is None else last.end
        self._segment_bytes, self._block_bytes = segment_bytes, block_bytes
        sync = os.urandom(SYNC_BYTES)
        self._header = make_header(load_schema(topic), sync)
        self._encoder = BlockEncoder(load_schema(topic), sync)
        self._pending: list[Record] = []
        self._block_records = _FIRST_BLOCK_RECORDS
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """As `close`; an exception drops what was not rolled instead."""
        if kind is None:
            self.close()
            return
        if self._file is not None:
            self._file.close()
            self._unfinished.unlink()
        self._lock.close()

    def append(self, records: list[Record]) -> None:
        """Add records to the open segment; readers see them when it is rolled."""
        self._pending += records
        while len(self._pending) >= self._block_records:
            self._write_block()

    def roll(self) -> None:
        """Give the open segment its final name: from now on readers see what was appended."""
        while self._pending:
            self._write_block()
        if self._file is not None:
            self._finish(self._file)

    def close(self) -> None:
        """Roll what is open and let go of the partition."""
        self.roll()
        self._lock.close()

    @property
    def _unfinished(self) -> Path:
        return self._folder / f".{self._base:020d}.avro.tmp"

    def _write_block(self) -> None:
        records = self._pending[: self._block_records]
        block, plain_bytes = self._encoder.encode(records)
        if self._file is None:
            self._file = self._unfinished.open("wb")
            self._file.write(self._header)
        self._file.write(block)
        del self._pending[: len(records)]
        self._block_records = max(1, self._block_bytes * len(records) // plain_bytes)
        if self._file.tell() >= self._segment_bytes:
            self._finish(self._file)

    def _finish(self, file: IO[bytes]) -> None:
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
        file.close()
        self._unfinished.rename(segment_path(self._folder, self._base))
        sync_path(self._folder)
        self._file = None
        self._base += size


class PartitionReader:
    """Reads one partition from an offset on; what is corrupt becomes a fault, and reading goes on behind it.

    `offset` is 0, or a record's offset or a `next_offset` seen before. Records are as the topic's present
    schema has them, whatever schema they were written with.
    """

    def __init__(self, root: str | os.PathLike[str], topic: str, partition: int, offset: int = 0) -> None:
        self._folder = partition_folder(root, topic, partition)
        self._topic = topic
        self._from = offset  # records of the first block may lie before it
        self._next = offset
        self._strangers_due = offset == 0
        if self._strangers_due and not segment_bases(self._folder) and (names := strangers(self._folder)):
            log.warning("%s has nothing to read yet: %s %s", self._folder, names[0], _STRANGER)
        self._finder = SegmentFinder(self._folder)
        self._segment: Segment | None = None
        self._header: Header | None = None
        self._decoder: BlockDecoder | None = None

    def end_offset(self) -> int:
        """Bytes of the partition so far."""
        last = last_segment(self._folder)
        return 0 if last is None else last.end

    def read(self, max_records: int) -> Chunk:
        """The next blocks, until they have `max_records` records, or 64 MiB, or the log ends; new segments are seen.

        Raises:
            LogHoleError: the partition does not hold the next offset; names the place and the remedy.
        """
        parts: list[Chunk] = []
        count = size = 0
        while count < max_records and size < _READ_BYTES and (segment := self._current()) is not None:
            with segment.path.open("rb") as file:
                for part in self._parts(segment, file):
                    parts.append(part)
                    self._next = part.next_offset
                    count += len(part.records) + len(part.faults)
                    size += part.records.data.size
                    if count >= max_records or size >= _READ_BYTES:
                        break
        if parts and self._strangers_due:
            # With the first bytes that are read, so that who goes on behind those has been told, and is not again.
            parts.insert(0, self._strangers())
            self._strangers_due = False
        return Chunk(
            Records.joined([Records.of(self._topic), *(part.records for part in parts)]),
            np.concatenate([part.offsets for part in parts]) if parts else _no_offsets(),
            self._next,
            [fault for part in parts for fault in part.faults],
        )

    @property
    def at_end(self) -> bool:
        """A file has all that is in it at once."""
        return True

    def _strangers(self) -> Chunk:
        """Files that no writer of ours has made, as faults of no bytes: their records are in no log."""
        faults = [Fault(0, 0, f"{name} {_STRANGER}", b"") for name in strangers(self._folder)]
        return Chunk(Records.of(self._topic), _no_offsets(), 0, faults)

    def _current(self) -> Segment | None:
        """The segment that holds the next offset, if it is there yet."""
        if self._segment is not None and self._next < self._segment.end:
            return self._segment
        found = self._finder.find(self._next, self._segment)
        if found is not None:
            self._segment, self._header = found, None
        return found

    def _parts(self, segment: Segment, file: IO[bytes]) -> Iterator[Chunk]:
        """What is read from the next offset to the segment's end, a chunk a block."""
        if self._header is None:
            try:
                self._header = parse_header(file.read(_HEADER_LIMIT))
                self._decoder = BlockDecoder(self._header, self._topic)
            except AvroError as error:
                self._header = None
                yield self._fault(segment, file, 0, self._end_of(segment), str(error))
                return
        assert self._decoder is not None
        at = max(self._next - segment.base, self._header.size)
        if self._next == self._from:
            at = self._header.size  # a record's offset lies within its block: found from the first one on
        while at < segment.size:
            start = at
            try:
                frame = _framed(file, start, segment.size, self._header.sync)
                at = frame.end
                if segment.base + at > self._from:
                    yield self._decoded(segment, file, frame, self._decoder)
            except AvroError as error:
                behind = _behind_marker(file, start, self._header.sync)
                at = segment.size if behind is None else behind
                end = self._end_of(segment) if behind is None else segment.base + at
                if end > self._from:
                    yield self._fault(segment, file, start, end, f"corrupt block at byte {start}: {error}")
        if self._next < segment.end:
            yield Chunk(Records.of(self._topic), _no_offsets(), segment.end)  # a segment without a block

    def _decoded(self, segment: Segment, file: IO[bytes], frame: Frame, decoder: BlockDecoder) -> Chunk:
        file.seek(frame.body)
        try:
            records = decoder.decode(file.read(frame.size), frame.count)
        except AvroError as error:
            why = f"corrupt block at byte {frame.start}: {error}"
            return self._fault(segment, file, frame.start, segment.base + frame.end, why)
        first = segment.base + frame.start
        before = min(max(self._from - first, 0), frame.count)
        offsets = np.arange(first + before, first + frame.count, dtype=np.int64)
        return Chunk(records[before:], offsets, segment.base + frame.end)

    def _end_of(self, segment: Segment) -> int:
        """Where reading goes on after a segment whose end cannot be read: the next one, if any."""
        later = [base for base in segment_bases(self._folder) if base > segment.base]
        return max([segment.end, *later[:1]])

    def _fault(self, segment: Segment, file: IO[bytes], start: int, end: int, why: str) -> Chunk:
        file.seek(start)
        raw = file.read(min(end - segment.base - start, _RAW_LIMIT))
        fault = Fault(segment.base + start, end, f"{segment.path.name}: {why}", raw)
        return Chunk(Records.of(self._topic), _no_offsets(), end, [fault])


def _no_offsets() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


def _framed(file: IO[bytes], start: int, size: int, sync: bytes) -> Frame:
    """The block at `start` of a file of `size` bytes, its sync marker checked."""
    file.seek(start)
    frame = parse_frame(file.read(FRAME_HEAD_BYTES), start)
    if frame.end > size:
        raise AvroError("it is cut short")
    file.seek(frame.end - SYNC_BYTES)
    if file.read(SYNC_BYTES) != sync:
        raise AvroError("no sync marker behind it")
    return frame


def _behind_marker(file: IO[bytes], start: int, sync: bytes) -> int | None:
    """Where the first sync marker from `start` on ends, if there is one."""
    file.seek(start)
    window, at = b"", start
    while more := file.read(_SEARCH_BYTES):
        window += more
        found = window.find(sync)
        if found >= 0:
            return at + found + SYNC_BYTES
        at += len(window) - min(len(window), SYNC_BYTES - 1)
        window = window[-(SYNC_BYTES - 1) :]
    return None
