"""The newest features by user and by video: against a plain dict, through restarts, and as the exported model has it."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_examples import CONFIG, ids_of, learned

from model.catalogue import ITEMS, USERS, Catalogue, Entries
from model.export import export_state, write_version
from model.featuriser import Featuriser
from model.snapshot import merge, read_increment, write_increment

MOST = 10
NAMES = [*map(str, range(17, 17 + 2 * MOST)), "名前", "ünicode"]


def batch(names, times):
    """Columns of rows, in which user and video have the same name; the ids follow from name and time."""
    users = np.array(names, object)
    numbers = np.array([NAMES.index(name) + 1 for name in names], np.int64)
    ids = ids_of((numbers[:, None] + np.array(times)[:, None] * 100 + np.arange(CONFIG.width)) % 10_000 + 1)
    user_ids, item_ids = np.split(ids, [CONFIG.user_width], axis=1)
    return users, user_ids, users, item_ids, np.array(times, np.int64)


def as_dict(entries):
    columns = (entries.names.tolist(), entries.ids.tolist(), entries.last_seen_ms.tolist())
    return {name: (ids, seen) for name, ids, seen in zip(*columns, strict=True)}


class Plain:
    """The same in a dict."""

    def __init__(self):
        self.users, self.items = {}, {}

    def update(self, users, user_ids, items, item_ids, times):
        for known, names, ids in ((self.users, users, user_ids), (self.items, items, item_ids)):
            for name, own, seen in zip(names, ids.tolist(), times.tolist(), strict=True):
                if name not in known or seen >= known[name][1]:
                    known[name] = (own, seen)
            if len(known) > MOST:
                for name in sorted(known, key=lambda name: known[name][1])[: len(known) - MOST * 9 // 10]:
                    del known[name]


@st.composite
def histories(draw):
    """Batches of (names, times): names repeat within and between batches, no two mentions have the same time."""
    times = draw(st.permutations(range(40)))
    batches = []
    while times and draw(st.integers(0, 8)):
        size = draw(st.integers(1, 9))
        own, times = times[:size], times[size:]
        batches.append(([draw(st.sampled_from(NAMES)) for _ in own], own))
    return batches


@settings(max_examples=100)
@given(histories(), st.data())
def test_it_is_a_bounded_dict_of_the_newest_through_increments_and_restarts(batches, data):
    catalogue, plain, increments = Catalogue(CONFIG, MOST, MOST), Plain(), []
    for names, times in batches:
        catalogue.update(*batch(names, times))
        plain.update(*batch(names, times))
        assert as_dict(catalogue.users) == plain.users
        assert as_dict(catalogue.items) == plain.items
        assert len(plain.users) <= MOST
        what = data.draw(st.sampled_from(["go on", "lose an increment", "increment", "restart"]))
        if what != "go on":
            increment = catalogue.increment()
            for part in increment.keyed.values():
                assert not np.isin(part.removed, part.rows["key"].to_numpy()).any()
            if what != "lose an increment":
                catalogue.committed()
                increments.append(increment)
        if what == "restart":
            catalogue = Catalogue(CONFIG, MOST, MOST)
            catalogue.load(merge(increments))
            assert all(part.rows.num_rows == 0 for part in catalogue.increment().keyed.values())
    merged = merge([*increments, catalogue.increment()])
    for name, known in ((USERS, plain.users), (ITEMS, plain.items)):
        rows = merged.keyed[name].rows.to_pylist()
        assert {row["name"]: (row["ids"], row["last_seen_ms"]) for row in rows} == known


def test_what_changes_while_an_increment_is_written_is_in_the_next():
    catalogue = Catalogue(CONFIG, MOST, MOST)
    catalogue.update(*batch(["17", "18"], [1, 2]))
    first = catalogue.increment()
    catalogue.update(*batch(["18", "19"], [3, 4]))
    catalogue.committed()
    second = catalogue.increment()
    assert first.keyed[USERS].rows["name"].to_pylist() == ["17", "18"]
    assert sorted(second.keyed[USERS].rows["name"].to_pylist()) == ["18", "19"]
    catalogue.committed()
    assert catalogue.increment().keyed[USERS].rows.num_rows == 0


def test_an_increment_names_who_has_left(tmp_path):
    catalogue = Catalogue(CONFIG, MOST, MOST)
    catalogue.update(*batch(NAMES[:MOST], range(MOST)))
    entries = [write_increment(tmp_path, "0", catalogue.increment())]
    catalogue.committed()
    catalogue.update(*batch(NAMES[MOST : MOST + 1], [50]))
    increment = catalogue.increment()
    assert len(increment.keyed[USERS].removed) == 2
    entries.append(write_increment(tmp_path, "1", increment))
    merged = merge([read_increment(tmp_path, each) for each in entries])
    assert sorted(merged.keyed[USERS].rows["name"].to_pylist()) == sorted(NAMES[2 : MOST + 1])


def test_the_newest_come_first_and_ties_by_name():
    names = np.array(["b", "d", "a", "c"], object)
    entries = Entries(names, np.arange(8).reshape(4, 2), np.array([5, 9, 5, 1]))
    assert entries.newest(3).names.tolist() == ["d", "a", "b"]
    assert entries.newest(3).ids.tolist() == [[2, 3], [4, 5], [0, 1]]
    assert entries.newest(10).names.tolist() == ["d", "a", "b", "c"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A catalogue of many users, and the signature that a client asks."""
    users = np.array([*map(str, range(3000)), *NAMES[-2:]], object)
    rng = np.random.default_rng(0)
    catalogue = Catalogue(CONFIG)
    ids = ids_of(rng.integers(1, 1000, (users.size, CONFIG.width)))
    user_ids, item_ids = np.split(ids, [CONFIG.user_width], axis=1)
    for part in np.array_split(rng.permutation(users.size), 9):
        catalogue.update(users[part], user_ids[part], users[part], item_ids[part], part)
    increment = learned(2).increment(0)
    increment.keyed |= catalogue.increment().keyed
    models = tmp_path_factory.mktemp("models")
    write_version(models, export_state(increment, CONFIG), CONFIG)
    return tf.saved_model.load(str(models / "1")), users, user_ids, item_ids


def test_every_logged_user_is_known_to_the_exported_model_with_his_features(exported):
    model, users, user_ids, _ = exported
    for user, ids in zip(users.tolist(), user_ids.tolist(), strict=True):
        answer = model.signatures["catalogue"](user_id=tf.constant(user))
        assert answer["known"].numpy(), user
        assert answer["user_ids"].numpy().tolist() == ids


@pytest.mark.parametrize("stranger", ["3000", "017", " 17", "17.0", "", "nobody"])
def test_a_user_who_was_not_logged_is_unknown_and_has_only_an_id(exported, stranger):
    model, _, user_ids, _ = exported
    answer = model.signatures["catalogue"](user_id=tf.constant(stranger))
    assert not answer["known"].numpy()
    first, *others = answer["user_ids"].numpy().tolist()
    assert others == [0] * (CONFIG.user_width - 1)
    assert first >> 48 == 1
    if stranger.isdecimal():
        expected = Featuriser(CONFIG).featurise({"user": [int(stranger)], "tags": [[]]}, "user")
        assert [first, *others] == expected[0].tolist()
    else:
        assert first not in user_ids[:, 0]


def test_the_exported_candidates_are_the_videos_seen_last(exported):
    model, users, _, item_ids = exported
    answer = model.signatures["catalogue"](user_id=tf.constant("17"))
    newest = np.arange(users.size)[::-1][:500]
    assert [name.decode() for name in answer["item_ids"].numpy()] == users[newest].tolist()
    np.testing.assert_array_equal(answer["ids"].numpy(), item_ids[newest])
