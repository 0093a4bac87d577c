"""A recorded data set as a world that goes on: what the simulated one is asked for, out of a recording."""

from collections import deque

import numpy as np

from pipelines.datasets import ActionBatch, Events, RequestBatch, Stream
from pipelines.datasets.requests import Columns, object_array
from pipelines.datasets.simulator import AliveVideos
from schemas.process import UserError

_REMEMBERED = 20_000  # impressions: what was shown among these can be shown again


class Recording:
    """The events of a stream, handed out a few requests at a time; between them a guest may be shown what others were.

    Args:
        stream: of a data set; it is read as a whole.
        user_source: raw user column that holds the user id.
        context: raw user columns that belong to the moment rather than the user; a guest's are those of the newest request.
        most_videos: how many videos `alive` offers, those shown last.
    """

    def __init__(self, stream: Stream, user_source: str, context: tuple[str, ...], most_videos: int = 2_000) -> None:
        self._events = deque(stream.events)
        self._user_source, self._context, self._most = user_source, context, most_videos
        self._recent: deque[RequestBatch] = deque()
        self._remembered = 0
        self._alive: AliveVideos | None = None
        self.requests_left = sum(len(events.requests) for events in self._events)
        self.now_ms = int(self._events[0].requests.time_ms[0]) if self._events else 0

    def time_at(self, share: float) -> int:
        """Time of the request with this share of the requests that are left before it, in ms."""
        at = int(share * self.requests_left)
        for events in self._events:
            if at < len(events.requests):
                return int(events.requests.time_ms[at])
            at -= len(events.requests)
        return self.now_ms

    def requests(self, count: int) -> Events:
        """The next `count` (>= 1) requests or, towards the end of a batch, fewer; moves `now_ms` to the last one.

        Raises:
            UserError: the recording has ended.
        """
        if not self._events:
            raise UserError("the recording has ended before the guest had his answer: give more of it (--rows)")
        events = self._events.popleft()
        if count < len(events.requests):
            self._events.appendleft(_cut(events, count, len(events.requests)))
            events = _cut(events, 0, count)
        self.requests_left -= len(events.requests)
        self.now_ms = int(events.requests.time_ms[-1])
        self._remember(events.requests)
        return events

    def alive(self) -> AliveVideos:
        """The videos that were shown last, with their columns of then."""
        if self._alive is None:
            batches = [*reversed(self._recent)]
            item_id = np.concatenate([requests.item_id[::-1] for requests in batches])
            _, first = np.unique(item_id.astype(str), return_index=True)
            newest = np.sort(first)[: self._most]
            names = batches[0].item_columns
            columns = {
                name: np.concatenate([requests.item_columns[name][::-1] for requests in batches])[newest] for name in names
            }
            self._alive = AliveVideos(self.now_ms, item_id[newest], columns)
        return self._alive

    def show(self, request_id: str, user_id: str, video_ids: np.ndarray, time_ms: int) -> RequestBatch:
        """One request of `user_id`, of whom nothing but the id is known, who is shown these videos (object[k] of str).

        Raises:
            ValueError: a video is not in `alive`.
        """
        alive = self.alive()
        place_of = {video: place for place, video in enumerate(alive.item_id)}
        if strangers := [video for video in video_ids if video not in place_of]:
            raise ValueError(f"video {strangers[0]} was not shown lately: choose among alive()")
        place = np.array([place_of[video] for video in video_ids])
        return RequestBatch(
            request_id=object_array([request_id], 1),
            user_id=object_array([user_id], 1),
            time_ms=np.array([time_ms], dtype=np.int64),
            user_columns=self._newcomer(user_id),
            item_offsets=np.array([0, len(place)], dtype=np.int64),
            item_id=alive.item_id[place],
            item_columns={name: column[place] for name, column in alive.columns.items()},
        )

    def _newcomer(self, user_id: str) -> Columns:
        """The newest request's context, the id (an integer in these data sets), and nothing else."""
        newest = self._recent[-1].user_columns
        columns = {name: newest[name][-1:] if name in self._context else object_array([None], 1) for name in newest}
        return columns | {self._user_source: np.array([int(user_id)], dtype=np.int64)}

    def _remember(self, requests: RequestBatch) -> None:
        self._alive = None
        self._recent.append(requests)
        self._remembered += requests.impressions
        while self._remembered - self._recent[0].impressions > _REMEMBERED:
            self._remembered -= self._recent.popleft().impressions


def _cut(events: Events, first: int, last: int) -> Events:
    """Requests `first` to `last` of a batch, with their impressions and actions."""
    requests, actions = events.requests, events.actions
    rows = slice(first, last)
    items = slice(int(requests.item_offsets[first]), int(requests.item_offsets[last]))
    ids = requests.request_id[rows]
    part = RequestBatch(
        request_id=ids,
        user_id=requests.user_id[rows],
        time_ms=requests.time_ms[rows],
        user_columns={name: column[rows] for name, column in requests.user_columns.items()},
        item_offsets=requests.item_offsets[first : last + 1] - requests.item_offsets[first],
        item_id=requests.item_id[items],
        item_columns={name: column[items] for name, column in requests.item_columns.items()},
    )
    return Events(part, actions.take(_among(actions, ids)))


def _among(actions: ActionBatch, request_ids: np.ndarray) -> np.ndarray:
    known = set(request_ids.tolist())
    return np.fromiter((request in known for request in actions.request_id.tolist()), dtype=bool, count=len(actions))
