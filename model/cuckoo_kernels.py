"""Kernels of the cuckoo index: look up, insert with displacement, remove, split.

Functions that run once a key are inlined and take plain arrays: handing over the bundle costs ten times a look-up
(each of its arrays is counted up and down atomically), which only the rare paths can afford.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .cuckoo_buckets import CELLS, LINE_WORDS, first_cell, free_cell, tag_of, tagged
from .feature_ids import mix63_jit
from .prefetch import AHEAD, prefetch, prefetch_item

NO_ROW = -1
MAX_LOAD = 0.75  # keys a cell from which the index grows: while half of the buckets are split, the others are far fuller
SIZE, STASHED, BUCKETS, LEVEL = 0, 1, 2, 3  # cells of IndexArrays.meta
DONE, NO_ROOM, ROW_TAKEN = 0, 1, 2
BLOCK = 256  # keys found at a time: what is then done with their rows finds these in the cache

_SEARCH = 256  # buckets looked at for a free cell
_SECOND = 28  # bits of the hash from which the second bucket is taken; the tag's are the top 8 of its 63
_TAG = 55
_POSITIVE = np.int64(0x7FFFFFFFFFFFFFFF)


class IndexArrays(NamedTuple):
    """The index as the kernels take it.

    words uint64[8 B], tags uint8[64 B] and rows int32[16 B] are the same bytes, a cache line for each of B buckets: 12 tags
    (0 = free cell), 4 bytes unused, 12 row numbers. A cell is the place of its row number in `rows`. stash int32[]; keys
    int64[R, K], a row's key in its column 0; meta int64[4] is (keys held, of which in the stash, buckets in use, `LEVEL`: the
    power of two that the buckets grow to next). Only the first `BUCKETS` of B buckets are in use.
    """

    tags: NDArray[np.uint8]
    words: NDArray[np.uint64]
    rows: NDArray[np.int32]
    stash: NDArray[np.int32]
    keys: NDArray[np.int64]
    meta: NDArray[np.int64]


@njit(inline="always")
def _hash(key: int) -> int:
    # A bijection on 63 bits: keys that differ only in their sign share buckets, and are told apart by comparison.
    return mix63_jit(np.int64(key) & _POSITIVE)


@njit(inline="always")
def _tag(h: int) -> int:
    return max(1, h >> _TAG)


@njit(inline="always")
def _bucket(h: int, buckets: int, level: int) -> int:
    """The bucket of a hash: by its low bits, one bit less where that bucket has not been split off yet."""
    at = h & (level - 1)
    return at if at < buckets else at - (level >> 1)


@njit(inline="always")
def _cell_in(tags, words, rows, keys, bucket, tag, key):  # type: ignore[no-untyped-def]
    """Cell of the key in one bucket, or -1."""
    found = np.int64(-1)
    if tagged(words, bucket, tag) >= 0:
        for cell in range(first_cell(bucket), first_cell(bucket) + CELLS):
            if tags[tag_of(cell)] == tag and keys[rows[cell], 0] == key:
                found = cell
    return found


@njit(nogil=True, cache=True)
def _clear_path(index: IndexArrays, first: int, second: int) -> np.int64:
    """Frees a cell of one of two full buckets by moving keys to their other buckets; returns it, or -1.

    Breadth first, so that the fewest keys move. No path visits a bucket twice, so its moves do not interfere.
    """
    nodes = np.empty(_SEARCH, np.int64)  # buckets
    parents = np.empty(_SEARCH, np.int32)
    cells = np.empty(_SEARCH, np.int64)  # the cell of the parent whose key would move here
    nodes[0], nodes[1] = first, second
    parents[0] = parents[1] = -1
    buckets, level = index.meta[BUCKETS], index.meta[LEVEL]
    head, tail = 0, 2
    while head < tail:
        hole = free_cell(index.words, nodes[head])
        if hole >= 0:
            node = np.int64(head)
            while parents[node] >= 0:
                index.tags[tag_of(hole)] = index.tags[tag_of(cells[node])]
                index.rows[hole] = index.rows[cells[node]]
                hole = cells[node]
                node = np.int64(parents[node])
            index.tags[tag_of(hole)] = 0
            return hole
        for cell in range(first_cell(nodes[head]), first_cell(nodes[head]) + CELLS):
            h = _hash(index.keys[index.rows[cell], 0])
            other = _bucket(h, buckets, level)
            if other == nodes[head]:
                other = _bucket(h >> _SECOND, buckets, level)
            ancestor = np.int64(head)
            while ancestor >= 0 and nodes[ancestor] != other:
                ancestor = np.int64(parents[ancestor])
            if ancestor < 0 and tail < _SEARCH:
                nodes[tail], parents[tail], cells[tail] = other, head, cell
                tail += 1
        head += 1
    return np.int64(-1)


@njit(nogil=True, cache=True)
def _place_by_force(index: IndexArrays, key: int, row: int) -> None:
    """Places a key whose buckets are both full; there is room in the stash."""
    h = _hash(key)
    buckets, level = index.meta[BUCKETS], index.meta[LEVEL]
    cell = _clear_path(index, _bucket(h, buckets, level), _bucket(h >> _SECOND, buckets, level))
    if cell >= 0:
        index.tags[tag_of(cell)] = _tag(h)
        index.rows[cell] = row
    else:
        index.stash[index.meta[STASHED]] = row
        index.meta[STASHED] += 1


@njit(nogil=True, cache=True)
def make_room(index: IndexArrays) -> bool:
    """Splits buckets until one more key surely finds a place; False when there are no more buckets, or the stash is full."""
    size, buckets = index.meta[SIZE], index.meta[BUCKETS]
    while size >= MAX_LOAD * CELLS * buckets:
        if buckets == index.words.size // LINE_WORDS:
            return False
        split_next(index)
        buckets += 1
    return index.meta[STASHED] < index.stash.size


@njit(nogil=True, cache=True)
def split_next(index: IndexArrays) -> None:
    """Splits one bucket in two: linear hashing (Litwin 1980), so that the index grows a bucket at a time.

    A key keeps its place among the cells: none is ever in another's way. One in its second bucket goes home to its first if
    that has a free cell by now.
    """
    tags, _, rows, _, keys, meta = index
    buckets = meta[BUCKETS]
    level = 2 * meta[LEVEL] if buckets == meta[LEVEL] else meta[LEVEL]
    old = buckets - (level >> 1)
    for cell in range(first_cell(old), first_cell(old) + CELLS):
        if tags[tag_of(cell)] != 0:
            h = _hash(keys[rows[cell], 0])
            home = _bucket(h, buckets, level)
            if home != old:
                hole = free_cell(index.words, home)
                if hole >= 0:
                    tags[tag_of(hole)] = tags[tag_of(cell)]
                    rows[hole] = rows[cell]
                    tags[tag_of(cell)] = 0
                    continue
                h >>= _SECOND
            if h & (level - 1) == buckets:
                target = cell + (buckets - old) * 16
                tags[tag_of(target)] = tags[tag_of(cell)]
                rows[target] = rows[cell]
                tags[tag_of(cell)] = 0
    meta[BUCKETS], meta[LEVEL] = buckets + 1, level


@njit(inline="always")
def locate(tags, words, rows, stash, keys, meta, key):  # type: ignore[no-untyped-def]
    """Cell of a key, or number of cells + its place in the stash, or -1."""
    h = _hash(key)
    tag = _tag(h)
    cell = _cell_in(tags, words, rows, keys, _bucket(h, meta[BUCKETS], meta[LEVEL]), tag, key)
    if cell < 0:
        cell = _cell_in(tags, words, rows, keys, _bucket(h >> _SECOND, meta[BUCKETS], meta[LEVEL]), tag, key)
    return cell if cell >= 0 else _stashed(rows, stash, keys, meta, key)


@njit(inline="always")
def _stashed(rows, stash, keys, meta, key):  # type: ignore[no-untyped-def]
    """Number of cells + a key's place in the stash, or -1."""
    cell = np.int64(-1)
    for i in range(meta[STASHED]):
        if keys[stash[i], 0] == key:
            cell = rows.size + i
    return cell


@njit(inline="always")
def has_room(words: NDArray[np.uint64], stash: NDArray[np.int32], meta: NDArray[np.int64]) -> bool:
    """Whether one more key surely finds a place; if not, `make_room` must come first."""
    return meta[STASHED] < stash.size and meta[SIZE] < MAX_LOAD * CELLS * meta[BUCKETS]


@njit(inline="always")
def place(index, tags, words, rows, meta, key, row):  # type: ignore[no-untyped-def]
    """Puts the row of a key that is not there into a cell of its first bucket or, if that is full, its second; there is room.

    Most keys lie in their first bucket, where their searches end: nine of ten in an index that was made as large as it is, and
    three of four in one that grew.
    """
    h = _hash(key)
    cell = free_cell(words, _bucket(h, meta[BUCKETS], meta[LEVEL]))
    if cell < 0:
        cell = free_cell(words, _bucket(h >> _SECOND, meta[BUCKETS], meta[LEVEL]))
    if cell >= 0:
        tags[tag_of(cell)] = _tag(h)
        rows[cell] = row
    else:
        _place_by_force(index, key, row)


@njit(nogil=True, cache=True)
def find_row(index: IndexArrays, key: int) -> np.int64:
    """Row of a key, or -1."""
    tags, words, rows, stash, keys, meta = index
    cell = locate(tags, words, rows, stash, keys, meta, key)
    if cell < 0:
        return np.int64(NO_ROW)
    return np.int64(rows[cell] if cell < rows.size else stash[cell - rows.size])


@njit(inline="always")
def remove_key(tags, words, rows, stash, keys, meta, key):  # type: ignore[no-untyped-def]
    """Removes a key; returns the row it had, or -1."""
    row = np.int64(NO_ROW)
    cell = locate(tags, words, rows, stash, keys, meta, key)
    if cell >= 0:
        if cell < rows.size:
            row = np.int64(rows[cell])
            tags[tag_of(cell)] = 0
        else:
            row = np.int64(stash[cell - rows.size])
            meta[STASHED] -= 1
            stash[cell - rows.size] = stash[meta[STASHED]]
        keys[row, 0] = 0
        meta[SIZE] -= 1
    return row


@njit(inline="always")
def prefetch_key(words, meta, key):  # type: ignore[no-untyped-def]
    """Fetches the buckets of a key that will be looked for soon."""
    h = _hash(key)
    prefetch_item(words, _bucket(h, meta[BUCKETS], meta[LEVEL]) * LINE_WORDS)
    prefetch_item(words, _bucket(h >> _SECOND, meta[BUCKETS], meta[LEVEL]) * LINE_WORDS)


@njit(inline="always")
def _prefetch_row(row_keys, row, words):  # type: ignore[no-untyped-def]
    """Fetches the first `words` words of 8 bytes of a record, which may begin anywhere in a line."""
    for word in range(0, words, LINE_WORDS):
        prefetch(row_keys, row, word)
    prefetch(row_keys, row, words - 1)


@njit(inline="always")
def find_block(index, words, rows, stash, row_keys, meta, keys, start, n, read, hashes, cells, found):  # type: ignore[no-untyped-def]
    """Rows of `n` keys from `start` on into `found`; -1 where there is none. `hashes` and `cells` int64[>= n] are scratch.

    A pipeline, from hash to first bucket, second bucket and row: each stage asks for the memory that the next will need, and
    the next comes to it some keys later, so that many misses are waited for at once. A search key by key takes 6 to 8 times
    as long at a million keys. Of a row found it fetches the first `read` words of 8 bytes.
    """
    buckets, level = meta[BUCKETS], meta[LEVEL]
    for k in range(n + 3 * AHEAD):
        if k < n:
            hashes[k] = _hash(keys[start + k])
            prefetch_item(words, _bucket(hashes[k], buckets, level) * LINE_WORDS)
        i = k - AHEAD
        if 0 <= i < n:
            cell = tagged(words, _bucket(hashes[i], buckets, level), _tag(hashes[i]))
            cells[i] = cell
            if cell >= 0:
                found[start + i] = rows[cell]
                _prefetch_row(row_keys, rows[cell], read)
            else:
                prefetch_item(words, _bucket(hashes[i] >> _SECOND, buckets, level) * LINE_WORDS)
        i -= AHEAD
        if 0 <= i < n and cells[i] < 0:
            cell = tagged(words, _bucket(hashes[i] >> _SECOND, buckets, level), _tag(hashes[i]))
            cells[i] = cell
            if cell >= 0:
                found[start + i] = rows[cell]
                _prefetch_row(row_keys, rows[cell], read)
        i -= AHEAD
        if i >= 0:
            if cells[i] < 0:
                cell = _stashed(rows, stash, row_keys, meta, keys[start + i])
                found[start + i] = stash[cell - rows.size] if cell >= 0 else NO_ROW
            elif row_keys[found[start + i], 0] != keys[start + i]:
                found[start + i] = find_row(index, keys[start + i])


@njit(nogil=True, cache=True)
def find_rows(index: IndexArrays, keys: NDArray[np.int64], found: NDArray[np.int32]) -> None:
    """Rows of keys into `found`; -1 where there is none."""
    words, rows, stash, row_keys, meta = index.words, index.rows, index.stash, index.keys, index.meta
    hashes, cells = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    for start in range(0, keys.size, BLOCK):
        n = min(BLOCK, keys.size - start)
        find_block(index, words, rows, stash, row_keys, meta, keys, start, n, 1, hashes, cells, found)


@njit(nogil=True, cache=True)
def put_rows(index: IndexArrays, new_keys: NDArray[np.int64], new_rows: NDArray[np.int32], at: int) -> tuple[int, int]:
    """Inserts keys from position `at` on, or changes their rows; returns how far it came and why it stopped."""
    tags, words, rows, stash, keys, meta = index
    for i in range(at, new_keys.size):
        key, row = new_keys[i], new_rows[i]
        if keys[row, 0] == key:
            continue
        if keys[row, 0] != 0:
            return i, ROW_TAKEN
        cell = locate(tags, words, rows, stash, keys, meta, key)
        if cell < 0:
            if not has_room(words, stash, meta) and not make_room(index):
                return i, NO_ROOM
            keys[row, 0] = key
            meta[SIZE] += 1
            place(index, tags, words, rows, meta, key, row)
            continue
        if cell < rows.size:
            keys[rows[cell], 0] = 0
            rows[cell] = row
        else:
            keys[stash[cell - rows.size], 0] = 0
            stash[cell - rows.size] = row
        keys[row, 0] = key
    return new_keys.size, DONE


@njit(nogil=True, cache=True)
def remove_keys(index: IndexArrays, keys: NDArray[np.int64], removed: NDArray[np.int32]) -> None:
    """Removes keys; the rows they had into `removed`, -1 where there was none."""
    tags, words, rows, stash, row_keys, meta = index
    for i in range(keys.size):
        removed[i] = remove_key(tags, words, rows, stash, row_keys, meta, keys[i])


@njit(nogil=True, cache=True)
def unstash(index: IndexArrays, stashed: NDArray[np.int32]) -> None:
    """Places the keys of rows taken out of the stash; those that still find no cell go back to it."""
    for row in stashed:
        place(index, index.tags, index.words, index.rows, index.meta, index.keys[row, 0], row)
