"""Messages of a topic, as Kafka hands them out: a header that names the schema they were written with, and a record."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import fastavro
import numpy as np
from numpy.typing import NDArray

from schemas.avro import AvroError, Record, Schema, encode_body, load_schema, plain_schema, single_object_header
from schemas.avro_kernels import check_records
from schemas.avro_program import program_of
from schemas.records import Records

_HEADER = 10  # of single-object encoding: a mark and the schema's fingerprint
_CONFLUENT_MARK = b"\0"
_CONFLUENT_HEADER = 5  # of Confluent's wire format: a mark and the schema's number


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
        #: Headers of messages whose bodies are as the present schema has them.
        self._present: dict[bytes, bool] = {single_object_header(self._reader): True}

    def decode(self, message: bytes) -> Record:
        """The record of a message.

        Raises:
            AvroError: the message is of a schema that is not known, or does not hold what its schema says.
        """
        header = _header_of(message)
        writer, body = self._writer_of(header), io.BytesIO(message[len(header) :])
        try:
            record = fastavro.schemaless_reader(body, writer, self._reader)
        except Exception as error:  # fastavro raises whatever corrupt bytes lead it to
            raise AvroError(f"a message of {self._topic} cannot be decoded: {type(error).__name__}: {error}") from error
        if body.read(1):
            raise AvroError(f"a message of {self._topic} goes on behind its record: it is not a single record")
        return record

    def decode_all(self, messages: Sequence[bytes]) -> tuple[Records, dict[int, AvroError]]:
        """The records of many messages, and by message, why it has none."""
        sizes = np.fromiter(map(len, messages), np.int64, len(messages))
        data = np.frombuffer(b"".join(messages), np.uint8)
        ends = np.cumsum(sizes)
        starts = ends - sizes + self._known_headers(messages)
        whole = starts > ends - sizes
        whole[whole] = check_records(program_of(self._topic).code, data, starts[whole], ends[whole])
        if whole.all():
            return Records(self._topic, data, starts, ends), {}
        errors: dict[int, AvroError] = {}
        bodies = []
        for i, message in enumerate(messages):
            try:
                bodies.append(message[starts[i] - ends[i] :] if whole[i] else encode_body(self._topic, self.decode(message)))
            except AvroError as error:
                errors[i] = error
        return Records.of_bodies(self._topic, bodies), errors

    def _known_headers(self, messages: Sequence[bytes]) -> NDArray[np.int64]:
        """By message, the size of a header that says that the present schema's record follows; 0: another header."""
        headers = [_header_of(message) for message in messages]
        for header in set(headers).difference(self._present):
            try:
                self._present[header] = plain_schema(self._writer_of(header)) == plain_schema(self._reader)
            except AvroError:  # said of each such message, when it is decoded by itself
                continue
        return np.array([len(header) if self._present.get(header) else 0 for header in headers], np.int64)

    def _writer_of(self, header: bytes) -> Schema:
        writer = self._writers.get(header)
        if writer is None:
            writer = self._writers[header] = self._look_up(header)
        return writer

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


def _header_of(message: bytes) -> bytes:
    return message[: _CONFLUENT_HEADER if message[:1] == _CONFLUENT_MARK else _HEADER]
