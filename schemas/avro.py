"""Avro by topic: one parsed schema each, record bodies, and single-object encoding for messages."""

import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from schemas.process import UserError

Schema: TypeAlias = Any
Record: TypeAlias = dict[str, Any]

_FILES = {
    "features": "features.avsc",
    "actions": "actions.avsc",
    "parameters": "delta.avsc",
    "dead_letters": "dead_letter.avsc",
    "examples": "examples.avsc",
}
_MARK = b"\xc3\x01"
_HEADER = len(_MARK) + 8
_CONFLUENT_MARK = b"\0"
_CONFLUENT_HEADER = len(_CONFLUENT_MARK) + 4


class AvroError(UserError):
    """Bytes that are not what their topic's schema says."""


@cache
def load_schema(topic: str) -> Schema:
    """Parsed schema of a topic: `features`, `actions`, `parameters`, `dead_letters` or `examples`."""
    return fastavro.parse_schema(json.loads((Path(__file__).parent / _FILES[topic]).read_text("utf-8")))


def encode_body(topic: str, record: Record) -> bytes:
    """A record without any header."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, load_schema(topic), record)
    return out.getvalue()


def encode_single(topic: str, record: Record) -> bytes:
    """Avro's single-object encoding: C3 01, the schema's CRC-64-AVRO fingerprint little-endian, the body."""
    return single_object_header(load_schema(topic)) + encode_body(topic, record)


class MessageDecoder:
    """Messages of a topic as records of its present schema.

    Fields that a writer lacked take their defaults, others are dropped.

    Args:
        topic: of the messages.
        writers: other schemas that messages in single-object encoding may have been written with: older ones, or newer ones
            of a producer that was upgraded first.
        registry: parsed schema by number, for messages in Confluent's wire format; raises LookupError for an unknown number.
    """

    def __init__(self, topic: str, writers: Sequence[Schema] = (), registry: Callable[[int], Schema] | None = None) -> None:
        self._topic, self._registry = topic, registry
        self._reader = load_schema(topic)
        self._writers = {single_object_header(writer): writer for writer in (self._reader, *writers)}

    def decode(self, message: bytes) -> Record:
        """The record of a message.

        Raises:
            AvroError: the message is of a schema that is not known, or does not hold what its schema says.
        """
        size = _CONFLUENT_HEADER if message[:1] == _CONFLUENT_MARK else _HEADER
        writer = self._writers.get(message[:size])
        if writer is None:
            writer = self._writers[message[:size]] = self._look_up(message[:size])
        body = io.BytesIO(message[size:])
        try:
            record = fastavro.schemaless_reader(body, writer, self._reader)
        except Exception as error:  # fastavro raises whatever corrupt bytes lead it to
            raise AvroError(f"a message of {self._topic} cannot be decoded: {type(error).__name__}: {error}") from error
        if body.read(1):
            raise AvroError(f"a message of {self._topic} goes on behind its record: it is not a single record")
        return record

    def _look_up(self, header: bytes) -> Schema:
        if len(header) == _CONFLUENT_HEADER and self._registry is not None:
            try:
                return self._registry(int.from_bytes(header[1:], "big"))
            except LookupError as error:
                raise AvroError(f"a message of {self._topic} cannot be decoded: {error}") from error
        raise AvroError(
            f"a message of {self._topic} begins with {header.hex()}, the mark of no schema known here: "
            "add the schema that it was written with"
        )


def encode_confluent(topic: str, record: Record, schema_id: int) -> bytes:
    """Confluent's wire format: 0, the number of the topic's present schema in a registry (4 bytes, big-endian), the body."""
    return _CONFLUENT_MARK + schema_id.to_bytes(4, "big") + encode_body(topic, record)


def single_object_header(schema: Schema) -> bytes:
    """The ten bytes before the body of every message of a parsed schema."""
    return _MARK + _fingerprint(json.dumps(schema))


@cache
def _fingerprint(schema: str) -> bytes:
    # fastavro spells the fingerprint in the order in which the specification puts it on the wire.
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(json.loads(schema)), "CRC-64-AVRO"))
