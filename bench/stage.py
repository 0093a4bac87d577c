"""What the demo plays on: a simulated or recorded world, and how its data set speaks of videos and their tags."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

import schemas.config
from bench.recording import Recording
from bench.story import Wording
from pipelines.datasets import Events, RequestBatch, Stream, World, read_kuairand, read_movielens
from pipelines.datasets.simulator import AliveVideos
from schemas.config import FeatureConfig, load_config
from schemas.process import UserError

SIMULATOR = "simulator"
#: Share of the stream that is learned before the arms part ways and evaluation begins: of KuaiRand-Pure, four days.
WARM_START = 0.25
#: Impressions a second while the guest is there: as many as are learned without a queue on a small machine.
LIVE_PACE = 400
#: Seconds of a recording, at that pace, kept back for the guest's time.
_LIVE_S = 45


class LiveWorld(Protocol):
    """People who ask for videos and act on them, a few requests at a time."""

    now_ms: int

    def requests(self, count: int) -> Events:
        """The next requests of everyone, with all actions they lead to."""

    def alive(self) -> AliveVideos:
        """The videos that can be shown now."""

    def show(self, request_id: str, user_id: str, video_ids: np.ndarray, time_ms: int) -> RequestBatch:
        """A request of someone from outside this world who is shown these videos."""


@dataclass(frozen=True)
class Stage:
    """A world, how much of it is past when the guest comes, and its wording.

    Attributes:
        data_set: name, as of the built-in feature configurations.
        past_requests: requests before the guest comes.
        impressions_a_request: on average.
        warm_start_s: event time from the first request on that is learned but not evaluated.
        newcomer: a user id that nobody has.
    """

    data_set: str
    wording: Wording
    config: FeatureConfig
    world: LiveWorld
    past_requests: int
    impressions_a_request: float
    warm_start_s: float
    newcomer: str

    @property
    def left(self) -> int:
        """Requests of a recording that nobody has made yet; a simulated world has no end."""
        return self.world.requests_left if isinstance(self.world, Recording) else 0

    def names_of(self, videos: RequestBatch) -> list[str]:
        """What people call each video."""
        names = videos.item_columns[self.wording.names].tolist()
        return [str(item_id if name is None else name) for item_id, name in zip(videos.item_id.tolist(), names, strict=True)]

    def tags_of(self, videos: RequestBatch | AliveVideos) -> list[tuple[str, ...]]:
        """Tags of each video, as people read them."""
        columns = videos.item_columns if isinstance(videos, RequestBatch) else videos.columns
        return [tuple(map(str, tags)) for tags in columns[self.wording.tags].tolist()]


@dataclass(frozen=True)
class Recorded:
    """A data set that is read from files.

    Attributes:
        files: patterns of names, one of which is there if a folder holds this data set.
        user_source, context: as of :class:`bench.recording.Recording`.
    """

    read: Callable[[Path, int | None], Stream]
    wording: Wording
    files: tuple[str, ...]
    user_source: str
    context: tuple[str, ...]


_SIMULATED = Wording(
    "a simulated world of short videos", "hashtags", "video_id", "hashtag", "video", ("click", "long_view", "like")
)
RECORDED = {
    "kuairand": Recorded(
        read_kuairand,
        Wording("KuaiRand-Pure", "tag", "video_id", "tag", "video", ("click", "long_view", "like")),
        ("log_standard_*_pure.csv*", "data/log_standard_*_pure.csv*"),
        "user_id",
        ("tab", "hour"),
    ),
    "movielens": Recorded(
        read_movielens,
        Wording("MovieLens", "genres", "title", "genre", "movie", ("click",)),
        ("ratings.csv*", "ratings.dat*", "u.data*"),
        "user_id",
        ("hour",),
    ),
}


def simulated(requests: int, days: float, users: int, seed: int) -> Stage:
    """A simulated world that is `days` old, and has seen so many requests, when the guest comes."""
    per_request = 5
    world = World(seed, users, requests / days, per_request)
    warm_start_s = WARM_START * days * 86_400
    return Stage(SIMULATOR, _SIMULATED, _config(SIMULATOR), world, requests, per_request, warm_start_s, "guest")


def recorded(path: Path, rows: int | None, data_set: str | None = None) -> Stage:
    """A data set in a folder, its first `rows` impressions; the last of them are kept back for the guest's time.

    Raises:
        UserError: no such folder, none of the data sets in it, or too little.
    """
    name = data_set or detect(path)
    kind = RECORDED[name]
    stream = kind.read(path, rows)
    world = Recording(stream, kind.user_source, kind.context)
    total = world.requests_left
    per_request = stream.impressions / max(total, 1)
    past = total - min(round(_LIVE_S * LIVE_PACE / per_request), total // 4)
    if past < 1:
        raise UserError(f"{path}: {total} requests are too few for a demonstration: give more --rows, or a larger data set")
    warm_start_s = (world.time_at(WARM_START) - world.now_ms) / 1000
    # Beyond any user of these data sets.
    return Stage(name, kind.wording, _config(name), world, past, per_request, warm_start_s, newcomer=str(10**9))


def detect(path: Path) -> str:
    """The data set that a folder holds, by its files.

    Raises:
        UserError: none that is known.
    """
    for name, kind in RECORDED.items():
        if any(next(path.glob(pattern), None) is not None for pattern in kind.files):
            return name
    what = "holds neither KuaiRand-Pure nor MovieLens" if path.is_dir() else "no such folder"
    raise UserError(f"{path}: {what}: give the folder that one of them unpacks to")


def _config(data_set: str) -> FeatureConfig:
    return load_config(Path(schemas.config.__file__).with_name(f"{data_set}.toml"))
