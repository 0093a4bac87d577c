"""Compiled walks over encoded Avro records, by the programs of `avro_program`.

They hold no lock of Python's, and give up on a record at the first byte that does not fit: whoever asked has a slower decoder
for those, which tells why.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from schemas.avro_program import (
    BLOCK,
    BOOLEAN,
    BYTES,
    COLUMN,
    DEEPEST,
    DOUBLE,
    END,
    ENUM,
    FIRST,
    FIXED,
    FLOAT,
    ITEMS,
    JUMP,
    LONG,
    NEXT,
    NULL,
    OP,
    SECOND,
    STRING,
    UNION,
)  # fmt: skip

BROKEN = -1
_WORD_BITS = 64


@njit(nogil=True, cache=True)
def _read_long(data, at, end):  # type: ignore[no-untyped-def]
    """A zig-zag varint, and where the next thing starts; `BROKEN` if there is none."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < _WORD_BITS:
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & np.uint64(0x7F)) << shift
        if byte < 0x80:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
        shift += np.uint64(7)
    return np.int64(0), BROKEN


@njit(nogil=True, cache=True)
def _is_utf8(data, at, end):  # type: ignore[no-untyped-def]
    """Whether bytes are UTF-8 as Python has it: the shortest form, no surrogates."""
    while at < end:
        lead = data[at]
        at += 1
        if lead < 0x80:
            continue
        if lead < 0xC2 or lead > 0xF4:
            return False
        more = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
        if end - at < more:
            return False
        low = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
        high = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
        if data[at] < low or data[at] > high:
            return False
        for i in range(at + 1, at + more):
            if data[i] < 0x80 or data[i] > 0xBF:
                return False
        at += more
    return True


@njit(nogil=True, cache=True)
def _note(column, first, second, row, item, fields, items):  # type: ignore[no-untyped-def]
    if column >= ITEMS:
        if items.size:
            items[column - ITEMS, item, 0] = first
            items[column - ITEMS, item, 1] = second
    elif column >= 0 and fields.size:
        fields[column, row, 0] = first
        fields[column, row, 1] = second


@njit(nogil=True, cache=True)
def _walk(code, data, at, end, row, item, fields, items):  # type: ignore[no-untyped-def]
    """One record: where it ends, or `BROKEN`; and the number of the next item."""
    left = np.empty(DEEPEST, np.int64)  # items to come in the block that each open list is in
    seen = np.empty(DEEPEST, np.int64)
    back = np.empty(DEEPEST, np.int64)  # where the list began in the program
    depth, pc = 0, 0
    while True:
        op, column = code[pc, OP], code[pc, COLUMN]
        pc += 1
        if op == END:
            return at, item
        if op == JUMP:
            pc = code[pc - 1, FIRST]
            continue
        if op == NULL:
            _note(column, 0, -1, row, item, fields, items)
            continue
        if op == NEXT:
            item += code[pc - 1, SECOND]
            seen[depth - 1] += 1
            left[depth - 1] -= 1
            if left[depth - 1]:
                pc = code[pc - 1, FIRST]
                continue
            pc = back[depth - 1]
            op, column = BLOCK, code[pc, COLUMN]
            pc += 1
        elif op == BLOCK:
            if depth == DEEPEST:
                return BROKEN, item
            seen[depth], back[depth] = 0, pc - 1
            depth += 1
        first, second = at, at
        if op in (FLOAT, DOUBLE, BOOLEAN, FIXED):
            size = 4 if op == FLOAT else 8 if op == DOUBLE else 1 if op == BOOLEAN else code[pc - 1, FIRST]
            at += size
            second = at
            if at > end or (op == BOOLEAN and data[first] > 1):
                return BROKEN, item
            _note(column, first, second, row, item, fields, items)
            continue
        value, at = _read_long(data, at, end)
        if at == BROKEN:
            return BROKEN, item
        if op == LONG:
            _note(column, value, 0, row, item, fields, items)
        elif op in (BYTES, STRING):
            if value < 0 or value > end - at or (op == STRING and not _is_utf8(data, at, at + value)):
                return BROKEN, item
            _note(column, at, at + value, row, item, fields, items)
            at += value
        elif op in (ENUM, UNION):
            if value < 0 or value >= code[pc - 1, FIRST]:
                return BROKEN, item
            if op == UNION:
                pc = code[pc + value, FIRST]
            else:
                _note(column, value, 0, row, item, fields, items)
        else:  # a block of a list, or its end
            if value < 0:
                value = -value
                _, at = _read_long(data, at, end)
                if at == BROKEN:
                    return BROKEN, item
            if value < 0 or value > end - at:
                return BROKEN, item
            if value:
                left[depth - 1] = value
                pc = code[pc - 1, FIRST]
            else:
                depth -= 1
                _note(column, item - seen[depth], item, row, item, fields, items)
                pc = code[pc - 1, SECOND]


@njit(nogil=True, cache=True)
def find_records(code, data, starts):  # type: ignore[no-untyped-def]
    """Fills in where each of a block's records starts, and where the last one ends; whether that is the block's end.

    Args:
        code: the program.
        data: uint8[B].
        starts: int64[N + 1].
    """
    none = np.empty((0, 0, 2), np.int64)
    at = 0
    for i in range(starts.size - 1):
        starts[i] = at
        at, _ = _walk(code, data, at, data.size, 0, 0, none, none)
        if at == BROKEN:
            return False
    starts[-1] = at
    return at == data.size


@njit(nogil=True, cache=True)
def check_records(code, data, starts, ends):  # type: ignore[no-untyped-def]
    """Which stretches of `data` are one record each: bool[N]."""
    none = np.empty((0, 0, 2), np.int64)
    whole = np.empty(starts.size, np.bool_)
    for i in range(starts.size):
        at, _ = _walk(code, data, starts[i], ends[i], 0, 0, none, none)
        whole[i] = at == ends[i]
    return whole


@njit(nogil=True, cache=True)
def note_fields(code, data, starts, ends, fields, items):  # type: ignore[no-untyped-def]
    """Notes what whole records hold; how many items they have in all.

    Args:
        fields: int64[columns, N, 2]: of a number its value and 0, of a float, bytes or a string where it starts and ends in
            `data`, of a list the numbers of its first item and of the first one behind it, of a null 0 and -1.
        items: the same of items, int64[columns, items, 2]. An empty array: nothing is noted of them.
    """
    item = 0
    for i in range(starts.size):
        _, item = _walk(code, data, starts[i], ends[i], i, item, fields, items)
    return item


@njit(nogil=True, cache=True)
def gather_bytes(data, places, offsets):  # type: ignore[no-untyped-def]
    """Stretches of `data` one behind the other; `places`: int64[N, 2], of each; `offsets`: int32[N + 1], of the result."""
    out = np.empty(offsets[-1], np.uint8)
    for i in range(places.shape[0]):
        start, at = places[i, 0], offsets[i]
        for j in range(offsets[i + 1] - at):
            out[at + j] = data[start + j]
    return out
