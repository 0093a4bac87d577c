"""Schemas of messages in Confluent's wire format, from a registry that speaks Confluent's REST interface."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import fastavro
import httpx2
from confluent_kafka.schema_registry import SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from schemas.process import UserError

_NOT_FOUND = 404
#: For which a number that the registry does not know is not asked for again: a topic may be full of them.
_UNKNOWN_S = 30.0


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
            self._client = SchemaRegistryClient({name: int(x) if x.isdigit() else x for name, x in settings.items()})
        except (TypeError, ValueError, OSError) as error:
            raise UserError(f"--kafka_config: schema.registry: {error}; put it right, or leave it out") from error

    def __call__(self, number: int) -> Any:
        """The schema that a registry knows by a number.

        Raises:
            LookupError: it knows none, or one that is not Avro's.
            UserError: it does not answer, or refuses to.
        """
        if time.monotonic() - self._unknown.get(number, -_UNKNOWN_S) < _UNKNOWN_S:
            raise LookupError(f"the schema registry has no schema {number}")
        try:
            found = self._client.get_schema(number)
            if found.schema_type != "AVRO":
                raise LookupError(f"schema {number} of the schema registry is not Avro's, but of type {found.schema_type}")
            named: dict[str, Any] = {}
            self._refer(found.references, named)
            return fastavro.parse_schema(json.loads(found.schema_str), named_schemas=named)
        except SchemaRegistryError as error:
            if error.http_status_code != _NOT_FOUND:
                raise UserError(
                    f"schema registry {self._url}: {error}; put schema.registry. in --kafka_config right"
                ) from error
            self._unknown[number] = time.monotonic()
            raise LookupError(f"the schema registry has no schema {number}") from error
        except httpx2.HTTPError as error:
            raise UserError(
                f"schema registry {self._url} does not answer ({error}): start it, or give its address in --kafka_config"
            ) from error
        except fastavro.schema.SchemaParseException as error:
            raise LookupError(f"schema {number} of the schema registry is none of Avro's: {error}") from error

    def _refer(self, references: list[SchemaReference], named: dict[str, Any]) -> None:
        """Parse what a schema refers to, the deepest first."""
        for reference in references:
            other = self._client.get_version(reference.subject, reference.version).schema
            self._refer(other.references, named)
            fastavro.parse_schema(json.loads(other.schema_str), named_schemas=named)
