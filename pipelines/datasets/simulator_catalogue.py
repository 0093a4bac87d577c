"""The simulated world's videos: a fixed number alive, each death making room for a new one."""

import numpy as np

from pipelines.datasets.requests import object_array, strings
from pipelines.datasets.simulator_words import COMMON_WORDS, HASHTAG_WORDS, HASHTAGS

HOUR_MS = 3_600_000
MAX_TAGS = 3
RESIDUALS = 6
AUTHORS = 400
_WORDS = [words.split() for words in HASHTAG_WORDS.values()]
_WORDS_A_TAG = min(map(len, _WORDS))
_VOCABULARY = np.array([word for words in _WORDS for word in words[:_WORDS_A_TAG]] + COMMON_WORDS, dtype=object)
_FIRST_COMMON = len(_WORDS) * _WORDS_A_TAG


class Trend:
    """What the world thinks of each hashtag now: an Ornstein-Uhlenbeck walk plus spikes that fade in hours.

    score: float32[K], in units of the click logit.
    """

    SCALE, MEMORY_H = 0.7, 30.0
    SPIKE, SPIKE_MEMORY_H, SPIKES_AN_HOUR = 2.0, 8.0, 0.15

    def __init__(self, rng: np.random.Generator, now_ms: int) -> None:
        self._rng, self._now_ms = rng, now_ms
        self._walk = rng.normal(0.0, self.SCALE, len(HASHTAGS))
        self._spike = np.zeros(len(HASHTAGS))

    def advance(self, now_ms: int) -> None:
        hours = (now_ms - self._now_ms) / HOUR_MS
        self._now_ms = now_ms
        keep = np.exp(-hours / self.MEMORY_H)
        noise = self._rng.normal(0.0, self.SCALE, len(HASHTAGS))
        self._walk = keep * self._walk + np.sqrt(1.0 - keep**2) * noise
        self._spike *= np.exp(-hours / self.SPIKE_MEMORY_H)
        viral = self._rng.integers(0, len(HASHTAGS), self._rng.poisson(hours * self.SPIKES_AN_HOUR))
        self._spike[viral] = self.SPIKE

    @property
    def score(self) -> np.ndarray:
        return (self._walk + self._spike).astype(np.float32)


class Catalogue:
    """C videos alive, as arrays by place; a place's video is replaced when it dies, so memory never grows.

    video_name, author_name, caption: object[C] of str; hashtags: object[C] of lists; born_ms, dies_ms,
    duration_ms: int64[C]; traits: float32[C, K + RESIDUALS], what a viewer's taste is multiplied with;
    quality: float32[C, 3], in the logits of click, long view and like.
    """

    def __init__(self, rng: np.random.Generator, size: int, now_ms: int, trend: Trend) -> None:
        self._rng = rng
        self.video_name = np.empty(size, dtype=object)
        self.author_name = np.empty(size, dtype=object)
        self.born_ms = np.zeros(size, dtype=np.int64)
        self.dies_ms = np.zeros(size, dtype=np.int64)
        self.duration_ms = np.zeros(size, dtype=np.int64)
        self.hashtags = np.empty(size, dtype=object)
        self.caption = np.empty(size, dtype=object)
        self.traits = np.zeros((size, len(HASHTAGS) + RESIDUALS), dtype=np.float32)
        self.quality = np.zeros((size, 3), dtype=np.float32)
        self._appeal = np.zeros(size, dtype=np.float32)
        self._author_tag = rng.integers(0, len(HASHTAGS), AUTHORS)
        self._author_quality = rng.normal(0.0, (0.6, 0.3, 0.3), (AUTHORS, 3))
        self._next_id = 1
        self._create(np.arange(size), np.full(size, now_ms), trend)
        # The first catalogue is as old as any later one: its videos are in the middle of their lives.
        lived = (rng.random(size) * (self.dies_ms - self.born_ms)).astype(np.int64)
        self.born_ms -= lived
        self.dies_ms -= lived

    def advance(self, now_ms: int, trend: Trend) -> None:
        """Replaces every video that died by `now_ms`; a trending hashtag gets more of the new ones."""
        while len(dead := np.flatnonzero(self.dies_ms <= now_ms)):
            self._create(dead, self.dies_ms[dead], trend)

    def exposure(self, now_ms: int, trend: Trend) -> np.ndarray:
        """Unnormalised probability of being shown, float64[C]: higher for new, good and trending videos."""
        age_h = (now_ms - self.born_ms) / HOUR_MS
        fame = 0.6 * self._appeal + 0.4 * self.quality[:, 0] + 0.5 * self.trend_of(trend)
        return np.exp(fame) * (0.1 + np.exp(-age_h / 14.0))

    def trend_of(self, trend: Trend) -> np.ndarray:
        """Mean trend of each video's hashtags, float32[C]."""
        return self.traits[:, : len(HASHTAGS)] @ trend.score

    def _create(self, place: np.ndarray, born_ms: np.ndarray, trend: Trend) -> None:
        rng, count = self._rng, len(place)
        author = (rng.random(count) ** 2 * AUTHORS).astype(np.int64)
        tags = self._draw_tags(author, trend)
        self.video_name[place] = strings(self._next_id + np.arange(count))
        self._next_id += count
        self.author_name[place] = strings(author + 1)
        self.born_ms[place] = born_ms
        self.dies_ms[place] = born_ms + ((12.0 + rng.exponential(36.0, count)) * HOUR_MS).astype(np.int64)
        self.duration_ms[place] = np.clip(rng.lognormal(10.0, 0.7, count), 5_000, 120_000).astype(np.int64)
        self.quality[place] = rng.normal(0.0, (0.8, 0.4, 0.4), (count, 3)) + self._author_quality[author]
        self._appeal[place] = rng.normal(0.0, 1.0, count)
        self.traits[place] = np.hstack((self._tag_mix(tags), rng.normal(0.0, 1.0, (count, RESIDUALS))))
        self.hashtags[place] = object_array(([HASHTAGS[t] for t in row if t >= 0] for row in tags), count)
        self.caption[place] = self._draw_captions(tags)

    def _draw_tags(self, author: np.ndarray, trend: Trend) -> np.ndarray:
        """One to three different hashtags a video, int64[n, MAX_TAGS], -1 for none but in column 0."""
        rng, count = self._rng, len(author)
        share = np.exp(trend.score.astype(np.float64))
        tags = rng.choice(len(HASHTAGS), (count, MAX_TAGS), p=share / share.sum())
        tags[:, 0] = np.where(rng.random(count) < 0.6, self._author_tag[author], tags[:, 0])
        for column in range(1, MAX_TAGS):
            repeated = (tags[:, :column] == tags[:, column : column + 1]).any(axis=1)
            tags[repeated | (rng.random(count) < 0.5), column] = -1
        return tags

    @staticmethod
    def _tag_mix(tags: np.ndarray) -> np.ndarray:
        mix = np.zeros((len(tags), len(HASHTAGS) + 1), dtype=np.float32)
        np.put_along_axis(mix, tags, 1.0, axis=1)  # -1 lands in the spare last column
        mix = mix[:, :-1]
        return mix / mix.sum(axis=1, keepdims=True)

    def _draw_captions(self, tags: np.ndarray) -> np.ndarray:
        """Four to eight words, two thirds of them from the hashtags' vocabularies; object[n] of str."""
        rng, count = self._rng, len(tags)
        about = np.take_along_axis(tags, rng.integers(0, MAX_TAGS, (count, 8)), axis=1)
        about = np.where(about < 0, tags[:, :1], about)
        topical = about * _WORDS_A_TAG + rng.integers(0, _WORDS_A_TAG, about.shape)
        common = rng.integers(_FIRST_COMMON, len(_VOCABULARY), about.shape)
        words = _VOCABULARY[np.where(rng.random(about.shape) < 0.67, topical, common)]
        lengths = rng.integers(4, 9, count)
        return object_array((" ".join(row[:n]) for row, n in zip(words, lengths, strict=True)), count)
