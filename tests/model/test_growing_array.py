"""Arrays that grow in place, and what they do where they cannot."""

import numpy as np
import pytest

from model.growing_array import GrowingArray


@pytest.mark.parametrize("rows", [100, 300_000])  # within a huge page, and several of them with something left over
def test_an_array_that_somebody_looks_at_is_copied_to_grow(rows):
    array = GrowingArray((2,), np.int64, rows)
    array.array[:] = np.arange(2 * rows).reshape(rows, 2)
    view = array.array
    array.reserve(rows + 1)
    assert len(array) == 2 * rows
    np.testing.assert_array_equal(array.array[:rows], view)
    assert not array.array[rows:].any()
    array.array[0] = -1
    assert view[0].tolist() == [0, 1]  # what is kept shows the past


@pytest.mark.parametrize("rows", [100, 300_000])
def test_an_array_that_nobody_looks_at_keeps_its_rows(rows):
    array = GrowingArray((2,), np.int64, rows)
    array.array[:] = np.arange(2 * rows).reshape(rows, 2)
    array.reserve(5 * rows)
    assert len(array) == 5 * rows
    np.testing.assert_array_equal(array.array[:rows], np.arange(2 * rows).reshape(rows, 2))
    assert not array.array[rows:].any()
