"""What `bench.collisions` compares: ids of their own and ids hashed into a smaller space, learned by the same trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.collisions_hashing import Hashing, merged, space_for
from pipelines.datasets import Events
from schemas.config import FeatureConfig
from schemas.quiet import quiet_imports

with quiet_imports():
    from model.evaluation import Progressive
    from model.featuriser import Featuriser
    from model.trainer import ExampleBatch, Trainer

HEAD = "click"
AIM = 3  # standard errors
#: Table 1's collision rates by slot; its movies are videos here.
RATES = {"user_id": 1 - 149_970 / 162_541, "video_id": 1 - 57_361 / 59_047}

#: The size of a space, of a slot's name and its ids' `digests`.
Space = Callable[[str, NDArray[np.uint64]], int]


@dataclass(frozen=True)
class Examples:
    """A stream to learn from, in time order.

    Attributes:
        config: of the ids, with one head.
        ids: int64[N, W] feature ids.
        labels: float32[N, 1], whether there was a click.
        time_ms: int64[N], time of the request.
    """

    config: FeatureConfig
    ids: NDArray[np.int64]
    labels: NDArray[np.float32]
    time_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


def examples_of(config: FeatureConfig, events: Iterable[Events]) -> Examples:
    """Every impression of a stream and whether it was clicked, for a model of clicks alone.

    Every click counts: in no data set does one come later than the attribution window's end.
    """
    config = replace(config, heads=tuple(head for head in config.heads if head.name == HEAD))
    featuriser = Featuriser(config)
    ids, labels, times = [], [], []
    for requests, actions, _ in events:
        shown_by = np.repeat(np.arange(len(requests)), np.diff(requests.item_offsets))
        users = featuriser.featurise(requests.user_columns, "user")
        ids.append(np.hstack([users[shown_by], featuriser.featurise(requests.item_columns, "item")]))
        clicks = actions.take(actions.action == HEAD)
        shown = pd.MultiIndex.from_arrays([requests.request_id[shown_by], requests.item_id])
        labels.append(shown.isin(pd.MultiIndex.from_arrays([clicks.request_id, clicks.item_id])))
        times.append(requests.time_ms[shown_by])
    return Examples(config, np.concatenate(ids), np.concatenate(labels).astype(np.float32)[:, None], np.concatenate(times))


def paper_space(slot: str, numbers: NDArray[np.uint64]) -> int:
    """The space in which a slot's ids meet as often as Table 1's."""
    return space_for(numbers, RATES[slot])


def hashed_arm(examples: Examples, space: Space, seed: int) -> tuple[Examples, dict[str, Hashing]]:
    """The same examples with the ids of users and videos hashed, each slot into a space of its own; how, by slot."""
    ids, hashings = examples.ids.copy(), {}
    names = [slot.name for slot in examples.config.slot_order]
    rng = np.random.default_rng(seed)
    for slot in RATES:
        (column,) = np.flatnonzero(examples.config.column_slot == names.index(slot))
        ids[:, column], hashings[slot] = merged(ids[:, column], partial(space, slot), rng)
    return replace(examples, ids=ids), hashings


@dataclass(frozen=True)
class Learned:
    """A run: AUC of all predictions from the first on, and by window of the stream; rows of the table at the end."""

    auc: float
    windows: list[float]
    rows: int


def learn(
    examples: Examples, seed: int, step: int, windows: int, learned: Callable[[int], None] = lambda count: None
) -> Learned:
    """Predict each step's examples as a server would, then learn from them, in time order (progressive validation).

    Args:
        examples: what to learn from.
        seed: of all initial values.
        step: examples of a step.
        windows: parts of the stream, of as many examples each, whose AUC is asked for.
        learned: told how many examples a step had.
    """
    trainer = Trainer(examples.config, seed=seed)
    parts = [Progressive() for _ in range(windows)]
    window = np.arange(len(examples)) * windows // len(examples)
    for start in range(0, len(examples), step):
        rows = slice(start, start + step)
        ids, labels = examples.ids[rows], examples.labels[rows]
        logits = trainer.predict(ids)
        for each in np.unique(window[rows]):
            inside = window[rows] == each
            parts[each].update(logits[inside, 0], labels[inside, 0])
        once = np.ones(len(ids), np.bool_)
        trainer.learn(ExampleBatch(ids, labels, np.ones_like(labels), once, examples.time_ms[rows]))
        learned(len(ids))
    whole = Progressive()
    for part in parts:
        whole.merge(part)
    return Learned(whole.auc, [part.auc for part in parts], len(trainer.table))


@dataclass(frozen=True)
class Comparison:
    """Both arms on a data set, by seed.

    Attributes:
        own: every id on its own.
        hashed: ids hashed.
        hashings: how, by slot.
    """

    own: list[Learned]
    hashed: list[Learned]
    hashings: list[Mapping[str, Hashing]]

    @property
    def differences(self) -> NDArray[np.float64]:
        """float64[seeds]: AUC of `own` less that of `hashed`."""
        return np.array([own.auc - other.auc for own, other in zip(self.own, self.hashed, strict=True)])

    @property
    def standard_error(self) -> float:
        """Of the mean of the differences; NaN for one seed."""
        values = self.differences
        return float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else float("nan")

    @property
    def exceeds_aim(self) -> bool:
        """Whether the mean difference is more than `AIM` standard errors above 0."""
        return bool(self.differences.mean() > AIM * self.standard_error)

    @property
    def window_differences(self) -> NDArray[np.float64]:
        """float64[seeds, windows]: the same by window."""
        return np.array([run.windows for run in self.own]) - np.array([run.windows for run in self.hashed])
