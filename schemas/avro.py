"""Avro by topic: one parsed schema each, record bodies, and single-object encoding for messages."""

import io
import json
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
_CONFLUENT_MARK = b"\0"


class AvroError(UserError):
    """Bytes that are not what their topic's schema says."""


@cache
def load_schema(topic: str) -> Schema:
    """Parsed schema of a topic: `features`, `actions`, `parameters`, `dead_letters` or `examples`."""
    return fastavro.parse_schema(json.loads((Path(__file__).parent / _FILES[topic]).read_text("utf-8")))


def plain_schema(schema: Schema) -> Schema:
    """A schema as JSON has it, without what fastavro notes in it when parsing, and without logical types.

    No schema of ours has any, but fastavro would make a date of a long wherever its writer says that it is one.
    """
    if isinstance(schema, dict):
        return {key: plain_schema(value) for key, value in schema.items() if not key.startswith("__") and key != "logicalType"}
    return [plain_schema(part) for part in schema] if isinstance(schema, list) else schema


def encode_body(topic: str, record: Record) -> bytes:
    """A record without any header."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, load_schema(topic), record)
    return out.getvalue()


def encode_single(topic: str, record: Record) -> bytes:
    """Avro's single-object encoding: C3 01, the schema's CRC-64-AVRO fingerprint little-endian, the body."""
    return single_object_header(load_schema(topic)) + encode_body(topic, record)


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
