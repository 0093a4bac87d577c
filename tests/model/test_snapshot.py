"""Snapshot files: what is written is read back; what is broken is named."""

import numpy as np
import pyarrow as pa
import pytest

from model.snapshot import Increment, KeyedPart, SnapshotError, merge, read_increment, verify, write_increment


def part(keys, value, removed=()):
    rows = pa.table({"key": pa.array(keys, pa.int64()), "value": pa.array([value] * len(keys), pa.int64())})
    return KeyedPart(rows, np.array(removed, np.int64))


def rows_of(increment):
    table = increment.keyed["t"].rows
    return dict(zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True))


def test_what_is_written_is_read_back(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 4), np.int64), "flag": np.array([True])}
    entries = write_increment(tmp_path, "s", Increment({"t": part([1, 2], 5, [9])}, {"w": arrays}))
    back = read_increment(tmp_path, entries)
    assert rows_of(back) == {1: 5, 2: 5}
    assert back.keyed["t"].removed.tolist() == [9]
    for name, array in arrays.items():
        assert back.whole["w"][name].dtype == array.dtype
        np.testing.assert_array_equal(back.whole["w"][name], array)


def test_of_a_key_the_last_word_counts():
    increments = [part([1, 2, 3], 0), part([2], 1, [1]), part([1], 2, [3])]
    merged = merge([Increment({"t": p}) for p in increments])
    assert rows_of(merged) == {1: 2, 2: 1}


@pytest.mark.parametrize("harm", ["truncate", "alter", "remove"])
def test_a_file_that_is_not_whole_is_named(tmp_path, harm):
    entries = write_increment(tmp_path, "s", Increment({"t": part(range(1000), 5)}))
    path = tmp_path / entries[0].name
    data = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if harm == "alter" else data[:-1])
    for check in (read_increment, verify):
        with pytest.raises(SnapshotError, match=entries[0].name):
            check(tmp_path, entries)


def test_what_is_whole_passes(tmp_path):
    """A file of several of the pieces in which it is read."""
    arrays = {"a": np.random.default_rng(0).random(400_000)}
    entries = write_increment(tmp_path, "s", Increment({"t": part([1], 5)}, {"w": arrays}))
    assert max(entry.bytes for entry in entries) > 2 << 20
    verify(tmp_path, entries)
