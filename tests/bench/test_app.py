"""The demo's app: both logs in time order, a guest's requests and likes between the others'; and which tag he likes."""

import numpy as np
import pytest
from stories import answer

from bench.app import App
from bench.guest import Viewer, choose_tag
from bench.stage import simulated
from model.featuriser import Featuriser
from pipelines.datasets import ActionBatch
from schemas.log_files import PartitionReader
from schemas.process import UserError
from serving.client import RankClient

REQUESTS = 300


@pytest.fixture
def stage():
    return simulated(requests=REQUESTS, days=1.0, users=30, seed=2)


def read(logs, topic):
    return PartitionReader(logs, topic, 0).read(1 << 20).records


def test_a_guests_requests_and_likes_are_logged_between_the_others(stage, tmp_path):
    looks = []
    app = App(stage, tmp_path)
    app.past(lambda: looks.append(app.impressions))
    assert looks == [5 * REQUESTS]
    # The server is not asked here: a channel that nothing is sent through.
    with RankClient("127.0.0.1:1") as client:
        guest = Viewer(stage, client, stage.newcomer)
        world = stage.world
        shown = world.show("guest-1", stage.newcomer, world.alive().item_id[[5, 3]], world.now_ms)
        likes = guest.like(shown, shown.item_id.tolist())
        assert guest.liked == set(shown.item_id)
    app.show(shown, likes)
    app.live(60)
    app.close()
    features, actions = read(tmp_path, "features"), read(tmp_path, "actions")
    assert app.impressions == 5 * (REQUESTS + 60) + 2
    for records in (features, actions):
        times = [record["time_ms"] for record in records]
        assert times == sorted(times)
    (logged,) = [record for record in features if record["request_id"] == "guest-1"]
    featuriser = Featuriser(stage.config)
    expected = featuriser.pack(featuriser.featurise(shown.item_columns, "item"))
    assert [(item["item_id"], item["ids"]) for item in logged["items"]] == [*zip(shown.item_id, expected, strict=True)]
    done = [(record["item_id"], record["action"]) for record in actions if record["user_id"] == stage.newcomer]
    assert done == [(item, action) for item in shown.item_id for action in ("click", "long_view", "like")]


def test_settled_are_the_impressions_whose_windows_have_passed(stage, tmp_path):
    app = App(stage, tmp_path)
    app.past(lambda: None)
    features, actions = read(tmp_path, "features"), read(tmp_path, "actions")
    horizon = max(record["time_ms"] for record in actions) - 300_000
    assert app.settled() == sum(len(record["items"]) for record in features if record["time_ms"] < horizon)
    assert 0 < app.settled() < app.impressions
    assert 0.6 < app.oracle_auc < 1
    assert len(set(app.recent_users(5))) == 5
    app.show(stage.world.show("g", stage.newcomer, stage.world.alive().item_id[:1], stage.world.now_ms), ActionBatch.empty())
    app.close()
    assert app.recent_users(1)[0] != stage.newcomer


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([("#a",), ("#c",)], "#b"),  # of those not offered, the commonest
        ([("#b", "#c"), ("#b",), ("#a",), ("#a",), ("#a",)], "#c"),  # all are offered: the one offered least
        ([("#d",)], "#a"),
    ],
)
def test_the_tag_is_the_commonest_that_is_not_offered(offered, chosen):
    alive = [("#a", "#b")] * 10 + [("#a",)] * 5 + [("#b",)] * 2 + [("#c",)] * 10 + [("#rare",)] * 3
    assert choose_tag(alive, answer(1, *offered), enough=10) == chosen


def test_too_few_videos_to_like(stage):
    with pytest.raises(UserError, match="no tag has 40 videos"):
        choose_tag([("#a",)] * 39, answer(1, ("#b",)), enough=40)


def test_likes_follow_each_other_a_second_apart(stage):
    with RankClient("127.0.0.1:1") as client:
        world = stage.world
        world.requests(10)
        shown = world.show("r", stage.newcomer, world.alive().item_id[:2], world.now_ms)
        likes = Viewer(stage, client, stage.newcomer).like(shown, shown.item_id.tolist())
    assert (likes.time_ms - world.now_ms).tolist() == [1000, 2000, 3000, 4000, 5000, 6000]
    np.testing.assert_array_equal(likes.item_id, np.repeat(shown.item_id, 3))
