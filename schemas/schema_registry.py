"""Schemas of messages in Confluent's wire format, from a registry that speaks Confluent's REST interface."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import fastavro
import httpx2
from confluent_kafka.schema_registry import SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from fastavro.schema import SchemaParseException

from schemas.avro import AvroError
from schemas.avro_resolution import check_finite
from schemas.process import UserError

#: By which a registry says that it does not know a subject, a version or a number; a 404 alone may be another server's.
_UNKNOWN = (40401, 40402, 40403)
#: For which a number that the registry does not know is not asked for again: a topic may be full of them.
_UNKNOWN_S = 30.0
_ANSWER_S = 10.0
_NUMBERS = ("timeout", "cache.capacity", "cache.latest.ttl.sec", "max.retries", "retries.wait.ms", "retries.max.wait.ms")


class SchemaRegistry:
    """Parsed schemas by number; the client keeps those that it has been given.

    Args:
        settings: of the client, by the names that confluent-kafka gives them: `url`, `basic.auth.user.info`,
            `ssl.ca.location` and others.

    Raises:
        UserError: the settings do not go together.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._url = settings["url"]
        self._unknown: dict[int, float] = {}
        try:
            given = {name: float(value) if name in _NUMBERS else value for name, value in settings.items()}
            self._client = SchemaRegistryClient({"timeout": _ANSWER_S} | given)
        except (TypeError, ValueError, OSError) as error:
            raise UserError(f"--kafka_config: schema.registry: {error}; put it right, or leave it out") from error

    def __call__(self, number: int) -> Any:
        """The schema that a registry knows by a number.

        Raises:
            LookupError: it knows none, or one that messages cannot be read with.
            UserError: it does not answer, refuses to, or is no registry.
        """
        if time.monotonic() - self._unknown.get(number, -_UNKNOWN_S) < _UNKNOWN_S:
            raise LookupError(f"the schema registry has no schema {number}")
        try:
            found = self._client.get_schema(number)
            others = list(self._referred(found.references))
        except SchemaRegistryError as error:
            if error.error_code not in _UNKNOWN:
                remedy = "put schema.registry. in --kafka_config right"
                raise UserError(f"schema registry {self._url}: {error}; {remedy}") from error
            self._unknown[number] = time.monotonic()
            raise LookupError(f"the schema registry has no schema {number}") from error
        except (httpx2.HTTPError, ValueError) as error:  # an answer that is not JSON is of another server
            raise UserError(
                f"schema registry {self._url} does not answer ({error}): start it, or give its address in --kafka_config"
            ) from error
        if found.schema_type != "AVRO":
            raise LookupError(f"schema {number} of the schema registry is not Avro's, but of type {found.schema_type}")
        try:
            named: dict[str, Any] = {}
            parsed = [fastavro.parse_schema(json.loads(text), named_schemas=named) for text in (*others, found.schema_str)]
            check_finite(parsed)
        except (ValueError, SchemaParseException, AvroError, RecursionError) as error:
            raise LookupError(f"messages of schema {number} of the schema registry cannot be read: {error}") from error
        return parsed[-1]

    def _referred(self, references: list[SchemaReference]) -> Iterator[str]:
        """What a schema refers to, the deepest first."""
        for reference in references:
            other = self._client.get_version(reference.subject, reference.version).schema
            yield from self._referred(other.references)
            yield other.schema_str
