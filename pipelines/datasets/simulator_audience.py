"""The simulated world's users: tastes that drift and jump, and the sessions in which they come."""

import numpy as np

from pipelines.datasets.simulator_catalogue import HOUR_MS, RESIDUALS
from pipelines.datasets.simulator_words import HASHTAGS

FACTORS = 4
COUNTRIES = np.array(["JP", "US", "BR", "IN", "FR", "DE", "ID", "MX", "KE", "TR"], dtype=object)


class Audience:
    """U users, by index; the state is brought up to date only for those who come, so cost follows traffic.

    A taste is a few shared factors (what kind of person), drifting as an Ornstein-Uhlenbeck process, plus
    crazes and dislikes for single hashtags that come at once and fade over days. country: object[U] of str.
    """

    FACTOR_MEMORY_H, RESIDUAL_MEMORY_H = 120.0, 240.0
    CRAZE, DISLIKE, CRAZE_MEMORY_H, CRAZE_EVERY_H = 2.5, -1.5, 72.0, 48.0
    RESIDUAL_SCALE = 0.2

    def __init__(self, rng: np.random.Generator, users: int, now_ms: int) -> None:
        self._rng = rng
        home = rng.integers(0, len(COUNTRIES), users)
        self.country = COUNTRIES[home]
        # Where people come from shifts what they like; around that, everyone drifts.
        self._home_factors = rng.normal(0.0, 0.6, (len(COUNTRIES), FACTORS)).astype(np.float32)[home]
        self._factors = rng.normal(0.0, 1.0, (users, FACTORS)).astype(np.float32)
        self._residual = rng.normal(0.0, self.RESIDUAL_SCALE, (users, RESIDUALS)).astype(np.float32)
        self._craze = np.zeros((users, len(HASHTAGS)), dtype=np.float32)
        self._updated_ms = np.full(users, now_ms, dtype=np.int64)
        self._loadings = rng.normal(0.0, 1.15 / np.sqrt(FACTORS), (FACTORS, len(HASHTAGS))).astype(np.float32)
        self.bias = rng.normal(0.0, 0.4, users).astype(np.float32)
        # Heavy-tailed activity (Zipf 0.6 over a random order of users): some come hourly, some once a week.
        activity = rng.permutation((1.0 + np.arange(users)) ** -0.6)
        self._activity = np.cumsum(activity) / activity.sum()
        self._catch_craze(np.arange(users))

    def draw(self, count: int) -> np.ndarray:
        """Who comes, int64[count]."""
        return np.searchsorted(self._activity, self._rng.random(count)).clip(max=len(self._activity) - 1)

    def tastes(self, users: np.ndarray, now_ms: int) -> np.ndarray:
        """What these users like now, float32[n, K + RESIDUALS]; times a video's traits it is a logit."""
        self._advance(np.unique(users), now_ms)
        factors = self._home_factors[users] + self._factors[users]
        return np.hstack((factors @ self._loadings + self._craze[users], self._residual[users]))

    def _advance(self, users: np.ndarray, now_ms: int) -> None:
        rng, n = self._rng, len(users)
        hours = ((now_ms - self._updated_ms[users]) / HOUR_MS)[:, None]
        self._updated_ms[users] = now_ms
        keep = np.exp(-hours / self.FACTOR_MEMORY_H)
        self._factors[users] = keep * self._factors[users] + np.sqrt(1 - keep**2) * rng.normal(0.0, 1.0, (n, FACTORS))
        keep = np.exp(-hours / self.RESIDUAL_MEMORY_H)
        noise = rng.normal(0.0, self.RESIDUAL_SCALE, (n, RESIDUALS))
        self._residual[users] = keep * self._residual[users] + np.sqrt(1 - keep**2) * noise
        self._craze[users] *= np.exp(-hours / self.CRAZE_MEMORY_H)
        self._catch_craze(users[rng.random(n) < 1.0 - np.exp(-hours[:, 0] / self.CRAZE_EVERY_H)])

    def _catch_craze(self, users: np.ndarray) -> None:
        self._craze[users, self._rng.integers(0, len(HASHTAGS), len(users))] = self.DISLIKE
        self._craze[users, self._rng.integers(0, len(HASHTAGS), len(users))] = self.CRAZE


class Sessions:
    """Times and users of requests, endless and in time order.

    Sessions start by a daily rhythm that peaks at 21 h UTC, each a handful of requests half a minute apart.
    Held are only the requests of sessions that have begun.
    """

    LENGTH, GAP_MS, RHYTHM = 6.0, 25_000.0, 0.6

    def __init__(self, rng: np.random.Generator, audience: Audience, requests_per_day: float, now_ms: int) -> None:
        self._rng, self._audience = rng, audience
        self._starts_per_ms = requests_per_day / self.LENGTH / (24 * HOUR_MS)
        self._until_ms = now_ms
        self._time_ms = np.empty(0, dtype=np.int64)
        self._user = np.empty(0, dtype=np.int64)

    def next(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(time_ms, user) of the next `count` requests, int64 each."""
        while (known := int(np.searchsorted(self._time_ms, self._until_ms))) < count:
            self._begin_sessions(count - known)
        cut = slice(count)
        time_ms, user = self._time_ms[cut], self._user[cut]
        self._time_ms, self._user = self._time_ms[count:], self._user[count:]
        return time_ms, user

    def _begin_sessions(self, requests: int) -> None:
        rng = self._rng
        span_ms = max(1.0, requests / self.LENGTH / self._starts_per_ms)
        span_ms = min(span_ms, 6.0 * HOUR_MS)
        grid = self._until_ms + np.linspace(0.0, span_ms, 65)
        rate = self._starts_per_ms * (1.0 + self.RHYTHM * np.cos(2 * np.pi * (grid / HOUR_MS - 21.0) / 24.0))
        total = np.concatenate(([0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(grid))))
        start = np.interp(rng.random(rng.poisson(total[-1])) * total[-1], total, grid)
        length = rng.geometric(1.0 / self.LENGTH, len(start))
        session = np.repeat(np.arange(len(start)), length)
        elapsed = np.cumsum(rng.exponential(self.GAP_MS, len(session)))
        first = np.cumsum(length) - length
        # The first request of a session comes at its start; later ones after the gaps since.
        time_ms = (start[session] + elapsed - elapsed[first][session]).astype(np.int64)
        user = self._audience.draw(len(start))[session]
        time_ms = np.concatenate((self._time_ms, time_ms))
        order = np.argsort(time_ms, kind="stable")
        self._time_ms, self._user = time_ms[order], np.concatenate((self._user, user))[order]
        self._until_ms = int(self._until_ms + span_ms)
