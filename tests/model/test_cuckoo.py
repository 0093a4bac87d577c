"""The index against a dict, through any sequence of operations."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cuckoo import MISS, CuckooIndex

KEYS = st.lists(st.integers(-40, 40) | st.integers(0, 2**63 - 1), max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["insert", "remove"]), KEYS), max_size=20))
def test_it_is_a_dict(operations):
    index, plain = CuckooIndex(4), {}
    for number, (name, keys) in enumerate(operations):
        array = np.array(keys, np.int64)
        if name == "insert":
            index.insert(array, np.full(array.size, number, np.int32))
            plain |= dict.fromkeys(keys, number)
        else:
            index.remove(array)
            for key in keys:
                plain.pop(key, None)
        assert len(index) == len(plain)
    asked = np.array([*plain, 41, 42], np.int64)
    assert index.find(asked).tolist() == [*plain.values(), MISS, MISS]
    keys, values = index.items()
    assert dict(zip(keys.tolist(), values.tolist(), strict=True)) == plain


def test_no_key_is_lost_while_it_grows_from_nothing():
    keys = np.random.default_rng(0).permutation(200_000).astype(np.int64) << 40
    index = CuckooIndex(1)
    for at in range(0, keys.size, 7_000):
        index.insert(keys[at : at + 7_000], np.arange(at, min(at + 7_000, keys.size), dtype=np.int32))
    assert len(index) == keys.size
    assert (index.find(keys) == np.arange(keys.size)).all()
    index.remove(keys[::2])
    assert len(index) == keys.size // 2
    assert (index.find(keys[::2]) == MISS).all()
    assert (index.find(keys[1::2]) == np.arange(1, keys.size, 2)).all()


def test_one_insert_larger_than_the_index_is_taken():
    keys = np.arange(100_000, dtype=np.int64)
    index = CuckooIndex(1)
    index.insert(keys, keys.astype(np.int32))
    assert (index.find(keys) == keys).all()
