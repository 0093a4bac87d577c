"""The app that people use, as far as Freshet sees it: it shows videos, and writes both logs as it does."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.stage import Stage
from model.evaluation import Progressive
from pipelines.datasets import ActionBatch, PendingActions, RequestBatch
from pipelines.request_log import RequestLogWriter

_PAST_REQUESTS = 1_000  # written at a time
_REMEMBERED = 1_000  # requests, for who came last


class App:
    """Everyone's requests and actions, and a guest's between them, into the logs in time order.

    Args:
        stage: the world and its past.
        logs: folder of the logs.
    """

    def __init__(self, stage: Stage, logs: Path) -> None:
        self._stage = stage
        self._writer = RequestLogWriter(logs, stage.config)
        self._pending = PendingActions()
        self._times: list[np.ndarray] = []  # of requests
        self._shown: list[np.ndarray] = []  # impressions of each
        self._users: deque[str] = deque(maxlen=_REMEMBERED)
        self._last_action_ms = -1
        self._evaluated_from_ms = -1
        self._oracle = Progressive()

    def live(self, requests: int) -> int:
        """The next requests of everyone else, visible to readers at once; how many came."""
        events = self._stage.world.requests(requests)
        if self._evaluated_from_ms < 0:
            self._evaluated_from_ms = int(events.requests.time_ms[0]) + round(self._stage.warm_start_s * 1000)
        self._pending.push(events.actions)
        if events.truth is not None:
            later = events.truth.time_ms >= self._evaluated_from_ms
            chance = np.clip(events.truth.probability[later, 0].astype(np.float64), 1e-9, 1 - 1e-9)
            self._oracle.update(np.log(chance / (1 - chance)), events.truth.happened[later, 0].astype(np.float32))
        self._write(events.requests)
        self._users.extend(events.requests.user_id.tolist())
        return len(events.requests)

    def past(self, report: Callable[[], object]) -> None:
        """All that happened before the guest comes; `report` is called now and then."""
        left = self._stage.past_requests
        while left > 0:
            left -= self.live(min(left, _PAST_REQUESTS))
            report()

    def recent_users(self, most: int) -> list[str]:
        """Who came last, each once."""
        return [*dict.fromkeys(reversed(self._users))][:most]

    def show(self, request: RequestBatch, actions: ActionBatch) -> None:
        """A guest's request, now, and what he does with what he is shown; his actions are logged as their time comes."""
        self._pending.push(actions)
        self._write(request)

    @property
    def oracle_auc(self) -> float | None:
        """Of the first head, by the true probabilities, over what the model is evaluated on; None outside a simulation."""
        return self._oracle.auc if self._oracle.count else None

    @property
    def impressions(self) -> int:
        """Written so far, the guests' among them."""
        return sum(int(shown.sum()) for shown in self._shown)

    def settled(self) -> int:
        """Impressions whose every label is known to a reader of the logs: all attribution windows have passed."""
        longest_ms = max(head.window_s for head in self._stage.config.heads) * 1000
        before = np.concatenate(self._times) < self._last_action_ms - longest_ms
        return int(np.concatenate(self._shown)[before].sum())

    def close(self) -> None:
        """Let go of the logs."""
        self._writer.append_actions(self._pending.pop_all())
        self._writer.close()

    def _write(self, requests: RequestBatch) -> None:
        actions = self._pending.pop_before(int(requests.time_ms[-1]))
        if len(actions):
            self._last_action_ms = int(actions.time_ms[-1])
        self._writer.append(requests, actions)
        self._writer.roll()
        self._times.append(requests.time_ms)
        self._shown.append(np.diff(requests.item_offsets))
