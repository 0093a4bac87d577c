"""Raw features as `tf.Example` in a graph give the ids that the featuriser gives."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.feature_ids import MISSING_VALUE, SLOT_SHIFT, VALUE_MASK, hash_strings, pack_ids
from model.featuriser import Featuriser
from model.graph_featuriser import graph_featurise, graph_featurise_user
from tests.model.feature_examples import CONFIG, Row, columns_of, example_of

FEATURISER = Featuriser(CONFIG)
WORDS = [
    "one",
    "Zwei",
    "ÉCLAIR",
    "straße",
    "ＦＵＬＬ",
    "видео",
    "İstanbul",
    "日本",
    "😀🎬",
    "it's",
    "ΣΊΣΥΦΟΣ",
    "\x00",
]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\x0b"]

integers = st.integers(-(2**63) + 1, 2**63 - 1) | st.sampled_from(
    [0, -1, -124, VALUE_MASK - 1, VALUE_MASK, VALUE_MASK + 1, 2**24 + 1, 2**53 + 1, -(2**63) + 1]
)
floats = st.floats(width=32) | st.sampled_from([0.1, -0.0, 1e300, 1e-40, -1e-40, float("nan"), float("inf")])
strings = st.text(max_size=12) | st.sampled_from(["", "DE", "é"])
texts = st.lists(st.sampled_from(WORDS + SPACES), max_size=12).map("".join) | strings
rows = st.fixed_dictionaries(
    {},
    optional={
        "user_id": st.none() | integers,
        "country": st.none() | strings,
        "age": st.none() | floats,
        "groups": st.none() | st.lists(integers, max_size=5),
        "video_id": st.none() | strings,
        "clicks": st.none() | integers,
        "weight": st.none() | floats,
        "tags": st.none() | st.lists(strings, max_size=6),
        "title": st.none() | texts,
        "rank": st.none() | integers,
    },
)


@pytest.fixture(scope="module")
def in_graph() -> tf.types.experimental.ConcreteFunction:
    spec = [tf.TensorSpec([None], tf.string)]
    return tf.function(lambda examples: graph_featurise(CONFIG, examples), input_signature=spec)


def graph_ids(in_graph: tf.types.experimental.ConcreteFunction, given_rows: list[Row]) -> np.ndarray:
    return in_graph(tf.constant([example_of(row) for row in given_rows], tf.string)).numpy()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_rows=st.lists(rows, min_size=1, max_size=8))
def test_the_graph_gives_the_featurisers_ids(in_graph, given_rows):
    expected = FEATURISER.featurise(columns_of(given_rows), None)
    np.testing.assert_array_equal(graph_ids(in_graph, given_rows), expected)


def test_known_awkward_rows(in_graph):
    given_rows: list[Row] = [
        {},
        {"groups": [], "tags": [], "title": ""},
        {"groups": [5, 5, 5, 5], "tags": ["a", "", "b", "c", "d"], "title": " One\tTWO three one five six "},
        {"age": float("nan"), "weight": float("-inf"), "clicks": -3, "rank": -(2**63) + 1},
        {"user_id": 2**48, "country": "ÅLAND", "title": "ПРИВЕТ\u00a0МИР İ ß", "rank": 16777217},
    ]
    ids = graph_ids(in_graph, given_rows)
    np.testing.assert_array_equal(ids, FEATURISER.featurise(columns_of(given_rows), None))
    assert ids.shape == (5, CONFIG.width)
    assert ids.dtype == np.int64
    assert (ids[0][[0, 1, 2, 5]] & VALUE_MASK == MISSING_VALUE).all(), "missing scalars"
    tags = slice(CONFIG.user_width + 3, CONFIG.user_width + 6)
    assert (ids[1][tags] == 0).all()
    assert (ids[2][tags] != 0).all()


def test_no_examples_give_no_rows(in_graph):
    assert graph_ids(in_graph, []).shape == (0, CONFIG.width)


@pytest.mark.parametrize(
    "feature",
    [
        {"user_id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"123"]))},
        {"user_id": tf.train.Feature(int64_list=tf.train.Int64List(value=[1, 2]))},
        {"tags": tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))},
    ],
    ids=["text for an integer", "two values of a scalar", "integers for strings"],
)
def test_a_wrong_type_fails(in_graph, feature):
    example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    with pytest.raises(tf.errors.InvalidArgumentError, match=next(iter(feature))):
        in_graph(tf.constant([example]))


def test_a_user_of_whom_only_the_id_is_known():
    def user_ids(text: str, user_id: int | None) -> None:
        ids = graph_featurise_user(CONFIG, {"user_id": tf.constant([text])}).numpy()
        rest = columns_of([{"user_id": user_id}])
        np.testing.assert_array_equal(ids, FEATURISER.featurise(rest, "user"))

    user_ids("42", 42)
    user_ids("-7", -7)
    user_ids("999999999999999999", 999999999999999999)
    user_ids(str(2**63 - 1), 2**63 - 1)
    user_ids("", None)


@pytest.mark.parametrize("name", ["guest", "4.5", " 42", "é", "9" * 30])
def test_a_user_whose_id_is_no_number_is_unknown_not_missing(name):
    ids = graph_featurise_user(CONFIG, {"user_id": tf.constant([name])}).numpy()
    np.testing.assert_array_equal(ids[:, 0], pack_ids(1, hash_strings([name])))
    rest = FEATURISER.featurise(columns_of([{}]), "user")
    np.testing.assert_array_equal(ids[:, 1:], rest[:, 1:])


def test_a_user_of_whom_nothing_is_known():
    ids = graph_featurise_user(CONFIG, {}).numpy()
    np.testing.assert_array_equal(ids, FEATURISER.featurise(columns_of([{}]), "user"))


def test_ids_of_string_type_take_any_text():
    ids = graph_featurise_user(CONFIG, {"country": tf.constant(["DE", ""])}).numpy()
    expected = FEATURISER.featurise(columns_of([{"country": "DE"}, {"country": None}]), "user")
    np.testing.assert_array_equal(ids, expected)
    assert (ids[:, 0] >> SLOT_SHIFT == 1).all()
