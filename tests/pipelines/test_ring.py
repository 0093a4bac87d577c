"""A ring of rows: what is written is read, and what is let go of takes no memory."""

import ctypes
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import ring
from pipelines.ring import MIN_ROWS, Ring, capacity_for

COLUMNS = (((3,), np.int64), ((2, 2), np.float32), ((), bool), ((0, 4), np.float32))
STRETCH = ring._STRETCH


def values(first, last):
    """Of rows, each by its number."""
    n = np.arange(first, last)
    return [
        n[:, None] * 3 + np.arange(3),
        np.broadcast_to(n[:, None, None], (n.size, 2, 2)).astype(np.float32),
        n % 2 == 0,
        np.zeros((n.size, 0, 4), np.float32),
    ]


def assert_rows(rows, first, last):
    for found, expected in zip(rows.rows(first, last), values(first, last), strict=True):
        np.testing.assert_array_equal(found, expected)


def resident(rows):
    """Bytes of its columns that are in memory, as the kernel tells."""
    pages = 0
    for array in rows.arrays:
        told = (ctypes.c_ubyte * -(-array.nbytes // mmap.PAGESIZE))()
        if ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), told):
            raise OSError(ctypes.get_errno(), "mincore")
        pages += int((np.frombuffer(told, np.uint8) & 1).sum())
    return pages * mmap.PAGESIZE


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 9_000)), max_size=25))
def test_rows_are_what_was_written_however_they_come_and_go(steps):
    rows, first, last = Ring(COLUMNS, MIN_ROWS), 0, 0
    for come, go in steps:
        if last - first + come > rows.capacity:
            rows = rows.relaid(capacity_for(last - first + come), first, last)
        rows.put(last, values(last, last + come))
        last += come
        first = min(first + go, last)
        rows.let_go(first, last)
        assert_rows(rows, first, last)
        assert last - first <= rows.nbytes(last) // rows.row_nbytes <= min(last - first + 2 * STRETCH, rows.capacity)


def test_a_ring_that_is_full_keeps_the_newest_rows():
    """They lie where the oldest have just been let go of."""
    rows = Ring(COLUMNS, 4 * STRETCH)
    rows.put(0, values(0, 4 * STRETCH))
    for at in range(0, 40 * STRETCH, STRETCH // 2):
        rows.let_go(at + STRETCH // 2, at + 4 * STRETCH)
        last = at + 4 * STRETCH + STRETCH // 2
        rows.put(last - STRETCH // 2, values(last - STRETCH // 2, last))
        rows.let_go(at + STRETCH // 2, last)
        assert_rows(rows, at + STRETCH // 2, last)


def test_memory_is_that_of_the_rows_whatever_the_capacity():
    rows = Ring(COLUMNS, 256 * STRETCH)
    assert resident(rows) < 64 << 10
    rows.put(0, values(0, 40 * STRETCH))
    held = resident(rows)
    assert held == pytest.approx(rows.nbytes(40 * STRETCH), rel=0.02)
    rows.let_go(30 * STRETCH, 40 * STRETCH)
    assert resident(rows) == pytest.approx(held / 4, rel=0.05)
    assert rows.nbytes(40 * STRETCH) == 10 * STRETCH * rows.row_nbytes
    for last in range(40 * STRETCH, 700 * STRETCH, 10 * STRETCH):  # around, more than twice
        rows.put(last, values(last, last + 10 * STRETCH))
        rows.let_go(last, last + 10 * STRETCH)
    assert resident(rows) < held / 3


def test_a_ring_laid_out_anew_gives_back_what_it_has_copied():
    rows = Ring(COLUMNS, 64 * STRETCH)
    rows.put(0, values(0, 64 * STRETCH))
    larger = rows.relaid(128 * STRETCH, 0, 64 * STRETCH)
    assert_rows(larger, 0, 64 * STRETCH)
    assert resident(rows) < 64 << 10


@pytest.mark.parametrize(
    ("rows", "capacity"), [(0, MIN_ROWS), (MIN_ROWS - 1, MIN_ROWS), (MIN_ROWS, 2 * MIN_ROWS), (5000, 8192)]
)
def test_a_ring_has_room_for_its_rows(rows, capacity):
    assert capacity_for(rows) == capacity
