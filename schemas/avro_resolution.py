"""Whether anything written with one Avro schema can be read with another, decided on the two schemas alone.

A file's header thus says once and for all whether the file is refused. What depends on the values (which branch
of a union, which symbol of an enum, an array that may be empty) is not decided here: a block will show it.

Source: Apache Avro 1.12 specification, "Schema Resolution".
"""

from collections.abc import Iterable, Iterator

from schemas.avro import AvroError, Schema

_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}
_NAMED = {"record", "enum", "fixed"}
_INNER = {"array": "items", "map": "values"}
_SKIPPED = None  # in a reader's place: nothing reads this, but it must be got over


def check_resolution(writer: Schema, reader: Schema) -> None:
    """Check that some value written with `writer` can be read with `reader`, both as `fastavro.parse_schema` gives them.

    Raises:
        AvroError: no value can, or `writer` has a type that holds itself; names the field and why.
    """
    why = _Resolution(writer, reader).why(writer, reader)
    if why is not None:
        raise AvroError(why)


def check_finite(schemas: Iterable[Schema]) -> None:
    """Check that none of these schemas, as `fastavro.parse_schema` gives them, has a type that holds itself.

    Raises:
        AvroError: one has; names it.
    """
    for schema in schemas:
        _define(schema, {}, ())


class _Resolution:
    def __init__(self, writer: Schema, reader: Schema) -> None:
        self._writers: dict[str, Schema] = {}
        self._readers: dict[str, Schema] = {}
        _define(writer, self._writers, ())
        _define(reader, self._readers, ())
        # By name: records that share records would else be walked once for every path to them.
        self._whys: dict[tuple[str, str | None], str | None] = {}

    def why(self, writer: Schema, reader: Schema) -> str | None:
        """Why no value of `writer` can be read as `reader`; None if some may be."""
        writer, reader = _resolved(writer, self._writers), _resolved(reader, self._readers)
        if isinstance(writer, list) or isinstance(reader, list):
            return self._why_no_branch(_branches(writer), _branches(reader))
        if reader is not _SKIPPED and (unlike := self._why_unlike(writer, reader)):
            return unlike
        kind = _kind(writer)
        if kind == "enum":
            return _why_no_symbol(writer, reader)
        if kind != "record":
            return None
        pair = writer["name"], None if reader is _SKIPPED else reader["name"]
        if pair not in self._whys:
            self._whys[pair] = self._why_no_record(writer, reader)
        return self._whys[pair]

    def _why_no_branch(self, writers: list[Schema], readers: list[Schema]) -> str | None:
        why: str | None = "a union without branches has no values"
        for writer in writers:
            for reader in readers:
                why = self.why(writer, reader)
                if why is None:
                    return None
        return why  # of the last branch, which says most: the first is null as a rule

    def _why_no_record(self, writer: Schema, reader: Schema) -> str | None:
        fields = [] if reader is _SKIPPED else reader["fields"]
        unwritten = {field["name"]: field for field in fields}
        readers = {alias: field for field in fields for alias in field.get("aliases", [])} | unwritten
        for field in writer["fields"]:
            read = readers.get(field["name"])
            why = self.why(field["type"], _SKIPPED if read is None else read["type"])
            if why is not None:
                return f"field {field['name']!r}: {why}"
            if read is not None:
                unwritten.pop(read["name"], None)
        for name, field in unwritten.items():
            if "default" not in field:
                return f"field {name!r} is missing, and has no default"
        return None

    def _why_unlike(self, writer: Schema, reader: Schema) -> str | None:
        """Why two types do not fit seen from outside; of items only this matters, as an array may be empty."""
        writer, reader = _resolved(writer, self._writers), _resolved(reader, self._readers)
        if isinstance(writer, list) or isinstance(reader, list):
            return None
        kind, wanted = _kind(writer), _kind(reader)
        unlike = f"{_shown(writer)} is no {_shown(reader)}"
        if kind != wanted:
            return None if wanted in _PROMOTIONS.get(kind, ()) else unlike
        if kind in _NAMED:
            names = {writer["name"], _unqualified(writer)} & {_unqualified(reader), *reader.get("aliases", [])}
            return None if names and (kind != "fixed" or writer["size"] == reader["size"]) else unlike
        inner = _INNER.get(kind)
        return self._why_unlike(writer[inner], reader[inner]) if inner else None


def _define(schema: Schema, definitions: dict[str, Schema], within: tuple[str, ...]) -> None:
    """Note the named types of a schema.

    A type that holds itself is refused even where its values could end: the decoder follows it as deep as the
    bytes say, on the C stack, and a few kilobytes of them would end the process.
    """
    if isinstance(schema, str):
        # Types are defined before they are used, so that every circle of them leads back into an open definition.
        if schema in within:
            raise AvroError(f"{_shown(definitions[schema])} holds itself: such types are not read here")
        return
    if isinstance(schema, dict) and _kind(schema) in _NAMED:
        definitions[schema["name"]] = schema
        within = (*within, schema["name"])
    for part in _parts(schema):
        _define(part, definitions, within)


def _parts(schema: Schema) -> Iterator[Schema]:
    if isinstance(schema, list):
        yield from schema
    elif _kind(schema) == "record":
        yield from (field["type"] for field in schema["fields"])
    elif inner := _INNER.get(_kind(schema)):
        yield schema[inner]


def _why_no_symbol(writer: Schema, reader: Schema) -> str | None:
    if not writer["symbols"]:
        return f"{_shown(writer)} has no symbols"
    if reader is _SKIPPED or "default" in reader or set(writer["symbols"]) & set(reader["symbols"]):
        return None
    return f"{_shown(writer)} has none of the symbols read here"


def _resolved(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    return definitions.get(schema, schema) if isinstance(schema, str) else schema


def _branches(schema: Schema) -> list[Schema]:
    return schema if isinstance(schema, list) else [schema]


def _kind(schema: Schema) -> str:
    kind: str = schema["type"] if isinstance(schema, dict) else schema
    return "record" if kind == "error" else kind


def _unqualified(schema: Schema) -> str:
    name: str = schema["name"]
    return name.rpartition(".")[2]


def _shown(schema: Schema) -> str:
    return f"{_kind(schema)} {schema['name']}" if _kind(schema) in _NAMED else _kind(schema)
