"""What the tests of the trainer and its parts share: a small configuration and batches that can be learned from."""

import numpy as np

from model.trainer import ExampleBatch, Trainer
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot

CONFIG = FeatureConfig(
    "model test",
    (
        Slot("user", 1, "user", "user", "id", "int"),
        Slot("tags", 2, "tags", "user", "bag", "int", max_length=3, pooling="mean"),
        Slot("video", 3, "video", "item", "id", "int", admission=2, ttl_s=100, init_scale=0.1),
        Slot("words", 4, "words", "item", "bag", "int", max_length=2, optimizer=OptimizerConfig("adam", learning_rate=0.01)),
    ),
    (Head("click", "click", 60.0), Head("like", "like", 120.0)),
    ModelConfig(dim=4, hidden=(8, 4)),
)
_NUMBERS = np.array([CONFIG.slot_order[s].slot for s in CONFIG.column_slot])


def ids_of(values: np.ndarray) -> np.ndarray:
    """Feature ids int64[N, W] of small values, 0 pads."""
    return np.where(values == 0, 0, (_NUMBERS << 48) | np.asarray(values, np.int64))


def batch_of(size: int, seed: int, values: int = 40, time_ms: int = 1_000) -> ExampleBatch:
    """Random examples whose label follows from user and video; every tenth comes a second time, for its other head."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, values, (size, CONFIG.width))
    drawn[:, :2] += 1
    click = (drawn[:, 0] + drawn[:, 4]) % 3 == 0
    labels = np.stack([click, click & (drawn[:, 0] % 2 == 0)], 1).astype(np.float32)
    mask = np.ones((size, 2), np.float32)
    again = np.arange(size) % 10 == 9
    mask[again, 0] = 0
    return ExampleBatch(ids_of(drawn), labels, mask, ~again, np.full(size, time_ms) + np.arange(size))


def learned(batches: int, size: int = 64, seed: int = 0, trainer: Trainer | None = None, first: int = 0) -> Trainer:
    """A trainer that has learned batches number `first` to `first + batches`."""
    trainer = Trainer(CONFIG, seed=seed, capacity=16) if trainer is None else trainer
    for number in range(first, first + batches):
        trainer.learn(batch_of(size, number, time_ms=1_000 + 20_000 * number))
    return trainer


def rows_by_key(trainer: Trainer) -> dict[int, tuple]:
    """All rows of a trainer's table, default rows included."""
    rows = trainer.table.export(trainer.table.touched_since(0))
    columns = (rows.values, rows.optimizer, rows.steps, rows.counts, rows.last_seen_ms, rows.versions)
    return {int(key): tuple(column[i].tolist() for column in columns) for i, key in enumerate(rows.keys)}


def rows_by_number(trainer: Trainer) -> dict[int, tuple]:
    """The same by where they lie, with their keys."""
    rows = trainer.table.export(trainer.table.touched_since(0))
    columns = (rows.keys, rows.values, rows.optimizer, rows.steps, rows.counts, rows.last_seen_ms, rows.versions)
    return {int(number): tuple(column[i].tolist() for column in columns) for i, number in enumerate(rows.numbers)}
