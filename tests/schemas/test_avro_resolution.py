"""Schemas against schemas: refused is what no value could be read of, and nothing else; fastavro is the measure."""

import io
from collections.abc import Iterable

import fastavro
import pytest
from fastavro.utils import generate_one
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.avro import AvroError
from schemas.avro_resolution import check_resolution

PRIMITIVES = ["null", "boolean", "int", "long", "float", "double", "string", "bytes"]


def enum(*symbols: str, **more: str) -> dict:
    return {"type": "enum", "name": "E", "symbols": list(symbols), **more}


def record(name: str, **types: object) -> dict:
    return {"type": "record", "name": name, "fields": [{"name": key, "type": kind} for key, kind in types.items()]}


def array(items: object) -> dict:
    return {"type": "array", "items": items}


def fixed(size: int) -> dict:
    return {"type": "fixed", "name": "F", "size": size}


def why_refused(writer: object, reader: object) -> str | None:
    try:
        check_resolution(fastavro.parse_schema(writer), fastavro.parse_schema(reader))
    except AvroError as error:
        return str(error)
    return None


REFUSED = [
    ("string", "long", "string is no long"),
    ("long", "int", "long is no int"),
    (["null", "int"], "string", "int is no string"),
    ("int", ["null", "string"], "int is no string"),
    (["null", "boolean"], ["int", "string"], "boolean is no string"),
    (record("A", x="int"), record("B", x="int"), "record A is no record B"),
    (record("A", x="int"), record("A", x="int", y="int"), "field 'y' is missing, and has no default"),
    (record("A", x="boolean"), record("A", x="long"), "field 'x': boolean is no long"),
    (record("A", x=record("B", y="int")), record("A", x=record("B", y="string")), "field 'x': field 'y': int is no string"),
    (record("A", x=record("B", y="int"), z="B"), record("A", z=record("C", y="int")), "field 'z': record B is no record C"),
    (array("string"), array("int"), "string is no int"),
    (array("int"), {"type": "map", "values": "int"}, "array is no map"),
    (fixed(4), fixed(8), "fixed F is no fixed F"),
    (enum("A", "B"), enum("C"), "enum E has none of the symbols read here"),
    (enum("A"), record("E", x="int"), "enum E is no record E"),
    # What has no values has none that are skipped, either.
    (record("A", x="int", d=enum()), record("A", x="int"), "field 'd': enum E has no symbols"),
    (record("A", x="int", d=[]), record("A", x="int"), "field 'd': a union without branches"),
    (record("A", x="int", d=[record("B", y=[])]), record("A", x="int"), "field 'd': field 'y': a union"),
]
READ = [
    (["null", "string"], "string"),
    ("string", ["null", "string"]),
    ("int", ["null", "double"]),
    (["boolean", "bytes"], ["null", "string"]),
    (record("A", x="int", d=array(record("B", y=[]))), record("A", x="int")),
    (record("A", x="int", d=[enum(), "null"]), record("A", x="int")),
    (array(record("A", x="int")), array(record("A", x="string"))),
    (enum("A", "B"), enum("B", "C")),
    (enum("A"), enum("B", default="B")),
    (fixed(4), fixed(4)),
    (record("a.A", x="int"), record("b.A", x="int")),
    (record("Old", x="int"), {**record("New", x="int"), "aliases": ["Old"]}),
    (record("A", old="int"), {**record("A"), "fields": [{"name": "new", "type": "int", "aliases": ["old"]}]}),
    (record("A", x="int"), {**record("A"), "fields": [{"name": "y", "type": "int", "default": 3}]}),
    (record("A", x=enum("A"), y="E"), record("A", y=enum("A"), x="E")),
]


@pytest.mark.parametrize(("writer", "reader", "why"), REFUSED)
def test_what_can_never_be_read_is_refused_with_the_reason(writer, reader, why):
    assert why in str(why_refused(writer, reader))


@pytest.mark.parametrize(("writer", "reader"), READ)
def test_what_some_value_may_be_read_of_is_not_refused(writer, reader):
    assert why_refused(writer, reader) is None


@pytest.mark.parametrize("itself", ["A", ["null", "A"], array("A"), record("B", a="A"), {"type": "map", "values": "A"}])
def test_a_type_that_holds_itself_is_refused(itself):
    """Its bytes, not its schema, say how deep the decoder goes, whether the field is read or skipped."""
    assert "record A holds itself" in str(why_refused(record("A", x="int", d=itself), record("A", x="int")))


def test_types_that_share_types_are_walked_once():
    """Forty records, each twice in the next: a million million paths to the first."""
    shared = [record("A0", x="int"), *(record(f"A{i}", x=f"A{i - 1}", y=f"A{i - 1}") for i in range(1, 40))]
    writer = fastavro.parse_schema(record("A", **{f"f{i}": part for i, part in enumerate(shared)}))
    check_resolution(writer, fastavro.parse_schema(record("A", f39=record("A39", x=record("A38")))))


def shapes() -> st.SearchStrategy:
    """Types without names, which `schema_of` gives them by their place: those at one place are one type."""
    leaves = st.sampled_from([*PRIMITIVES, ("enum", "AB"), ("enum", "BC"), ("enum", "C")])

    def wider(inner: st.SearchStrategy) -> st.SearchStrategy:
        field = st.tuples(st.sampled_from("xyz"), inner, st.booleans())
        return st.one_of(
            st.tuples(st.just("array"), inner),
            st.tuples(st.just("union"), st.lists(inner, min_size=1, max_size=3)),
            st.tuples(st.just("record"), st.lists(field, max_size=3, unique_by=lambda field: field[0])),
        )

    return st.recursive(leaves, wider, max_leaves=6)


def schema_of(shape: object, place: str = "R") -> object:
    """The schema; the third part of a field is whether it is optional."""
    if isinstance(shape, str):
        return shape
    kind, parts = shape
    if kind == "enum":
        return {"type": "enum", "name": f"{place}_e", "symbols": list(parts)}
    if kind == "array":
        return array(schema_of(parts, f"{place}_i"))
    if kind == "union":
        return flat(schema_of(part, f"{place}_{i}") for i, part in enumerate(parts))
    fields = []
    for name, part, optional in parts:
        inner = schema_of(part, f"{place}_{name}")
        fields.append(
            {"name": name, "type": flat(["null", inner]), "default": None} if optional else {"name": name, "type": inner}
        )
    return {"type": "record", "name": place, "fields": fields}


def flat(branches: Iterable[object]) -> list[object]:
    return [part for branch in branches for part in (branch if isinstance(branch, list) else [branch])]


def some_value_is_read(writer: object, reader: object) -> bool:
    """Whether fastavro reads one of a few values."""
    for _ in range(5):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, writer, generate_one(writer))
        try:
            fastavro.schemaless_reader(io.BytesIO(out.getvalue()), writer, reader)
        except Exception:  # which of its errors depends on what does not fit
            continue
        return True
    return False


@settings(max_examples=300)
@given(shapes(), shapes())
def test_what_fastavro_reads_is_not_refused_and_what_it_cannot_is_unless_values_decide(wrote, reads):
    writer, reader = fastavro.parse_schema(schema_of(wrote)), fastavro.parse_schema(schema_of(reads))
    refused, read = why_refused(writer, reader) is not None, some_value_is_read(writer, reader)
    assert not (refused and read)
    if not any(choice in repr((wrote, reads)) for choice in ("array", "enum", "union", "True")):
        assert read is not refused
