"""Avro by topic: one parsed schema each, bodies, and single-object encoding."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from schemas.process import UserError

_FILES = {"features": "features.avsc", "actions": "actions.avsc", "parameters": "delta.avsc"}
_MARK = b"\xc3\x01"


class AvroError(UserError):
    """Bytes that are not what their topic's schema says."""


@cache
def schema(topic: str) -> Any:
    """Parsed schema of a topic: ``features``, ``actions`` or ``parameters``."""
    return fastavro.parse_schema(json.loads((Path(__file__).parent / _FILES[topic]).read_text()))


def encode_body(topic: str, record: dict[str, Any]) -> bytes:
    """A record without any header."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema(topic), record)
    return out.getvalue()


def encode_single(topic: str, record: dict[str, Any]) -> bytes:
    """Avro's single-object encoding: C3 01, the schema's CRC-64-AVRO fingerprint little-endian, the body."""
    return _MARK + _fingerprint(topic) + encode_body(topic, record)


def decode_single(topic: str, data: bytes) -> dict[str, Any]:
    """The inverse of :func:`encode_single`.

    Raises:
        AvroError: if the bytes are of another schema or cut short.
    """
    if data[:10] != _MARK + _fingerprint(topic):
        raise AvroError(f"a message of {topic} is not of its present schema; decode it with the schema it was written with")
    try:
        return dict(fastavro.schemaless_reader(io.BytesIO(data[10:]), schema(topic), None))
    except (EOFError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise AvroError(f"a message of {topic} cannot be decoded: {error}") from error


@cache
def _fingerprint(topic: str) -> bytes:
    # fastavro gives the fingerprint as hex in the order in which the specification puts it on the wire.
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(schema(topic)), "CRC-64-AVRO"))
