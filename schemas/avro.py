"""Avro by topic: one parsed schema each, record bodies, and single-object encoding for messages."""

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from schemas.process import UserError

Schema: TypeAlias = Any
Record: TypeAlias = dict[str, Any]

_FILES = {"features": "features.avsc", "actions": "actions.avsc", "parameters": "delta.avsc"}
_MARK = b"\xc3\x01"
_HEADER = len(_MARK) + 8


class AvroError(UserError):
    """Bytes that are not what their topic's schema says."""


@cache
def load_schema(topic: str) -> Schema:
    """Parsed schema of a topic: `features`, `actions` or `parameters`."""
    return fastavro.parse_schema(json.loads((Path(__file__).parent / _FILES[topic]).read_text("utf-8")))


def encode_body(topic: str, record: Record) -> bytes:
    """A record without any header."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, load_schema(topic), record)
    return out.getvalue()


def encode_single(topic: str, record: Record) -> bytes:
    """Avro's single-object encoding: C3 01, the schema's CRC-64-AVRO fingerprint little-endian, the body."""
    return single_object_header(load_schema(topic)) + encode_body(topic, record)


def decode_single(topic: str, message: bytes, writers: Sequence[Schema] = ()) -> Record:
    """The record of a single-object message, as the topic's present schema has it.

    `writers` are other schemas that messages may have been written with: older ones, or newer ones of a
    producer that was upgraded first. Fields the writer lacks take their defaults, others are dropped.

    Raises:
        AvroError: the message is of a schema that is not known, or does not hold what its schema says.
    """
    reader = load_schema(topic)
    for writer in (reader, *writers):
        if message[:_HEADER] == single_object_header(writer):
            break
    else:
        raise AvroError(
            f"a message of {topic} begins with {message[:_HEADER].hex()}, the mark of no schema known here: "
            "add the schema that it was written with"
        )
    body = io.BytesIO(message[_HEADER:])
    try:
        record = fastavro.schemaless_reader(body, writer, reader)
    except Exception as error:  # fastavro raises whatever corrupt bytes lead it to
        raise AvroError(f"a message of {topic} cannot be decoded: {type(error).__name__}: {error}") from error
    if body.read(1):
        raise AvroError(f"a message of {topic} goes on behind its record: it is not a single record")
    return record


def single_object_header(schema: Schema) -> bytes:
    """The ten bytes before the body of every message of a parsed schema."""
    return _MARK + _fingerprint(json.dumps(schema))


@cache
def _fingerprint(schema: str) -> bytes:
    # fastavro spells the fingerprint in the order in which the specification puts it on the wire.
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(json.loads(schema)), "CRC-64-AVRO"))
