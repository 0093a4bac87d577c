"""An Avro schema as a program that a compiled walk over encoded records follows, and where it leaves what it sees.

A walk reads every byte of a record, and so checks it, and notes the place or the value of each field: of the record's own in
one array, of the items of its first list of records in another. What lies deeper is checked and passed over.

Source: Apache Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from schemas.avro import Schema, load_schema

NULL, BOOLEAN, LONG, FLOAT, DOUBLE, BYTES, STRING, FIXED, ENUM, UNION, JUMP, BLOCK, NEXT, END = range(14)
#: Columns of an instruction: what it does, its two arguments, and where it notes what it has read.
OP, FIRST, SECOND, COLUMN = range(4)
#: Numbers of the columns of items begin here; a column of less than 0 is none.
ITEMS = 1 << 16
#: Lists within lists that a program may have.
DEEPEST = 16

_SIMPLE = {
    "null": NULL, "boolean": BOOLEAN, "int": LONG, "long": LONG, "float": FLOAT, "double": DOUBLE,
    "bytes": BYTES, "string": STRING,
}  # fmt: skip


@dataclass
class Program:
    """What a schema comes to.

    Attributes:
        code: int64[instructions, 4].
        fields, items: numbers of columns by the name of their field, of a record and of an item.
        listed: name of the field that holds the items, if there is one.
    """

    code: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    fields: dict[str, int] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    listed: str | None = None


@cache
def program_of(topic: str) -> Program:
    """The program of a topic's present schema."""
    writer = _Compiler()
    writer.record(load_schema(topic), level=0)
    writer.add(END)
    writer.program.code = np.array(writer.code, np.int64)
    return writer.program


class _Compiler:
    def __init__(self) -> None:
        self.program, self.code = Program(), list[list[int]]()
        self._named: dict[str, Schema] = {}

    def add(self, op: int, first: int = 0, second: int = 0, column: int = -1) -> int:
        self.code.append([op, first, second, column])
        return len(self.code) - 1

    def record(self, schema: Schema, level: int | None) -> None:
        """Fields one behind the other; those of `level` 0 and 1 get columns."""
        for each in schema["fields"]:
            name, kind = each["name"], each["type"]
            column = -1
            if level is not None:
                columns = (self.program.fields, self.program.items)[level]
                columns[name] = len(columns)
                column = columns[name] + ITEMS * level
            self._type(kind, column, name if level == 0 else None)

    def _type(self, schema: Schema, column: int, name: str | None) -> None:
        """One value; `name`: of the record's own field that it is."""
        if isinstance(schema, str) and schema in self._named:
            schema = self._named[schema]
        if isinstance(schema, list):
            self._union(schema, column)
            return
        kind = schema["type"] if isinstance(schema, dict) else schema
        if kind in ("record", "enum", "fixed"):
            self._named[schema["name"]] = schema
        if kind == "record":
            self.record(schema, level=None)
        elif kind == "enum":
            self.add(ENUM, len(schema["symbols"]), column=column)
        elif kind == "fixed":
            self.add(FIXED, schema["size"], column=column)
        elif kind in ("array", "map"):
            self._block(schema, column, name)
        else:
            self.add(_SIMPLE[kind], column=column)

    def _union(self, branches: list[Schema], column: int) -> None:
        self.add(UNION, len(branches))
        targets = [self.add(JUMP) for _ in branches]
        ends = []
        for target, branch in zip(targets, branches, strict=True):
            self.code[target][FIRST] = len(self.code)
            self._type(branch, column, None)
            ends.append(self.add(JUMP))
        for end in ends:
            self.code[end][FIRST] = len(self.code)

    def _block(self, schema: Schema, column: int, name: str | None) -> None:
        inner = schema["values"] if schema["type"] == "map" else schema["items"]
        listed = name is not None and self.program.listed is None and isinstance(inner, dict) and inner["type"] == "record"
        if listed:
            self.program.listed = name
        begin = self.add(BLOCK, column=column)
        self.code[begin][FIRST] = len(self.code)
        if schema["type"] == "map":
            self.add(STRING)
        if listed:
            self.record(inner, level=1)
        else:
            self._type(inner, -1, None)
        self.add(NEXT, begin + 1, int(listed))
        self.code[begin][SECOND] = len(self.code)
