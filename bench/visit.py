"""The guest's visit: top 10, twenty likes of one tag, and the top 10 again, while everyone else goes on."""

import time
from collections.abc import Callable, Sequence
from statistics import fmean

from bench.app import App
from bench.guest import Viewer, choose_tag, regulars
from bench.processes import Learning
from bench.stage import LIVE_PACE, Stage
from bench.story import LIKES, Answer, Moment, Visit
from pipelines.datasets import ActionBatch
from schemas.process import UserError
from serving.client import RankClient

AT_ONCE, TOP, REGULARS = 2, 10, 10
TICK_S = 0.25
_PATIENCE_S = 90.0


class Host:
    """Plays the visit.

    Args:
        stage, app: the world and its app.
        client: of the model server.
        learning: how far training has come; raises if a process has ended.
        say: told of every moment, with the tag.
        seed: of the videos that the guest comes across.
    """

    def __init__(
        self,
        stage: Stage,
        app: App,
        client: RankClient,
        learning: Callable[[], Learning],
        say: Callable[[str, Moment], None],
        seed: int = 0,
    ) -> None:
        self._stage, self._app, self._client = stage, app, client
        self._learning, self._say = learning, say
        self._guest = Viewer(stage, client, stage.newcomer, seed=seed)
        self._requests_a_tick = max(1, round(LIVE_PACE * TICK_S / stage.impressions_a_request))
        self._due = time.monotonic()
        self._moments: list[Moment] = []

    def play(self) -> Visit:
        """The whole visit.

        Raises:
            UserError: a process has ended, or the model does not come to know of the likes.
        """
        guest, world, app = self._guest, self._stage.world, self._app
        live_from_ms = world.now_ms
        others = regulars(self._stage, self._client, app.recent_users(REGULARS))
        before, shown = guest.ask(TOP)
        app.show(shown, ActionBatch.empty())
        tags = self._stage.tags_of(world.alive())
        tag = choose_tag(tags, before, 2 * LIKES)
        others_before = _mean_with_tag(others, tag)
        self._note(before, before, tag)
        while len(guest.liked) < LIKES:
            self._life_goes_on()
            offer, page = guest.come_across(TOP, tag, min(AT_ONCE, LIKES - len(guest.liked)))
            likes = guest.like(page, [video.item_id for video in offer.videos if tag in video.tags])
            liked_at = time.time()
            app.show(page, likes)
            self._note(guest.ask(TOP)[0], before, tag)
        after, learned_s = self._until_changed(before, tag, liked_at, int(likes.time_ms[-1]))
        return Visit(
            tag=tag,
            tagged=sum(tag in row for row in tags),
            likes=len(guest.liked),
            before=before,
            after=after,
            others=len(others),
            others_before=others_before,
            others_after=_mean_with_tag(others, tag),
            learned_s=learned_s,
            seconds=after.at - liked_at,
            last_like_s=liked_at - before.at,
            moments=tuple(self._moments),
            live_from_ms=live_from_ms,
        )

    def _until_changed(self, before: Answer, tag: str, liked_at: float, like_ms: int) -> tuple[Answer, float]:
        """The first answer that knows of the last like and is another, and the seconds until the like was learned."""
        holds_it: Learning | None = None
        while time.time() < liked_at + _PATIENCE_S:
            self._life_goes_on()
            learning = self._learning()
            # Examples are learned in the order of their decision: once a later request is, the like is.
            if holds_it is None and learning.newest_learned_ms > like_ms:
                holds_it = learning
            answer, shown = self._guest.ask(TOP)
            self._note(answer, before, tag)
            if holds_it is not None and answer.steps >= holds_it.model_version and answer.ids != before.ids:
                self._app.show(shown, ActionBatch.empty())
                return answer, holds_it.at - liked_at
        what = "learned from the likes, but no version with them was served" if holds_it else "did not learn from the likes"
        raise UserError(f"the model {what} within {_PATIENCE_S:.0f} s, or the top {TOP} stayed as it was: see the logs of both")

    def _life_goes_on(self) -> None:
        """A tick of everyone else's requests; a tick that is late takes its time from the wait alone."""
        self._app.live(self._requests_a_tick)
        self._learning()
        self._due = max(self._due + TICK_S, time.monotonic())
        time.sleep(max(0.0, self._due - time.monotonic()))

    def _note(self, answer: Answer, first: Answer, tag: str) -> None:
        moment = Moment(answer.at - first.at, answer.version, len(self._guest.liked), answer.with_tag(tag))
        self._moments.append(moment)
        self._say(tag, moment)


def _mean_with_tag(viewers: Sequence[Viewer], tag: str) -> float:
    """How many videos of their top 10 have a tag, on average."""
    return fmean(viewer.ask(TOP)[0].with_tag(tag) for viewer in viewers) if viewers else 0.0
