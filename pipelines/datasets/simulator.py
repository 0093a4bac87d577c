"""A seeded short-video world of any length, in which freshness pays and the true probabilities are known.

    world = World(seed=7)
    requests, actions, truth = world.requests(1000)   # the next 1,000 requests, in simulated time

Users' tastes drift and jump, hashtags trend up and down, new videos appear all the time and old ones die.
Everything is generated as it is asked for; memory depends on the number of users and of videos alive, not on
the length. The same seed and the same sequence of calls give the same world.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.datasets.requests import (
    ActionBatch,
    Columns,
    Events,
    RequestBatch,
    Stream,
    Truth,
    object_array,
    request_starts,
    strings,
)
from pipelines.datasets.simulator_audience import Audience, Sessions
from pipelines.datasets.simulator_catalogue import HOUR_MS, Catalogue, Trend

HEADS = ("click", "long_view", "like")
START_MS = 1_704_067_200_000  # 2024-01-01T00:00Z
_DAY_MS = 24 * HOUR_MS
_REQUESTS_A_CHUNK = 2_000


@dataclass(frozen=True)
class SimulatorOptions:
    """Size of a simulated stream: `requests` spread over `days` of simulated time."""

    users: int = 3_000
    days: float = 10.0
    requests: int = 60_000
    videos_per_request: int = 5
    seed: int = 0


class AliveVideos(NamedTuple):
    """The current catalogue: item ids object[M] of str, and raw item columns [M] as of `time_ms`."""

    time_ms: int
    item_id: np.ndarray
    columns: Columns


class World:
    """The simulated world, continuing with every call.

    p(click) = sigmoid(base + user bias + taste . traits + quality + trend of the hashtags);
    p(long_view | click) and p(like | click) are logistic in the same affinity, the duration and qualities of
    their own. Raises ValueError for sizes that no world can have.
    """

    # So many requests share one state of catalogue and trends, but never a quarter of an hour of them.
    TICK_REQUESTS, MAX_TICK_MS = 256, HOUR_MS // 4
    MAX_VIDEOS_PER_REQUEST = 100
    BASE = (-2.25, -0.2, -2.5)
    PERSONALISATION = 0.4

    def __init__(
        self,
        seed: int = 0,
        users: int = 3_000,
        requests_per_day: float = 6_000.0,
        videos_per_request: int = 5,
        videos: int = 2_000,
        start_ms: int = START_MS,
    ) -> None:
        if not 1 <= videos_per_request <= self.MAX_VIDEOS_PER_REQUEST:
            raise ValueError(f"videos_per_request is {videos_per_request}: 1 to {self.MAX_VIDEOS_PER_REQUEST}")
        if videos < 4 * videos_per_request or users < 1 or requests_per_day <= 0:
            raise ValueError("a world needs a user, a positive request rate and four times the videos of a request")
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._show = videos_per_request
        self._candidates = min(videos, max(16, 3 * videos_per_request))
        self._trend = Trend(self._rng, start_ms)
        self._catalogue = Catalogue(self._rng, videos, start_ms, self._trend)
        self._audience = Audience(self._rng, users, start_ms)
        self._sessions = Sessions(self._rng, self._audience, requests_per_day, start_ms)
        self._tick_ms = max(1, min(self.MAX_TICK_MS, int(self.TICK_REQUESTS / requests_per_day * _DAY_MS)))
        self._served = 0
        self.now_ms = start_ms

    def requests(self, count: int) -> Events:
        """The next `count` (>= 1) requests, their actions and the truth; moves `now_ms` to the last one."""
        time_ms, user = self._sessions.next(count)
        starts = request_starts(time_ms // self._tick_ms)
        ticks = [
            self._tick(time_ms[first:last], user[first:last])
            for first, last in zip(starts, np.append(starts[1:], count), strict=True)
        ]
        columns = {name: np.concatenate([tick.columns[name] for tick in ticks]) for name in ticks[0].columns}
        numbers = np.char.add(f"s{self._seed}-", (self._served + np.arange(count)).astype(np.str_))
        user_id = strings(user + 1)
        self._served += count
        self.now_ms = int(time_ms[-1])
        requests = RequestBatch(
            request_id=numbers.astype(object),
            user_id=user_id,
            time_ms=time_ms,
            user_columns=_user_columns(user_id, self._audience.country[user], time_ms),
            item_offsets=np.arange(count + 1, dtype=np.int64) * self._show,
            item_id=columns["video_id"],
            item_columns=columns,
        )
        return self._react(requests, np.concatenate([tick.logits for tick in ticks]))

    def alive(self) -> AliveVideos:
        """Every video that could be shown at `now_ms`."""
        everything = np.arange(len(self._catalogue.video_name))
        return AliveVideos(self.now_ms, self._catalogue.video_name.copy(), self._item_columns(everything, self.now_ms))

    def show(self, request_id: str, user_id: str, video_ids: np.ndarray, time_ms: int) -> RequestBatch:
        """One request of `user_id`, a guest from nowhere known, who is shown these videos (object[k] of str).

        Raises ValueError for a video that is not alive.
        """
        places = {video: place for place, video in enumerate(self._catalogue.video_name)}
        if strangers := [video for video in video_ids if video not in places]:
            raise ValueError(f"video {strangers[0]} is not alive at {self.now_ms}: choose among World.alive()")
        place = np.array([places[video] for video in video_ids])
        user, time = object_array([user_id], 1), np.array([time_ms], dtype=np.int64)
        return RequestBatch(
            request_id=object_array([request_id], 1),
            user_id=user,
            time_ms=time,
            user_columns=_user_columns(user, object_array([None], 1), time),
            item_offsets=np.array([0, len(place)], dtype=np.int64),
            item_id=self._catalogue.video_name[place],
            item_columns=self._item_columns(place, time_ms),
        )

    def _tick(self, time_ms: np.ndarray, user: np.ndarray) -> "_Tick":
        """What is shown to requests close in time: candidates drawn by exposure, chosen partly by taste."""
        rng, now_ms = self._rng, int(time_ms[0])
        self._trend.advance(now_ms)
        self._catalogue.advance(now_ms, self._trend)
        videos = self._catalogue
        exposure = np.cumsum(videos.exposure(now_ms, self._trend))
        # Stratified draws, made strictly increasing: candidates of a request are different videos.
        strata = np.arange(self._candidates)
        points = (strata + rng.random((len(user), self._candidates))) / self._candidates * exposure[-1]
        drawn = np.searchsorted(exposure, points)
        drawn = np.maximum.accumulate(drawn - strata, axis=1) + strata
        drawn = np.minimum(drawn, len(exposure) - self._candidates + strata)
        taste = self._audience.tastes(user, now_ms)
        affinity = np.einsum("nk,nmk->nm", taste, videos.traits[drawn])
        wish = self.PERSONALISATION * affinity + rng.gumbel(size=affinity.shape)
        best = np.argsort(-wish, axis=1)[:, : self._show]
        place = np.take_along_axis(drawn, best, axis=1).ravel()
        affinity = np.take_along_axis(affinity, best, axis=1).ravel()
        mood = affinity + np.repeat(self._audience.bias[user], self._show)
        brevity = 10.0 - np.log(videos.duration_ms[place])  # 0 for the median video of 22 s
        logits = self.BASE + videos.quality[place]
        logits[:, 0] += mood + videos.trend_of(self._trend)[place]
        logits[:, 1] += 0.5 * affinity + brevity
        logits[:, 2] += 0.5 * mood
        return _Tick(self._item_columns(place, np.repeat(time_ms, self._show)), logits)

    def _item_columns(self, place: np.ndarray, time_ms: np.ndarray | int) -> dict[str, np.ndarray]:
        videos = self._catalogue
        return {
            "video_id": videos.video_name[place],
            "author_id": videos.author_name[place],
            "hashtags": videos.hashtags[place],
            "caption": videos.caption[place],
            "duration_s": videos.duration_ms[place] / 1_000.0,
            "age_hours": (time_ms - videos.born_ms[place]) / HOUR_MS,
        }

    def _react(self, requests: RequestBatch, logits: np.ndarray) -> Events:
        """Draws what users do; an action's time is when it is known: the click, the play's end, the like."""
        rng, count = self._rng, requests.impressions
        chance = 1.0 / (1.0 + np.exp(-logits))
        happened = rng.random((count, len(HEADS))) < chance
        happened[:, 1:] &= happened[:, :1]
        watched = np.where(happened[:, 1], rng.uniform(0.7, 1.0, count), rng.uniform(0.05, 0.5, count))
        click_ms = rng.uniform(1_000.0, 10_000.0, count)
        play_ms = click_ms + watched * requests.item_columns["duration_s"] * 1_000.0
        like_ms = play_ms + rng.uniform(1_000.0, 20_000.0, count)
        shown_by = np.repeat(np.arange(len(requests)), np.diff(requests.item_offsets))
        item, head = np.nonzero(happened)
        request = shown_by[item]
        delay_ms = np.stack((click_ms, play_ms, like_ms), axis=1)[item, head]
        actions = ActionBatch(
            request_id=requests.request_id[request],
            user_id=requests.user_id[request],
            item_id=requests.item_id[item],
            action=np.array(HEADS, dtype=object)[head],
            time_ms=requests.time_ms[request] + delay_ms.astype(np.int64),
        )
        chance[:, 1:] *= chance[:, :1]
        truth = Truth(
            heads=HEADS,
            request_id=requests.request_id[shown_by],
            item_id=requests.item_id,
            time_ms=requests.time_ms[shown_by],
            probability=chance.astype(np.float32),
            happened=happened,
        )
        return Events(requests, actions, truth)


class _Tick(NamedTuple):
    columns: dict[str, np.ndarray]
    logits: np.ndarray  # float64[impressions, heads]; long view and like given a click


def _user_columns(user_id: np.ndarray, country: np.ndarray, time_ms: np.ndarray) -> dict[str, np.ndarray]:
    return {"user_id": user_id, "country": country, "hour": time_ms // HOUR_MS % 24}


def simulate(options: SimulatorOptions) -> Stream:
    """The stream that `options` describe, in time order."""
    world = World(
        seed=options.seed,
        users=options.users,
        requests_per_day=options.requests / options.days,
        videos_per_request=options.videos_per_request,
    )
    sizes = (min(_REQUESTS_A_CHUNK, options.requests - done) for done in range(0, options.requests, _REQUESTS_A_CHUNK))
    return Stream(options.requests * options.videos_per_request, (world.requests(size) for size in sizes))
