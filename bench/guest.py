"""People who are shown videos: each asks the model server what to watch, with features that can be logged as they were."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from bench.stage import Stage
from bench.story import Answer, Video
from model.featuriser import Featuriser
from pipelines.datasets import ActionBatch, RequestBatch
from pipelines.datasets.requests import object_array
from schemas.process import UserError
from serving.client import RankClient

_BETWEEN_ACTIONS_MS = 1_000


class Viewer:
    """Someone who asks a model server for videos.

    Args:
        stage: the world whose videos are ranked.
        client: of the model server.
        user_id: as the logs spell it.
        user_ids: int64[Wu], features that the model has of the viewer; None for a newcomer, of whom only the id is known.
        seed: of what the viewer comes across.
    """

    def __init__(
        self, stage: Stage, client: RankClient, user_id: str, user_ids: np.ndarray | None = None, seed: int = 0
    ) -> None:
        self._stage, self._client = stage, client
        self._user_id, self._user_ids = user_id, user_ids
        self._featuriser = Featuriser(stage.config)
        self._rng = np.random.default_rng(seed)
        self._requests = 0
        self.liked: set[str] = set()

    def ask(self, k: int) -> tuple[Answer, RequestBatch]:
        """The `k` best of all videos alive but those liked already, and the request to show (and so to log) them."""
        return self._ask(self._not_liked(lambda tags: True), k)

    def come_across(self, k: int, tag: str, tagged: int) -> tuple[Answer, RequestBatch]:
        """As `ask`, of a page of `k`: so many with a tag, drawn by lot, among the best of those without it."""
        drawn = self._rng.permutation(self._not_liked(lambda tags: tag in tags))[:tagged]
        best, _ = self._ask(self._not_liked(lambda tags: tag not in tags), k - drawn.size)
        return self._ask(np.concatenate([drawn, object_array(list(best.ids), len(best.ids))]), k)

    def like(self, request: RequestBatch, items: Sequence[str]) -> ActionBatch:
        """All that it takes to like some videos of a request, one second after the other; the others are skipped."""
        kinds = self._stage.wording.like
        self.liked |= set(items)
        count = len(items) * len(kinds)
        return ActionBatch(
            request_id=np.repeat(request.request_id, count),
            user_id=np.repeat(request.user_id, count),
            item_id=np.repeat(object_array(items, len(items)), len(kinds)),
            action=object_array([*kinds] * len(items), count),
            time_ms=request.time_ms[0] + _BETWEEN_ACTIONS_MS * np.arange(1, count + 1),
        )

    def _not_liked(self, wanted: Callable[[tuple[str, ...]], bool]) -> np.ndarray:
        alive = self._stage.world.alive()
        videos = zip(alive.item_id.tolist(), self._stage.tags_of(alive), strict=True)
        found = [video for video, tags in videos if video not in self.liked and wanted(tags)]
        return object_array(found, len(found))

    def _ask(self, candidates: np.ndarray, k: int) -> tuple[Answer, RequestBatch]:
        """Ranks candidates, object[N] of str. The request has the raw features that the model was asked with, as ids."""
        world = self._stage.world
        self._requests += 1
        name = f"{self._user_id}-{self._requests}"
        offered = world.show(name, self._user_id, candidates, world.now_ms)
        ids = self._featuriser.featurise(offered.item_columns, "item")
        user_ids = self._user_ids
        if user_ids is None:
            user_ids = self._featuriser.featurise(offered.user_columns, "user")[0]
        started = time.perf_counter()
        ranking = self._client.rank(user_ids, ids, k)
        latency_ms = 1000 * (time.perf_counter() - started)
        shown = world.show(name, self._user_id, candidates[ranking.index], world.now_ms)
        stage = self._stage
        columns = (shown.item_id.tolist(), stage.names_of(shown), stage.tags_of(shown), ranking.scores.tolist())
        videos = tuple(map(Video, *columns))
        steps = int(ranking.shard_versions.sum())
        return Answer(time.time(), ranking.version, steps, len(ids), latency_ms, videos), shown


def regulars(stage: Stage, client: RankClient, user_ids: Sequence[str]) -> list[Viewer]:
    """Those of the users whom the model knows, with the features it has of them."""
    found = ((user_id, client.catalogue(user_id)) for user_id in user_ids)
    return [Viewer(stage, client, user_id, known.user_ids) for user_id, known in found if known.known]


def choose_tag(tags: Sequence[tuple[str, ...]], top: Answer, enough: int) -> str:
    """The commonest of the tags that the guest was not offered, or as seldom as any.

    Args:
        tags: of all videos alive.
        top: what the guest was offered.
        enough: videos alive that the tag must have.

    Raises:
        UserError: no tag has so many videos.
    """
    alive = Counter(tag for row in tags for tag in set(row))
    common = [tag for tag, videos in alive.items() if videos >= enough]
    if not common:
        raise UserError(f"no tag has {enough} videos to like and to be offered: give more --rows, or a larger data set")
    return min(common, key=lambda tag: (top.with_tag(tag), -alive[tag], tag))
