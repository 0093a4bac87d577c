"""The index against a dict, through any sequence of operations, and where keys crowd its buckets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cuckoo import CuckooIndex
from model.cuckoo_kernels import STASHED
from tests.model.test_feature_ids import unmix

KEYS = st.lists((st.integers(-40, 40) | st.integers(0, 2**63 - 1)).filter(bool), max_size=30)
MISS = -1


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["insert", "remove"]), KEYS), max_size=20))
def test_it_is_a_dict(operations):
    index, plain, rows = CuckooIndex(4), {}, 0
    for name, keys in operations:
        if name == "insert":
            fresh = np.arange(rows, rows + len(keys), dtype=np.int32)
            rows += len(keys)
            index.insert(np.array(keys, np.int64), fresh)
            plain |= dict(zip(keys, fresh.tolist(), strict=True))
        else:
            removed = index.remove(np.array(keys, np.int64))
            assert removed.tolist() == [plain.pop(key, MISS) for key in keys]
        assert len(index) == len(plain)
    strangers = [key for key in range(-42, 43) if key and key not in plain]
    asked = np.array([*plain, *strangers], np.int64)
    assert index.find(asked).tolist() == [*plain.values(), *[MISS] * len(strangers)]
    assert index.keys[list(plain.values())].tolist() == list(plain)
    assert np.count_nonzero(index.keys) == len(plain)


def test_no_key_is_lost_while_it_grows_from_nothing():
    keys = (1 + np.random.default_rng(0).permutation(200_000).astype(np.int64)) << 40
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
    keys = np.arange(1, 100_001, dtype=np.int64)
    index = CuckooIndex(1)
    index.insert(keys, keys.astype(np.int32))
    assert (index.find(keys) == keys).all()


def test_what_cannot_be_put_is_named():
    index = CuckooIndex()
    index.insert(np.array([7]), np.array([3], np.int32))
    with pytest.raises(ValueError, match="key 0 pads"):
        index.insert(np.array([5, 0]), np.array([4, 5], np.int32))
    with pytest.raises(ValueError, match="row -1 is negative"):
        index.insert(np.array([5]), np.array([-1], np.int32))
    with pytest.raises(ValueError, match="row 3 belongs to key 7, not 8: remove that key first"):
        index.insert(np.array([8]), np.array([3], np.int32))
    assert index.find(np.array([5, 7, 8])).tolist() == [MISS, 3, MISS]


def crowded_keys() -> list[int]:
    """Keys that share both buckets with 28 others until the index has a million buckets, and their twins by the sign bit."""
    keys = [unmix(low << 20 | high << 49) for low in range(16) for high in range(1, 30)]
    return keys + [key - 2**63 for key in keys]


@pytest.mark.parametrize("seed", range(3))
def test_keys_that_share_both_buckets_go_to_the_stash_and_are_not_lost(seed):
    rng, keys = np.random.default_rng(seed), np.array(crowded_keys())
    index, plain, rows, most = CuckooIndex(4), {}, 0, 0
    for _ in range(60):
        some = rng.choice(keys, 40)
        if rng.random() < 0.6:
            fresh = np.arange(rows, rows + 40, dtype=np.int32)
            rows += 40
            index.insert(some, fresh)
            plain |= dict(zip(some.tolist(), fresh.tolist(), strict=True))
        else:
            assert index.remove(some).tolist() == [plain.pop(key, MISS) for key in some.tolist()]
        most = max(most, int(index.arrays().meta[STASHED]))
        assert len(index) == len(plain)
        assert index.find(keys).tolist() == [plain.get(key, MISS) for key in keys.tolist()]
    assert most > 100
    index.remove(keys)
    assert len(index) == int(index.arrays().meta[STASHED]) == 0
