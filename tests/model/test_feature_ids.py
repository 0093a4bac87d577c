"""Feature ids and hashes: the golden vectors, known FarmHash values, and one mixer in three languages."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from model.feature_ids import (
    MISSING_VALUE,
    SLOT_SHIFT,
    VALUE_MASK,
    default_key,
    hash_strings,
    mix63,
    mix63_jit,
    mix63_tf,
    pack_ids,
)
from model.featuriser import Featuriser
from schemas.config import FeatureConfig, Head, Slot

GOLDEN = json.loads((Path(__file__).parents[2] / "schemas" / "golden_ids.json").read_text(encoding="utf-8"))
_63_BITS = (1 << 63) - 1
keys = st.lists(st.integers(0, _63_BITS), min_size=1, max_size=20)


@njit
def mix_all(x):
    mixed = np.empty_like(x)
    for i in range(x.size):
        mixed[i] = mix63_jit(x[i])
    return mixed


def unmix(mixed: int) -> int:
    """The inverse of mix63 in Python's own integers: x ^ (x >> 32) undoes itself below 2^64."""
    x = mixed ^ (mixed >> 32)
    for multiplier in (0x34CEB9FE1A85EC53, 0x3F51AFD7ED558CCD):
        x = x * pow(multiplier, -1, 1 << 63) & _63_BITS
        x ^= x >> 32
    return x


def test_strings_hash_to_the_golden_vectors():
    texts = [vector["text"] for vector in GOLDEN["strings"]]
    assert {"", "é"} < set(texts)
    assert max(map(len, texts)) > 64, "FarmHash treats strings beyond 64 bytes apart"
    assert hash_strings(texts).tolist() == [vector["hash48"] for vector in GOLDEN["strings"]]
    assert [str(h) for h in hash_strings(texts, bits=62)] == [v["hash62"] for v in GOLDEN["strings"]]


@pytest.mark.parametrize(
    ("text", "fingerprint"),
    [
        ("", 0x9AE16A3B2F90404F),  # k2 of farmhash.cc
        # The example of BigQuery's FARM_FINGERPRINT, which prints signed numbers.
        ("1footrue", -1541654101129638711),
        ("2applefalse", 2794438866806483259),
        ("3true", -4880158226897771312),
    ],
)
def test_the_hash_is_the_low_bits_of_farmhash_fingerprint64(text: str, fingerprint: int):
    assert hash_strings([text]).tolist() == [fingerprint % 2**48]
    assert hash_strings([text], bits=62).tolist() == [fingerprint % 2**62]


def test_strings_and_their_utf8_bytes_hash_alike():
    texts = ["", "é", "日本語", "a\x00b"]
    arrays = (texts, [text.encode() for text in texts], np.array(texts, object))
    hashes = [hash_strings(array) for array in arrays]
    np.testing.assert_array_equal(hashes[0], hashes[1])
    np.testing.assert_array_equal(hashes[0], hashes[2])
    assert len(set(hashes[0].tolist())) == len(texts)


def test_no_strings_have_no_hashes():
    assert hash_strings([]).shape == (0,)
    assert hash_strings([]).dtype == np.int64


def test_the_mixer_gives_the_golden_vectors():
    ids = np.array([int(vector["id"]) for vector in GOLDEN["mix63"]], np.int64)
    assert [str(mixed) for mixed in mix63(ids)] == [vector["mixed"] for vector in GOLDEN["mix63"]]


@settings(max_examples=200)
@given(keys)
def test_the_mixer_is_one_bijection_everywhere(given_keys: list[int]):
    x = np.array(given_keys, np.int64)
    mixed = mix63(x)
    assert (mixed >= 0).all()
    assert [unmix(each) for each in mixed.tolist()] == given_keys
    np.testing.assert_array_equal(mix_all(x), mixed)
    np.testing.assert_array_equal(mix63_tf(tf.constant(x)), mixed)


def test_the_mixer_spreads_packed_ids_over_buckets():
    buckets = 1 << 12
    ids = np.concatenate([pack_ids(slot, np.arange(buckets)) for slot in range(1, 17)])
    load = np.bincount(mix63(ids) & (buckets - 1), minlength=buckets)
    # 16 a bucket on average; of a fair throw the fullest of 4,096 holds more than 50 with p < 1e-6.
    assert load.max() <= 50
    assert np.var(load) < 1.2 * 16


def test_an_id_holds_its_slot_and_value():
    values = np.array([0, 1, VALUE_MASK], np.int64)
    for slot in (1, 300, 32767):
        ids = pack_ids(slot, values)
        assert ids.dtype == np.int64
        assert (ids > 0).all()
        assert (ids >> SLOT_SHIFT == slot).all()
        np.testing.assert_array_equal(ids & VALUE_MASK, values)


def test_default_keys_are_reserved_negative_keys_of_their_own():
    every = [default_key(slot) for slot in range(1, 32768)]
    assert max(every) < -16, "small negative numbers are the index's own marks"
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("vector", GOLDEN["ids"], ids=lambda v: f"{v['slot']}-{v['type']}-{v['raw']}")
def test_raw_values_become_the_golden_ids(vector: dict[str, int | str | None]):
    slot = Slot("golden", vector["slot"], "golden", "user", "category", vector["type"])
    item = Slot("item", 77, "item", "item", "id", "int")
    config = FeatureConfig("golden", (slot, item), (Head("click", "click", 60.0),))
    ids = Featuriser(config).featurise({"golden": [vector["raw"]]}, "user")
    assert ids.tolist() == [[int(vector["id"])]]


def test_the_golden_ids_show_what_missing_is():
    missing = [int(vector["id"]) & VALUE_MASK for vector in GOLDEN["ids"] if vector["raw"] in (None, "")]
    assert missing == [MISSING_VALUE] * 2
