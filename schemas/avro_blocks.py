"""Avro object container files, block by block: what a log needs that a reader of whole files does not offer.

Blocks are found by their framing (record count, size, bytes, sync marker), so that a reader can begin at any
of them, knows each one's place in the file, and goes on behind a corrupt one. A block of another schema than
the topic's present one is decoded as one Avro array, which has the same encoding but for the count in front and
the zero behind: the loop over records then runs in C.

Source: Apache Avro 1.12 specification, "Object Container Files".
"""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fastavro
import numpy as np
import zstandard

from schemas.avro import AvroError, Record, Schema, load_schema, plain_schema
from schemas.avro_kernels import find_records
from schemas.avro_program import program_of
from schemas.avro_resolution import check_resolution
from schemas.records import Records

SYNC_BYTES = 16
FRAME_HEAD_BYTES = 20  # two varints of 64 bits
_CODEC = "zstandard"
_ZSTD_LEVEL = 1  # packed ids shrink to a quarter at this level, and hardly further at higher ones


@dataclass(frozen=True)
class Header:
    """A file's header: its size in bytes, the schema it was written with, codec and sync marker."""

    size: int
    writer: Schema
    codec: str
    sync: bytes


@dataclass(frozen=True)
class Frame:
    """A block of `count` records: `size` bytes from `body` on in its file; the next block starts at `end`."""

    start: int
    count: int
    body: int
    size: int

    @property
    def end(self) -> int:
        return self.body + self.size + SYNC_BYTES


def parse_header(data: bytes) -> Header:
    """The header at the beginning of a file.

    Raises:
        AvroError: it is not one, or names a codec that is not read here.
    """
    stream = io.BytesIO(data)
    try:
        reader: Any = fastavro.reader(stream)
        metadata, size = reader.metadata, stream.tell()
    except Exception as error:  # fastavro raises whatever corrupt bytes lead it to
        raise AvroError(f"not an Avro file: {type(error).__name__}: {error}") from error
    codec = metadata.get("avro.codec", "null")
    if codec not in _DECOMPRESS:
        raise AvroError(f"codec {codec!r} is not read here: write with {', '.join(_DECOMPRESS)}")
    return Header(size, reader.writer_schema, codec, data[size - SYNC_BYTES : size])


def make_header(schema: Schema, sync: bytes) -> bytes:
    """A file's header; blocks of `BlockEncoder` may follow."""
    out = io.BytesIO()
    fastavro.writer(out, schema, [], codec=_CODEC, sync_marker=sync)
    return out.getvalue()


def parse_frame(head: bytes, start: int) -> Frame:
    """The block that starts at `start` of its file with bytes `head` (FRAME_HEAD_BYTES, fewer at the end).

    Raises:
        AvroError: these bytes cannot begin a block.
    """
    count, used = _varint(head, 0)
    size, used = _varint(head, used)
    frame = Frame(start, count, start + used, size)
    # Offsets of records are their block's start plus their number, and must stay below the next block's.
    if count < 0 or size < 0 or count > frame.end - start:
        raise AvroError(f"no block has {count} records in {size} bytes")
    return frame


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A zig-zag long, and where the next thing starts."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at + i + 1
    raise AvroError("no block begins here")


def _long(value: int) -> bytes:
    """A number of 0 or more as Avro writes it."""
    value <<= 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class BlockEncoder:
    """Records to blocks, by Zstandard with a checksum: a flipped bit cannot pass for another id."""

    def __init__(self, schema: Schema, sync: bytes) -> None:
        self._array = _array_of(schema)
        self._sync = sync
        self._compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)

    def encode(self, records: list[Record]) -> tuple[bytes, int]:
        """One block, or more if compression leaves fewer bytes than records; and bytes before compression."""
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self._array, records)
        count = _long(len(records))
        plain = out.getbuffer()[len(count) : -1]
        body = self._compressor.compress(plain)
        block = b"".join((count, _long(len(body)), body, self._sync))
        if len(block) >= len(records):
            return block, len(plain)
        # Fewer records give hardly fewer bytes: as many as those have bytes will do, or nearly.
        fit = min(len(block), (len(records) + 1) // 2)
        parts = (records[i : i + fit] for i in range(0, len(records), fit))
        return b"".join(self.encode(part)[0] for part in parts), len(plain)


class BlockDecoder:
    """A file's blocks to records of a topic's present schema.

    Raises:
        AvroError: what the file's schema writes cannot be read with that one.
    """

    def __init__(self, header: Header, topic: str) -> None:
        self._topic, reader = topic, load_schema(topic)
        self._decompress = _DECOMPRESS[header.codec]
        try:
            # Resolving a schema to itself costs time and gives the same.
            same = plain_schema(header.writer) == plain_schema(reader)
            if not same:
                check_resolution(header.writer, reader)
            self._writer = _array_of(header.writer)
        except RecursionError:
            raise AvroError("written with a schema that cannot be read here: it is nested too deeply") from None
        except AvroError as error:
            raise AvroError(f"written with a schema that cannot be read here: {error}") from None
        self._reader = None if same else _array_of(reader)

    def decode(self, body: bytes, count: int) -> Records:
        """Records of a block.

        Raises:
            AvroError: the bytes are not `count` records.
        """
        if not count:
            return Records.of(self._topic)
        try:
            plain = self._decompress(body)
        except Exception as error:  # codecs raise whatever corrupt bytes lead them to
            raise AvroError(f"{type(error).__name__}: {error}") from error
        if self._reader is None and count <= len(plain):
            data, starts = np.frombuffer(plain, np.uint8), np.empty(count + 1, np.int64)
            if find_records(program_of(self._topic).code, data, starts):
                return Records(self._topic, data, starts[:-1], starts[1:])
        return Records.of(self._topic, self._resolved(plain, count))

    def _resolved(self, plain: bytes, count: int) -> list[Record]:
        try:
            stream = io.BytesIO(b"".join((_long(count), plain, b"\0")))
            records = fastavro.schemaless_reader(stream, self._writer, self._reader)
        except Exception as error:  # fastavro raises whatever corrupt bytes lead it to
            raise AvroError(f"{type(error).__name__}: {error}") from error
        if stream.read(1) or len(records) != count:
            raise AvroError(f"its bytes are not the {count} records that it announces")
        return records


def _array_of(schema: Schema) -> Schema:
    return fastavro.parse_schema({"type": "array", "items": plain_schema(schema)})


def _inflate(body: bytes) -> bytes:
    return zlib.decompress(body, -zlib.MAX_WBITS)


def _unzstd(body: bytes) -> bytes:
    # Not decompress(): other writers leave out the size that it needs.
    stream = zstandard.ZstdDecompressor().decompressobj()
    plain = stream.decompress(body)
    if not stream.eof:
        raise AvroError("the compressed bytes are cut short")
    return plain


_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {"null": bytes, "deflate": _inflate, "zstandard": _unzstd}
