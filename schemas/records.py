"""Records of a topic as they come: encoded, checked, and column by column where many are wanted at once."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import fastavro
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.avro import Record, encode_body, load_schema
from schemas.avro_kernels import gather_bytes, note_fields
from schemas.avro_program import program_of

_MOST_BYTES = (1 << 31) - 1  # of all values of a column: Arrow's offsets are int32


@dataclass(frozen=True, eq=False)
class Records:
    """Encoded records of a topic's present schema; iterating decodes them one by one.

    Attributes:
        topic: whose schema they have.
        data: uint8[B]: their bytes, and perhaps others between them.
        starts, ends: int64[N]: where each lies. They have been checked: each is one whole record.
    """

    topic: str
    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, topic: str, records: Sequence[Record] = ()) -> Self:
        """Encoded from decoded ones."""
        return cls.of_bodies(topic, [encode_body(topic, record) for record in records])

    @classmethod
    def of_bodies(cls, topic: str, bodies: Sequence[bytes]) -> Self:
        """From what `encode_body` makes."""
        ends = np.cumsum(np.fromiter(map(len, bodies), np.int64, len(bodies)))
        return cls(topic, np.frombuffer(b"".join(bodies), np.uint8), np.concatenate([[0], ends])[:-1], ends)

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """Those of all parts, of which there is at least one."""
        full = [part for part in parts if len(part)] or list(parts[:1])
        if len(full) == 1:
            return full[0]
        shifts = np.cumsum([0, *(part.data.size for part in full[:-1])])
        data = np.concatenate([part.data for part in full])
        data.flags.writeable = False  # as all are: kernels are compiled for one kind
        return cls(
            full[0].topic,
            data,
            np.concatenate([part.starts + shift for part, shift in zip(full, shifts, strict=True)]),
            np.concatenate([part.ends + shift for part, shift in zip(full, shifts, strict=True)]),
        )

    def __len__(self) -> int:
        return self.starts.size

    def __iter__(self) -> Iterator[Record]:
        schema = load_schema(self.topic)
        for i in range(len(self)):
            yield fastavro.schemaless_reader(io.BytesIO(self.body(i)), schema, None)

    def __getitem__(self, rows: slice) -> Records:
        starts = self.starts[rows]
        return self if starts.size == len(self) else Records(self.topic, self.data, starts, self.ends[rows])

    def body(self, row: int) -> bytes:
        """One record's bytes."""
        return self.data[self.starts[row] : self.ends[row]].tobytes()

    @cached_property
    def columns(self) -> Columns:
        """Their fields."""
        program = program_of(self.topic)
        fields = np.zeros((len(program.fields), len(self), 2), np.int64)
        none = np.zeros((0, 0, 2), np.int64)
        n = note_fields(program.code, self.data, self.starts, self.ends, fields, none)
        items = np.zeros((len(program.items), n, 2), np.int64)
        if n:
            note_fields(program.code, self.data, self.starts, self.ends, none, items)
        return Columns(self.data, program.fields, fields, Columns(self.data, program.items, items))


@dataclass(frozen=True, eq=False)
class Columns:
    """Fields by name: of N records, or of all their items.

    Attributes:
        data: uint8[B]: what `places` speaks of.
        names: number of each field.
        places: int64[fields, N, 2]: see `avro_kernels.note_fields`.
        items: of records, those of the items of their first list of records.
    """

    data: NDArray[np.uint8]
    names: dict[str, int]
    places: NDArray[np.int64]
    items: Columns | None = None

    def longs(self, name: str) -> NDArray[np.int64]:
        """Numbers: int64[N]; 0 for a null."""
        return self.places[self.names[name], :, 0]

    def counts(self, name: str) -> NDArray[np.int64]:
        """Lengths of lists: int64[N]."""
        places = self.places[self.names[name]]
        return places[:, 1] - places[:, 0]

    def doubles(self, name: str) -> pa.DoubleArray:
        """Numbers of a field that may be null."""
        values, present = self._gathered(name)
        out = np.zeros(present.size, np.float64)
        out[present] = values[1].view(np.float64)
        return pa.array(out, mask=~present)

    def strings(self, name: str) -> pa.StringArray:
        """Texts."""
        return self._arrow(name, pa.string())

    def binary(self, name: str) -> pa.BinaryArray:
        """Bytes of a field that may be null."""
        return self._arrow(name, pa.binary())

    def _arrow(self, name: str, kind: pa.DataType) -> pa.Array:
        (offsets, values), present = self._gathered(name)
        valid = None if present.all() else pa.array(present).buffers()[1]
        return pa.Array.from_buffers(kind, present.size, [valid, pa.py_buffer(offsets), pa.py_buffer(values)])

    def _gathered(self, name: str) -> tuple[tuple[NDArray[np.int32], NDArray[np.uint8]], NDArray[np.bool_]]:
        """A field's bytes with their offsets, nulls having none; and where there is a value, bool[N]."""
        places = self.places[self.names[name]]
        present = places[:, 1] >= 0
        sizes = np.where(present, places[:, 1] - places[:, 0], 0)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        if offsets[-1] > _MOST_BYTES:
            raise OverflowError(f"{offsets[-1]} bytes of {name} at once")
        narrow = offsets.astype(np.int32)
        return (narrow, gather_bytes(self.data, places, narrow)), present
