"""The simulated world: reproducible, in time order, honest about its probabilities, and changing."""

from itertools import pairwise

import numpy as np
import pytest

from model.evaluation import Progressive
from pipelines.datasets import ActionBatch, Events, RequestBatch, SimulatorOptions, World, simulate
from pipelines.datasets.simulator import HEADS
from pipelines.datasets.simulator_words import HASHTAG_WORDS, HASHTAGS

WINDOW_MS = {"click": 60_000, "long_view": 180_000, "like": 300_000}
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def stream() -> list[Events]:
    return list(simulate(SimulatorOptions(users=500, days=5.0, requests=12_000, seed=3)).events)


def column(stream: list[Events], name: str) -> np.ndarray:
    return np.concatenate([events.requests.item_columns[name] for events in stream])


def test_size_and_order(stream: list[Events]):
    time_ms = np.concatenate([events.requests.time_ms for events in stream])
    assert len(time_ms) == 12_000
    assert (np.diff(time_ms) >= 0).all()
    assert 4.3 < (time_ms[-1] - time_ms[0]) / (24 * HOUR_MS) < 5.7
    assert sum(events.requests.impressions for events in stream) == 60_000
    names = np.concatenate([events.requests.request_id for events in stream])
    assert len(set(names)) == len(names)


def test_the_same_seed_gives_the_same_world():
    def world(seed: int) -> tuple[RequestBatch, ActionBatch]:
        made = World(seed=seed, users=50)
        made.requests(100)
        events = made.requests(100)
        return events.requests, events.actions

    (requests, actions), (again, actions_again), (other, _) = world(1), world(1), world(2)
    assert requests.item_id.tolist() == again.item_id.tolist()
    assert requests.time_ms.tolist() == again.time_ms.tolist()
    assert requests.item_columns["caption"].tolist() == again.item_columns["caption"].tolist()
    assert actions.time_ms.tolist() == actions_again.time_ms.tolist()
    assert requests.item_id.tolist() != other.item_id.tolist()


def test_a_request_shows_different_living_videos(stream: list[Events]):
    for requests, _, _ in stream:
        shown = requests.item_id.reshape(len(requests), 5)
        assert all(len(set(row)) == 5 for row in shown)
    age = column(stream, "age_hours")
    assert age.min() >= 0


def test_rates_and_the_oracle(stream: list[Events]):
    chance = np.concatenate([events.truth.probability for events in stream if events.truth])
    happened = np.concatenate([events.truth.happened for events in stream if events.truth])
    assert chance.shape == (60_000, len(HEADS))
    # Calibrated: by deciles of the true probability too.
    for head, (low, high) in enumerate(((0.25, 0.45), (0.13, 0.3), (0.02, 0.1))):
        assert low < happened[:, head].mean() < high
        for part in np.array_split(np.argsort(chance[:, head]), 10):
            assert happened[part, head].mean() == pytest.approx(chance[part, head].mean(), abs=0.025)
    oracle = Progressive()
    oracle.update(np.log(chance[:, 0] / (1 - chance[:, 0])), happened[:, 0].astype(np.float32))
    assert 0.78 < oracle.auc < 0.87


def test_actions_are_the_truth_and_lie_in_their_windows(stream: list[Events]):
    for requests, actions, truth in stream:
        assert truth is not None
        shown_ms = dict(zip(requests.request_id, requests.time_ms.tolist(), strict=True))
        delay = np.array([t - shown_ms[r] for r, t in zip(actions.request_id, actions.time_ms, strict=True)])
        for head, name in enumerate(HEADS):
            mine = actions.action == name
            assert mine.sum() == truth.happened[:, head].sum()
            assert 1_000 <= delay[mine].min() <= delay[mine].max() <= WINDOW_MS[name]
        done = set(zip(actions.request_id, actions.item_id, actions.action, strict=True))
        rows = np.flatnonzero(truth.happened[:, 2])
        assert {(truth.request_id[i], truth.item_id[i], "like") for i in rows} <= done
        assert {(request, item, "click") for request, item, _ in done} <= done


def test_new_videos_appear_and_old_ones_die(stream: list[Events]):
    video = column(stream, "video_id").astype(np.int64)
    quarter = len(video) // 4
    first, last = set(video[:quarter]), set(video[-quarter:])
    assert len(first & last) < 0.15 * len(last)
    share_of_a_day = (column(stream, "age_hours") < 24).mean()
    assert 0.6 < share_of_a_day < 0.95


def test_hashtags_trend(stream: list[Events]):
    tags = column(stream, "hashtags")
    days = np.array_split(tags, 5)
    share = np.array([[sum(tag in row for row in day) / len(day) for tag in HASHTAGS] for day in days])
    change = np.abs(np.diff(np.log(share), axis=0)).mean()
    assert change > 0.2, "hashtags keep the same share from day to day"


def test_captions_tell_the_hashtag(stream: list[Events]):
    captions, tags = column(stream, "caption")[:2_000], column(stream, "hashtags")[:2_000]
    word_of = {tag: set(words.split()) for tag, words in HASHTAG_WORDS.items()}
    own = np.mean([any(set(c.split()) & word_of[t] for t in ts) for c, ts in zip(captions, tags, strict=True)])
    assert own > 0.9
    assert {1, 2, 3} == {len(row) for row in tags}


def test_traffic_has_a_daily_rhythm(stream: list[Events]):
    hours = np.concatenate([events.requests.user_columns["hour"] for events in stream])
    per_hour = np.bincount(hours, minlength=24)
    assert per_hour[19:23].sum() > 2 * per_hour[7:11].sum()


def test_tastes_drift(stream: list[Events]):
    """What a user liked in the first day tells more about the second than about the last."""
    kept: dict[int, dict[tuple[str, str], list[float]]] = {}
    for requests, _, truth in stream:
        assert truth is not None
        user = np.repeat(requests.user_id, np.diff(requests.item_offsets))
        day = (truth.time_ms - stream[0].requests.time_ms[0]) // (24 * HOUR_MS)
        # Popularity apart: what remains is the affinity of a user for a hashtag.
        for u, d, tags, p in zip(user, day, requests.item_columns["hashtags"], truth.probability[:, 0], strict=True):
            kept.setdefault(int(d), {}).setdefault((u, tags[0]), []).append(float(p))

    def agreement(one: int, other: int) -> float:
        common = kept[one].keys() & kept[other].keys()
        a, b = (np.array([np.mean(kept[day][key]) for key in sorted(common)]) for day in (one, other))
        return float(np.corrcoef(a, b)[0, 1])

    assert agreement(0, 1) > agreement(0, 4) + 0.03


def test_memory_does_not_grow_with_the_length():
    world = World(users=20, videos=200, requests_per_day=20_000)

    def held() -> int:
        parts = (world._catalogue, world._audience, world._sessions, world._trend)
        arrays = [value for part in parts for value in vars(part).values() if isinstance(value, np.ndarray)]
        return sum(array.nbytes for array in arrays)

    sizes = []
    for _ in range(5):
        world.requests(2_000)
        sizes.append(held())
    assert max(sizes) < 1.2 * min(sizes)


def test_calls_continue_the_world():
    world = World(seed=5, users=50)
    batches = [world.requests(count) for count in (1, 7, 300, 2)]
    for one, other in pairwise(batches):
        assert one.requests.time_ms[-1] <= other.requests.time_ms[0]
    assert world.now_ms == batches[-1].requests.time_ms[-1]


def test_a_guest_is_shown_living_videos():
    world = World(seed=5, users=50, videos=300)
    world.requests(500)
    alive = world.alive()
    assert len(alive.item_id) == 300 == len(set(alive.item_id))
    assert alive.columns["age_hours"].min() >= 0
    chosen = alive.item_id[[tags[0] == "#ramen" for tags in alive.columns["hashtags"]]]
    requests = world.show("guest-1", "guest", chosen, alive.time_ms + 5)
    assert requests.item_id.tolist() == chosen.tolist()
    assert requests.item_offsets.tolist() == [0, len(chosen)]
    assert requests.user_columns["user_id"].tolist() == ["guest"]
    assert requests.user_columns["country"].tolist() == [None]
    assert all(tags[0] == "#ramen" for tags in requests.item_columns["hashtags"])
    same = world.requests(1).requests
    assert requests.item_columns.keys() == same.item_columns.keys()
    with pytest.raises(ValueError, match="video 999999 is not alive"):
        world.show("guest-2", "guest", np.array(["999999"], dtype=object), alive.time_ms)


@pytest.mark.parametrize("sizes", [{"users": 0}, {"videos_per_request": 0}, {"videos": 10}, {"requests_per_day": 0}])
def test_impossible_worlds_are_refused(sizes: dict[str, int]):
    with pytest.raises(ValueError, match=r"a world needs|videos_per_request is"):
        World(**sizes)
