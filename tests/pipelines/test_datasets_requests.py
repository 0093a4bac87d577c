"""The typed batches: cutting a table into requests, and actions back into time order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.datasets.requests import (
    ActionBatch,
    PendingActions,
    object_array,
    request_spans,
    request_starts,
)


def actions(times: list[int]) -> ActionBatch:
    names = object_array((f"r{i}" for i in range(len(times))), len(times))
    return ActionBatch(names, names, names, names, np.array(times, dtype=np.int64))


@given(st.lists(st.lists(st.integers(0, 50), max_size=8), max_size=6))
def test_pending_actions_come_out_sorted_and_whole(batches: list[list[int]]):
    pending, out = PendingActions(), []
    for start, delays in enumerate(batches):
        # As in a stream: an action is never earlier than its own batch's requests.
        pending.push(actions([start * 10 + delay for delay in delays]))
        out += pending.pop_before(start * 10).time_ms.tolist()
    out += pending.pop_all().time_ms.tolist()
    assert out == sorted(start * 10 + delay for start, delays in enumerate(batches) for delay in delays)
    assert len(pending.pop_all()) == 0


def test_simultaneous_actions_keep_their_order():
    pending = PendingActions()
    pending.push(actions([5, 3, 5, 3]))
    assert pending.pop_all().request_id.tolist() == ["r1", "r3", "r0", "r2"]


@given(st.lists(st.integers(1, 4), max_size=20), st.integers(1, 7))
def test_spans_hold_whole_requests_and_every_row(sizes: list[int], requests: int):
    key = np.repeat(np.arange(len(sizes)), sizes)
    spans = list(request_spans(request_starts(key), len(key), requests))
    assert [row for span in spans for row in range(span.rows.start, span.rows.stop)] == list(range(len(key)))
    assert [int(size) for span in spans for size in np.diff(span.offsets)] == sizes
    assert [int(key[row]) for span in spans for row in span.first] == list(range(len(sizes)))
    assert all(1 <= len(span.first) <= requests for span in spans)


def test_bags_of_equal_length_stay_lists():
    assert object_array(([1, 2], [3, 4]), 2).tolist() == [[1, 2], [3, 4]]
    assert object_array(([1, 2], [3, 4]), 2).shape == (2,)
