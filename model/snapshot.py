"""State as files: parts that merge by key, parts that replace each other, checksummed and immutable.

An increment holds what changed since the one before it; merged oldest first, increments give the whole state. A base is
an increment from nothing. Parts are Arrow IPC files compressed with zstd, so that anything that reads Arrow reads them.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.files import sync_path
from schemas.process import UserError

# One thread: the others learn.
_COMPRESSION = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
_CHUNK = 1 << 20
_SEAL = "crc32"


class SnapshotError(UserError):
    """A file of a snapshot that is missing, truncated, altered, or of another model."""


@dataclass(frozen=True)
class KeyedPart:
    """Rows that changed and keys that left.

    Attributes:
        rows: table with an int64 column `key` of unique keys.
        removed: int64[], disjoint from the keys of `rows`.
    """

    rows: pa.Table
    removed: np.ndarray


@dataclass
class Increment:
    """What changed: `keyed` parts merge by key, `whole` parts (arrays by name) replace what was there."""

    keyed: dict[str, KeyedPart] = field(default_factory=dict)
    whole: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """A file that a manifest names."""

    name: str
    bytes: int
    crc32: int


def seal(fields: dict[str, Any]) -> str:
    """JSON of an object that tells if it is altered: what names files and their checksums needs one of its own."""
    return json.dumps(fields | {_SEAL: _crc32_of(fields)})


def unseal(text: str | bytes) -> dict[str, Any]:
    """What `seal` was given.

    Raises:
        ValueError: it is no such text, or altered.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict) or _SEAL not in fields:
        raise ValueError("no checksum in it")
    if fields.pop(_SEAL) != _crc32_of(fields):
        raise ValueError("altered since it was written")
    return fields


def _crc32_of(fields: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def write_increment(directory: str | os.PathLike[str], stem: str, increment: Increment) -> list[FileEntry]:
    """Write each part to a new file of its own, named by `stem`; durable when it returns.

    Raises:
        FileExistsError: a file of that name is there already.
        OSError: the disk refuses. Nothing is left of the increment then, nor after any other error: on a full disk half of
            it would stand in the way of the next one.
    """
    folder = Path(directory)
    entries: list[FileEntry] = []
    try:
        for name, part in increment.keyed.items():
            removed = pa.array(part.removed, pa.int64())
            table = part.rows.replace_schema_metadata({b"removed": removed.buffers()[1].to_pybytes()[: 8 * len(removed)]})
            entries.append(_write(folder / f"{stem}-{name}.keyed.arrow", [table]))
        for name, arrays in increment.whole.items():
            entries.append(_write(folder / f"{stem}-{name}.whole.arrow", [_arrays_to_table(arrays)]))
        sync_path(folder)
    except BaseException:
        for entry in entries:
            (folder / entry.name).unlink()
        raise
    return entries


def write_chunks(directory: str | os.PathLike[str], stem: str, name: str, chunks: Iterable[pa.Table]) -> FileEntry:
    """A keyed part to a new file, chunk by chunk as they come, of which at least one; durable when it returns.

    Raises:
        FileExistsError: a file of that name is there already.
        OSError: the disk refuses; nothing is left of the file then.
    """
    folder = Path(directory)
    entry = _write(folder / f"{stem}-{name}.keyed.arrow", chunks)
    sync_path(folder)
    return entry


def read_increment(directory: str | os.PathLike[str], entries: Iterable[FileEntry]) -> Increment:
    """Read and check what `write_increment` wrote.

    Raises:
        SnapshotError: naming the file and what is wrong with it.
    """
    increment = Increment()
    for entry in entries:
        table = _read(Path(directory) / entry.name, entry)
        stem, kind, _ = entry.name.rsplit(".", 2)
        name = stem.rsplit("-", 1)[1]
        if kind == "keyed":
            removed = np.frombuffer((table.schema.metadata or {}).get(b"removed", b""), np.int64)
            increment.keyed[name] = KeyedPart(table.replace_schema_metadata(None), removed)
        else:
            increment.whole[name] = _table_to_arrays(table)
    return increment


def verify(directory: str | os.PathLike[str], entries: Iterable[FileEntry]) -> None:
    """Check files as `read_increment` does, a piece at a time: memory does not grow with them.

    Raises:
        SnapshotError: naming the file and what is wrong with it.
    """
    for entry in entries:
        path = Path(directory) / entry.name
        size = crc = 0
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        except OSError as error:
            raise _unreadable(path, error) from error
        _check(path, entry, size, crc)


def merge(increments: Sequence[Increment]) -> Increment:
    """Increments, oldest first, as one: of a key the last word counts, and a removed key is gone unless it came back."""
    merged = Increment()
    for increment in increments:
        merged.whole |= increment.whole
    for name in dict.fromkeys(name for increment in increments for name in increment.keyed):
        merged.keyed[name] = _merge_keyed([i.keyed[name] for i in increments if name in i.keyed])
    return merged


def _merge_keyed(parts: list[KeyedPart]) -> KeyedPart:
    rows = pa.concat_tables([part.rows for part in parts])
    keys = [part.rows.column("key").to_numpy() for part in parts]
    # A word is a row or a removal; of each key, the last word counts.
    words = np.concatenate([x for part, k in zip(parts, keys, strict=True) for x in (part.removed, k)])
    row = np.full(words.size, -1, np.int64)
    at = first = 0
    for part, k in zip(parts, keys, strict=True):
        at += part.removed.size
        row[at : at + k.size] = np.arange(first, first + k.size)
        at, first = at + k.size, first + k.size
    _, last = np.unique(words[::-1], return_index=True)
    keep = row[words.size - 1 - last]
    return KeyedPart(rows.take(pa.array(np.sort(keep[keep >= 0]))).combine_chunks(), np.zeros(0, np.int64))


def matrix_column(array: np.ndarray) -> pa.Array:
    """A matrix [R, W], float32 or int64, as a column of fixed-size lists; of nulls if it has no columns."""
    if array.shape[1] == 0:
        return pa.nulls(len(array))
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).reshape(-1)), array.shape[1])


def matrix_of(column: pa.ChunkedArray) -> np.ndarray:
    """The inverse of `matrix_column`; float32 if it had no columns."""
    if pa.types.is_null(column.type):
        return np.zeros((len(column), 0), np.float32)
    width = column.type.list_size
    flat = column.combine_chunks().flatten() if len(column) else pa.array([], column.type.value_type)
    return flat.to_numpy(zero_copy_only=False).reshape(-1, width)


def _write(path: Path, tables: Iterable[pa.Table]) -> FileEntry:
    with path.open("x+b") as file:
        try:
            size = crc = 0
            ahead = iter(tables)
            first = next(ahead)
            with pa.ipc.new_file(file, first.schema, options=_COMPRESSION) as writer:
                for table in itertools.chain([first], ahead):
                    writer.write_table(table, max_chunksize=1 << 16)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            while chunk := file.read(_CHUNK):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        except BaseException:
            path.unlink()
            raise
    return FileEntry(path.name, size, crc)


def _read(path: Path, entry: FileEntry) -> pa.Table:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    _check(path, entry, len(data), zlib.crc32(data))
    return pa.ipc.open_file(pa.py_buffer(data)).read_all()


def _unreadable(path: Path, error: OSError) -> SnapshotError:
    return SnapshotError(f"{path}: {error.strerror}; restore the file, or use an older manifest")


def _check(path: Path, entry: FileEntry, size: int, crc: int) -> None:
    if size != entry.bytes:
        raise SnapshotError(f"{path}: {size} bytes instead of {entry.bytes}; restore the file, or use an older manifest")
    if crc != entry.crc32:
        raise SnapshotError(f"{path}: altered since it was written; restore the file, or use an older manifest")


def _arrays_to_table(arrays: dict[str, np.ndarray]) -> pa.Table:
    """One row an array: name, dtype, shape, bytes."""
    return pa.table(
        {
            "name": pa.array(arrays.keys(), pa.string()),
            "dtype": pa.array([array.dtype.str for array in arrays.values()], pa.string()),
            "shape": pa.array([json.dumps(array.shape) for array in arrays.values()], pa.string()),
            "data": pa.array([np.ascontiguousarray(array).tobytes() for array in arrays.values()], pa.large_binary()),
        }
    )


def _table_to_arrays(table: pa.Table) -> dict[str, np.ndarray]:
    return {
        row["name"]: np.frombuffer(row["data"], np.dtype(row["dtype"])).reshape(json.loads(row["shape"])).copy()
        for row in table.to_pylist()
    }
