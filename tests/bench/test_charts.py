"""Where a chart puts the names of its lines."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.charts import _apart


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6).map(sorted), st.floats(0.01, 0.3))
def test_names_are_apart_and_as_near_as_can_be(values, room):
    placed = _apart(values, room)
    assert len(placed) == len(values)
    assert all(after - before >= room * (1 - 1e-9) for before, after in pairwise(placed))
    # Spread about their mean, groups keep it.
    assert sum(placed) == pytest.approx(sum(values))
    if all(after - before >= room for before, after in pairwise(values)):
        assert placed == pytest.approx(values)
