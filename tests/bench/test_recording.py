"""A recorded data set as a world: its events once and in order, and a guest between them."""

from pathlib import Path

import numpy as np
import pytest

from bench.recording import Recording
from bench.stage import detect, recorded, simulated
from model.featuriser import Featuriser
from pipelines.datasets import read_movielens
from pipelines.datasets.requests import object_array
from schemas.process import UserError

GENRES = ("Comedy", "Drama", "Horror")
PIECES = (1, 7, 30, 2)


def write_movielens(folder: Path, requests: int = 120, movies: int = 60) -> Path:
    """`requests` of two movies each, a minute apart."""
    folder.mkdir()
    titles = [f'{m},"Film {m} ({1950 + m})",{GENRES[m % 3]}' for m in range(1, movies + 1)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *titles]))
    rng = np.random.default_rng(0)
    rows = [
        f"{1 + n % 9},{movie},{2.5 + n % 3},{1_000_000_000 + 60 * n}"
        for n in range(requests)
        for movie in rng.choice(movies, 2, replace=False) + 1
    ]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows]))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_movielens(tmp_path_factory.mktemp("data") / "ml")


def test_pieces_make_the_whole(folder):
    (whole,) = read_movielens(folder).events
    recording = Recording(read_movielens(folder), "user_id", ("hour",))
    assert recording.requests_left == 120
    parts = []
    while recording.requests_left:
        before = recording.requests_left
        parts.append(recording.requests(PIECES[len(parts) % len(PIECES)]))
        assert before - recording.requests_left == len(parts[-1].requests)
        assert recording.now_ms == parts[-1].requests.time_ms[-1]
    for name in ("request_id", "user_id", "time_ms", "item_id"):
        pieced = np.concatenate([getattr(part.requests, name) for part in parts])
        np.testing.assert_array_equal(pieced, getattr(whole.requests, name))
    for name, column in whole.requests.item_columns.items():
        pieced = np.concatenate([part.requests.item_columns[name] for part in parts])
        assert pieced.tolist() == column.tolist()
    assert all(part.requests.item_offsets.tolist() == [*range(0, 2 * len(part.requests) + 1, 2)] for part in parts)
    for name in ("request_id", "item_id", "action", "time_ms"):
        pieced = np.concatenate([getattr(part.actions, name) for part in parts])
        np.testing.assert_array_equal(pieced, getattr(whole.actions, name))
    with pytest.raises(UserError, match="recording has ended"):
        recording.requests(1)


def test_alive_are_the_videos_shown_last(folder):
    recording = Recording(read_movielens(folder), "user_id", ("hour",), most_videos=10)
    recording.requests(50)
    shown = recording.requests(20).requests.item_id
    alive = recording.alive()
    assert alive.item_id.tolist() == [*dict.fromkeys(reversed(shown.tolist()))][:10]
    assert alive.columns["movie_id"].tolist() == [int(movie) for movie in alive.item_id]


def test_of_a_guest_nothing_is_known_but_the_moment(folder):
    recording = Recording(read_movielens(folder), "user_id", ("hour",))
    newest = recording.requests(100).requests
    shown = recording.show("r", "77", recording.alive().item_id[:3], recording.now_ms)
    assert shown.user_columns["user_id"].tolist() == [77]
    assert shown.user_columns["hour"].tolist() == [newest.user_columns["hour"][-1]]
    with pytest.raises(ValueError, match="was not shown lately"):
        recording.show("r", "77", object_array(["nothing"], 1), recording.now_ms)


def stages(folder):
    yield simulated(requests=200, days=1.0, users=20, seed=1)
    yield recorded(folder, rows=None)


def test_what_is_shown_has_the_features_that_were_ranked(folder):
    """A guest is shown some of the videos that were ranked for him: what is logged is what the model was asked with."""
    for stage in stages(folder):
        world, featuriser = stage.world, Featuriser(stage.config)
        world.requests(100)
        alive = world.alive()
        ranked = world.show("r", stage.newcomer, alive.item_id, world.now_ms)
        some = np.random.default_rng(0).permutation(len(alive.item_id))[:10]
        shown = world.show("r", stage.newcomer, alive.item_id[some], world.now_ms)
        ids = featuriser.featurise(ranked.item_columns, "item")
        np.testing.assert_array_equal(featuriser.featurise(shown.item_columns, "item"), ids[some])
        user = featuriser.featurise(ranked.user_columns, "user")
        np.testing.assert_array_equal(featuriser.featurise(shown.user_columns, "user"), user)
        assert stage.tags_of(shown) == [stage.tags_of(ranked)[place] for place in some]


def test_the_past_leaves_enough_for_the_guest(folder):
    stage = recorded(folder, rows=None)
    assert stage.data_set == "movielens"
    assert stage.past_requests == 90
    assert stage.left == 120
    # A quarter of the requests come before its end.
    assert stage.warm_start_s == pytest.approx(30 * 60)


def test_data_sets_are_told_by_their_files(folder, tmp_path):
    assert detect(folder) == "movielens"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "log_standard_4_22_to_5_08_pure.csv").touch()
    assert detect(tmp_path) == "kuairand"
    for nothing in (tmp_path / "data" / "none", folder.parent):
        with pytest.raises(UserError, match=r"holds neither|no such folder") as refused:
            detect(nothing)
        assert "\n" not in str(refused.value)
