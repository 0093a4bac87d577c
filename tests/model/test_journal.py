import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.journal import Journal

ROWS = 12


def touch(journal: Journal, rows: list[int], version: int) -> None:
    journal.touch(np.array(rows, np.int32), version, ROWS)


OPERATION = st.tuples(st.sampled_from(["touch", "touch", "remove", "trim"]), st.lists(st.integers(1, ROWS - 1), max_size=5))


@given(st.lists(OPERATION, max_size=30), st.integers(1, 31))
def test_readers_get_what_happened_since_their_version(operations, behind):
    journal, touched, removed, trimmed = Journal(4), [], [], 0
    for version, (name, items) in enumerate(operations, 1):
        if name == "touch":
            touch(journal, items, version)
            touched += [(version, item) for item in items]
        elif name == "remove":
            journal.remove(np.array(items, np.int64), version)
            removed += [(version, item) for item in items]
        else:
            trimmed = max(trimmed, version - 3)
            journal.trim(trimmed)
    since = max(trimmed, len(operations) - behind, 0)
    rows = journal.touched_since(since).tolist()
    assert sorted(rows) == sorted({item for version, item in touched if version > since})
    assert journal.removed_since(since).tolist() == sorted({item for version, item in removed if version > since})


def test_what_was_trimmed_is_refused():
    journal = Journal()
    for version in range(1, 6):
        touch(journal, [version], version)
    journal.trim(3)
    journal.trim(2)
    assert journal.touched_since(3).tolist() == [4, 5]
    for read in (journal.touched_since, journal.removed_since):
        with pytest.raises(ValueError, match="version 2"):
            read(2)


def test_it_stays_bounded_without_anybody_trimming():
    journal, rows, keys = Journal(), np.arange(1, ROWS, dtype=np.int32), np.arange(20, dtype=np.int64)
    touch(journal, [1], 1)
    journal.remove(np.array([99]), 1)
    for version in range(2, 5000):
        touch(journal, rows[1:].tolist(), version)
        journal.remove(keys, version)
    assert journal.nbytes < 500_000
    assert journal.touched_since(0).tolist() == rows.tolist()
    assert journal.touched_since(4998).tolist() == rows[1:].tolist()
    assert journal.touched_since(1).tolist() == rows[1:].tolist()
    assert journal.removed_since(0).tolist() == [*keys.tolist(), 99]
    assert journal.removed_since(1).tolist() == keys.tolist()
