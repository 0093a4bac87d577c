import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.journal import Journal

ROWS = 12


class Touched:
    """A journal, and what its rows keep of their last touch."""

    def __init__(self) -> None:
        self.journal, self.touched = Journal(), np.zeros(ROWS, np.int32)

    def touch(self, rows: list[int], version: int) -> None:
        first = np.array([row for row in dict.fromkeys(rows) if self.touched[row] != version], np.int32)
        self.touched[first] = version
        self.journal.mention(first, version, self.touched, ROWS)

    def since(self, version: int) -> list[int]:
        return self.journal.touched_since(version, self.touched).tolist()


OPERATION = st.tuples(st.sampled_from(["touch", "touch", "remove", "trim"]), st.lists(st.integers(1, ROWS - 1), max_size=5))


@given(st.lists(OPERATION, max_size=30), st.integers(1, 31))
def test_readers_get_what_happened_since_their_version(operations, behind):
    rows, touched, removed, trimmed = Touched(), [], [], 0
    journal = rows.journal
    for version, (name, items) in enumerate(operations, 1):
        if name == "touch":
            rows.touch(items, version)
            touched += [(version, item) for item in items]
        elif name == "remove":
            journal.remove(np.array(items, np.int64), version)
            removed += [(version, item) for item in items]
        else:
            trimmed = max(trimmed, version - 3)
            journal.trim(trimmed)
    since = max(trimmed, len(operations) - behind, 0)
    assert sorted(rows.since(since)) == sorted({item for version, item in touched if version > since})
    late = [item for version, item in removed if version > since]
    assert journal.removed_since(since).tolist() == list(dict.fromkeys(late[::-1]))[::-1]


def test_what_was_trimmed_is_refused():
    rows = Touched()
    journal = rows.journal
    for version in range(1, 6):
        rows.touch([version], version)
    journal.trim(3)
    journal.trim(2)
    assert rows.since(3) == [4, 5]
    for read in (rows.since, journal.removed_since):
        with pytest.raises(ValueError, match="version 2"):
            read(2)


def test_it_stays_bounded_without_anybody_trimming():
    rows, keys = Touched(), np.arange(20, dtype=np.int64)
    journal = rows.journal
    rows.touch([1], 1)
    journal.remove(np.array([99]), 1)
    for version in range(2, 5000):
        rows.touch(list(range(2, ROWS)), version)
        journal.remove(keys, version)
    assert journal.nbytes < 500_000
    assert rows.since(0) == list(range(1, ROWS))
    assert rows.since(4998) == list(range(2, ROWS))
    assert rows.since(1) == list(range(2, ROWS))
    assert journal.removed_since(0).tolist() == [99, *keys.tolist()]
    assert journal.removed_since(1).tolist() == keys.tolist()
