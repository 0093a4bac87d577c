"""Raw columns to feature ids, what is refused, and ids to the log's bytes and back."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.feature_ids import MISSING_VALUE, SLOT_SHIFT, VALUE_MASK, hash_strings
from model.featuriser import Featuriser
from schemas.config import ConfigError, FeatureConfig, Head, Slot, load_config
from tests.model.feature_examples import CONFIG, columns_of

FEATURISER = Featuriser(CONFIG)
NUMBER = {slot.name: slot.slot for slot in CONFIG.slots}


def values_of(source: str, values: Any) -> list[list[int]]:
    """The 48-bit values of the first slot that reads `source`, its padding left out, by row."""
    index, slot = next((i, s) for i, s in enumerate(CONFIG.slot_order) if s.source == source)
    columns: dict[str, Any] = {s.source: [None] * len(values) for s in CONFIG.slots}
    ids = FEATURISER.featurise(columns | {source: values}, None)[:, CONFIG.column_slot == index]
    assert (ids[ids != 0] >> SLOT_SHIFT == slot.slot).all()
    return [[each & VALUE_MASK for each in row if each] for row in ids.tolist()]


def scalars_of(source: str, values: Any) -> list[int]:
    return [value for (value,) in values_of(source, values)]


def hashes(*texts: str) -> list[int]:
    return hash_strings(list(texts)).tolist()


@pytest.mark.parametrize(
    "values",
    [
        [7, 0, None],
        [np.int32(7), 0, float("nan")],
        np.array([7.0, 0.0, np.nan]),
        np.array([7, 0, None], object),
    ],
    ids=["list", "NumPy scalars", "pandas column with gaps", "object array"],
)
def test_integers_are_their_own_values_and_gaps_are_missing(values: Any):
    assert scalars_of("user_id", values) == [7, 0, MISSING_VALUE]


def test_integers_that_do_not_fit_are_hashed_as_decimal_text():
    beyond = [2**48, 2**48 - 1, -1, -124, 2**63 - 1]
    assert scalars_of("user_id", [*beyond, 2**48 - 2]) == [*hashes(*map(str, beyond)), 2**48 - 2]
    assert scalars_of("user_id", np.array(beyond)) == hashes(*map(str, beyond))


def test_strings_are_hashed_and_the_empty_one_is_missing():
    expected = [*hashes("123", "é"), MISSING_VALUE, MISSING_VALUE, MISSING_VALUE]
    assert scalars_of("country", ["123", "é", "", None, float("nan")]) == expected
    assert scalars_of("country", np.array(["é", "", "b"])) == [hashes("é")[0], MISSING_VALUE, hashes("b")[0]]
    assert scalars_of("country", [b"\xc3\xa9"]) == hashes("é")


def test_one_value_of_two_slots_gives_two_ids():
    ids = FEATURISER.featurise(columns_of([{"rank": 5}]), "item")[0].tolist()
    assert NUMBER["rank"] << SLOT_SHIFT | 5 in ids
    assert NUMBER["rank_band"] << SLOT_SHIFT | 1 in ids


def test_a_boundary_belongs_to_the_bucket_above_it():
    numbers = [
        -2.0,
        -1.0,
        0.0,
        -0.0,
        0.1,
        np.nextafter(np.float32(0.1), np.float32(0)),
        17.9,
        18,
        1e300,
        None,
    ]
    assert scalars_of("age", numbers) == [0, 1, 2, 2, 3, 2, 3, 4, 5, MISSING_VALUE]
    assert scalars_of("age", np.array([-np.inf, np.inf, np.nan])) == [0, 5, MISSING_VALUE]


def test_numbers_become_float32_before_they_are_bucketised():
    # float64 0.1 lies above float32 0.1's neighbour below, and rounds to the boundary itself.
    assert scalars_of("age", [0.1, 0.1 - 1e-12]) == [3, 3]


def test_counts_double_every_other_bucket():
    counts = [-1, 0, 1, 3, 7, 1023, 2**40 - 1, None]
    assert scalars_of("clicks", counts) == [0, 1, 3, 5, 7, 21, 81, MISSING_VALUE]
    assert scalars_of("weight", [0.5, 1.0]) == [2, 3]


def test_bags_keep_the_first_of_what_is_there():
    assert values_of("groups", [[3, 3, 4], [], None, [None, 9], (1,), np.array([5, 6])]) == [
        [3, 3], [], [], [9], [1], [5, 6],
    ]  # fmt: skip
    tags = [["a", "", "b", None, "c", "d"], [], None, [""]]
    assert values_of("tags", tags) == [hashes("a", "b", "c"), [], [], []]


def test_texts_are_lower_cased_and_split_on_white_space():
    titles = [" One\tTWO  Three\nfour five", "ÉCLAIR", "", None, "   "]
    assert values_of("title", titles) == [hashes("one", "two", "three", "four"), hashes("éclair"), [], [], []]


def test_columns_follow_the_slots_of_a_side():
    row = {"user_id": 1, "country": "DE", "groups": [8], "video_id": "v", "title": "a b", "rank": 2}
    columns = columns_of([row, {}])
    user, item = FEATURISER.featurise(columns, "user"), FEATURISER.featurise(columns, "item")
    assert user.dtype == item.dtype == np.int64
    assert user.shape == (2, CONFIG.user_width)
    assert item.shape == (2, CONFIG.item_width)
    both = FEATURISER.featurise(columns, None)
    np.testing.assert_array_equal(both, np.concatenate([user, item], axis=1))
    slots = np.array([slot.slot for slot in CONFIG.slot_order])[CONFIG.column_slot]
    assert ((both >> SLOT_SHIFT == slots) | (both == 0)).all()


def test_no_rows_give_no_ids():
    assert FEATURISER.featurise(columns_of([]), None).shape == (0, CONFIG.width)


@pytest.mark.parametrize(
    ("source", "values"),
    [
        ("user_id", ["123"]),
        ("user_id", [1, "2"]),
        ("user_id", [1.5]),
        ("user_id", np.array([1.5])),
        ("user_id", [2**63]),
        ("user_id", np.array([2**63], np.uint64)),
        ("user_id", [[1]]),
        ("user_id", np.array([[1]])),
        ("country", [123]),
        ("country", ["a", 5]),
        ("country", np.array([1])),
        ("country", ["\ud800"]),
        ("age", ["18"]),
        ("groups", [["1"]]),
        ("groups", [1]),
        ("groups", np.array([1.0])),
        ("tags", ["abc"]),
        ("tags", [[1]]),
        ("title", [["a", "list"]]),
        ("title", ["\udfff x"]),
    ],
)
def test_a_wrong_type_is_refused_in_a_line_that_names_slot_and_source(source: str, values: Any):
    slot = next(slot for slot in CONFIG.slots if slot.source == source)
    with pytest.raises(ConfigError) as error:
        values_of(source, values)
    message = str(error.value)
    assert repr(slot.name) in message
    assert repr(source) in message
    assert message.isprintable()


def test_a_missing_column_and_columns_of_unlike_length_are_refused():
    columns: dict[str, Any] = columns_of([{}, {}])
    with pytest.raises(ConfigError, match=r"'country'.*not among the columns"):
        FEATURISER.featurise({k: v for k, v in columns.items() if k != "country"}, "user")
    with pytest.raises(ConfigError, match=r"'country'.*3 rows"):
        FEATURISER.featurise(columns | {"country": ["DE"] * 3}, "user")
    assert FEATURISER.featurise(columns | {"unread": [1]}, "user").shape == (2, CONFIG.user_width)


rows = st.lists(
    st.fixed_dictionaries({"user_id": st.integers(-(2**63) + 1, 2**63 - 1), "groups": st.lists(st.integers(0, 9), max_size=3)}),
    max_size=6,
)


@settings(max_examples=60)
@given(rows)
def test_packed_rows_unpack_to_themselves(given_rows: list[dict[str, Any]]):
    for side in ("user", "item", None):
        ids = FEATURISER.featurise(columns_of(given_rows), side)
        packed = FEATURISER.pack(ids)
        assert [len(row) for row in packed] == (8 * np.count_nonzero(ids, axis=1)).tolist()
        unpacked, bad = FEATURISER.unpack(pa.array(packed, pa.binary()), side)
        np.testing.assert_array_equal(unpacked, ids)
        assert unpacked.dtype == np.int64
        assert not bad.any()


def test_the_packed_form_is_little_endian_without_padding():
    ids = FEATURISER.featurise(columns_of([{"user_id": 1, "groups": [258]}]), "user")
    group = (NUMBER["groups"] << SLOT_SHIFT) | 258
    assert FEATURISER.pack(ids)[0].endswith(group.to_bytes(8, "little"))
    assert len(FEATURISER.pack(ids)[0]) == 8 * 4


def packed_ids(*ids: int) -> bytes:
    return np.array(ids, "<i8").tobytes()


def an_id(name: str, value: int) -> int:
    return (NUMBER[name] << SLOT_SHIFT) | value


@pytest.mark.parametrize(
    "row",
    [
        packed_ids(an_id("user", 1))[:-1],
        packed_ids(an_id("user", 1), an_id("video", 1)),
        packed_ids(an_id("user", 1), an_id("user", 2)),
        packed_ids(an_id("groups", 1), an_id("groups", 1), an_id("groups", 1)),
        packed_ids(an_id("user", 1), 0),
        packed_ids(5),
        packed_ids(-1),
        packed_ids(-(2**63)),
        packed_ids((5 << SLOT_SHIFT) | 1),
        packed_ids((32766 << SLOT_SHIFT) | 1),
    ],
    ids=[
        "cut short", "other side", "two of a scalar", "bag overfull", "padding", "slot 0", "negative",
        "most negative", "unknown slot", "slot beyond all",
    ],
)  # fmt: skip
def test_a_bad_row_is_marked_and_leaves_its_neighbours_alone(row: bytes):
    good = packed_ids(an_id("user", 7), an_id("groups", 1), an_id("groups", 2))
    ids, bad = FEATURISER.unpack(pa.array([good, row, good]), "user")
    assert bad.tolist() == [False, True, False]
    assert not ids[1].any()
    np.testing.assert_array_equal(ids[0], ids[2])
    assert ids[0].tolist() == [an_id("user", 7), 0, 0, an_id("groups", 1), an_id("groups", 2)]


def test_slots_that_a_row_lacks_are_padding():
    ids, bad = FEATURISER.unpack(pa.array([b""]), "item")
    assert ids.tolist() == [[0] * CONFIG.item_width]
    assert not bad.any()
    assert FEATURISER.unpack(pa.array([], pa.binary()), "item")[0].shape == (0, CONFIG.item_width)


def test_records_from_before_a_slot_was_appended_unpack():
    new = Slot("city", 900, "city", "user", "category", "string")
    grown = FeatureConfig("grown", (*CONFIG.slots, new), (Head("click", "click", 60.0),), CONFIG.model)
    old = FEATURISER.featurise(columns_of([{"user_id": 1, "groups": [2]}]), "user")
    ids, bad = Featuriser(grown).unpack(pa.array(FEATURISER.pack(old)), "user")
    assert not bad.any()
    np.testing.assert_array_equal(ids, np.append(old, [[0]], axis=1))


def test_the_shipped_configurations_featurise():
    for name in ("kuairand", "movielens", "simulator"):
        config = load_config(Path(__file__).parents[2] / "schemas" / f"{name}.toml")
        ids = Featuriser(config).featurise(columns_of([{}, {}], config), None)
        scalar = ~np.array([slot.is_bag for slot in config.slot_order])[config.column_slot]
        assert (ids[:, scalar] & VALUE_MASK == MISSING_VALUE).all(), name
        assert not ids[:, ~scalar].any()
