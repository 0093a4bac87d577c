"""What the tests of the table share: a configuration, short-hands, a plain-Python table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import strategies as st

from model.feature_ids import default_key
from model.table import EmbeddingTable
from model.table_rows import TableRows
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot

ADAM = OptimizerConfig("adam", learning_rate=0.02)
CONFIG = FeatureConfig(
    "table test",
    (
        Slot("user", 1, "user", "user", "id", "int", ttl_s=20),
        Slot("tags", 3, "tags", "user", "bag", "string", max_length=3, pooling="mean", optimizer=ADAM),
        Slot("video", 7, "video", "item", "id", "int", admission=3, ttl_s=10, init_scale=0.5),
        Slot("words", 900, "words", "item", "text", "string", max_length=2, admission=2, optimizer=ADAM),
    ),
    (Head("click", "click", 60.0),),
    ModelConfig(dim=5),
)
WIDTH = 1 + CONFIG.model.dim
SLOTS = CONFIG.slot_order
NUMBERS = np.array([SLOTS[s].slot for s in CONFIG.column_slot])
USER, TAG, VIDEO, WORD = (slot.slot for slot in SLOTS)
VALUES, SEED = 6, 11


def table_of(capacity: int = 16) -> EmbeddingTable:
    """An empty table, small so that it grows."""
    return EmbeddingTable(CONFIG, capacity=capacity, seed=SEED)


def batches() -> st.SearchStrategy[np.ndarray]:
    """Values 0 to `VALUES` int64[1 to 5, W] of a batch's ids."""
    width = CONFIG.width
    row = st.lists(st.integers(0, VALUES), min_size=width, max_size=width)
    return st.lists(row, min_size=1, max_size=5).map(np.array)


def ids_of(values: np.ndarray) -> np.ndarray:
    """Ids int64[N, W] of small values, 0 pads."""
    values = np.asarray(values, np.int64)
    return np.where(values == 0, 0, (NUMBERS << 48) | values)


def admit(table: EmbeddingTable, ids: np.ndarray, time_ms: int, counted: np.ndarray | None = None) -> np.ndarray:
    """Rows of all distinct ids after one batch, every row counted unless `counted` bool[N] says otherwise."""
    unique, _, occurrences = table.dedup(ids, counted)
    return table.admit(unique, occurrences, time_ms)[0]


def put(table: EmbeddingTable, ids: list[int], time_ms: int = 0, times: int = 1) -> np.ndarray:
    """Rows of ids that occur `times` times."""
    return table.admit(np.array(ids, np.int64), np.full(len(ids), times, np.int32), time_ms)[0]


def pooled(table: EmbeddingTable, rows: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32[N, S] and embeddings float32[N, S, dim] of rows, row 0 first, pooled into arrays of NaN."""
    n, slots = len(inverse), len(SLOTS)
    first = np.full((n, slots), np.nan, np.float32)
    v = np.full((n, slots, WIDTH - 1), np.nan, np.float32)
    values = np.concatenate([np.zeros((1, WIDTH), np.float32), table.export(rows[1:]).values])
    table.pool(values, inverse, first, v)
    return first, v


def feature_id(slot: int, value: int) -> int:
    return slot << 48 | value


def whole_s(time_ms: int) -> int:
    """A time in ms as the table keeps it: in whole seconds."""
    return time_ms // 1000 * 1000


def contents(rows: TableRows) -> dict[int, tuple]:
    """Whole rows by key."""
    columns = (rows.values, rows.optimizer, rows.steps, rows.counts, rows.last_seen_ms)
    return {int(key): tuple(c[i].tolist() for c in columns) for i, key in enumerate(rows.keys)}


def everything(table: EmbeddingTable) -> dict[int, tuple]:
    """All rows of a table by key, default rows included."""
    return contents(table.export(table.touched_since(0)))


@dataclass
class Row:
    """One row of the plain table."""

    slot: Slot
    values: np.ndarray
    count: int = 0
    last_seen_ms: int = 0
    steps: int = 0
    m: np.ndarray = field(default_factory=lambda: np.zeros(WIDTH))
    u: np.ndarray = field(default_factory=lambda: np.zeros(WIDTH))

    def __post_init__(self) -> None:
        if self.slot.optimizer.kind == "adagrad":
            self.m = np.full(WIDTH, self.slot.optimizer.initial_accumulator)

    def learn(self, g: np.ndarray) -> None:
        o = self.slot.optimizer
        if o.kind == "adagrad":
            self.m = self.m + g**2
            self.values = self.values - o.learning_rate * g / np.sqrt(self.m + o.epsilon)
            return
        self.steps += 1
        self.m = self.m + (g - self.m) * (1 - o.beta1)
        self.u = self.u + (g**2 - self.u) * (1 - o.beta2)
        rate = o.learning_rate * np.sqrt(1 - o.beta2**self.steps) / (1 - o.beta1**self.steps)
        self.values = self.values - rate * self.m / (np.sqrt(self.u) + o.epsilon)


class PlainTable:
    """What an EmbeddingTable does, with dictionaries and float64, one id at a time."""

    def __init__(self, initial: dict[int, np.ndarray]) -> None:
        self.initial = initial
        self.rows = {default_key(slot.slot): Row(slot, np.zeros(WIDTH)) for slot in SLOTS}
        self.occurred: Counter[int] = Counter()

    def ids(self) -> set[int]:
        return {key for key in self.rows if key > 0}

    def key_of(self, feature: int) -> int:
        """The key of the row an id reads."""
        return feature if feature in self.rows else default_key(feature >> 48)

    def is_expired(self, key: int, time_ms: int) -> bool:
        row = self.rows[key]
        return row.slot.ttl_s is not None and time_ms // 1000 - row.last_seen_ms // 1000 > row.slot.ttl_s

    def admit(self, unique: np.ndarray, occurrences: np.ndarray, time_ms: int) -> list[int | None]:
        """Key of the row of each id."""
        keys: list[int | None] = []
        for feature, times in zip(unique.tolist(), occurrences.tolist(), strict=True):
            if feature in self.rows and self.is_expired(feature, time_ms):
                del self.rows[feature]
            if feature != 0 and feature not in self.rows and times > 0:
                slot = next(slot for slot in SLOTS if slot.slot == feature >> 48)
                self.occurred[feature] += times
                if slot.admission == 1 or self.occurred[feature] >= slot.admission:
                    count = self.occurred[feature] if slot.admission > 1 else times
                    self.rows[feature] = Row(slot, self.initial[feature], count, whole_s(time_ms))
            elif feature in self.rows:
                row = self.rows[feature]
                row.count += times
                row.last_seen_ms = max(row.last_seen_ms, whole_s(time_ms))
            keys.append(self.key_of(feature) if feature else None)
        return keys

    def update(self, keys: list[int | None], grads: np.ndarray) -> None:
        sums: dict[int, np.ndarray] = {}
        for key, g in zip(keys, grads.astype(np.float64), strict=True):
            if key is not None:
                sums[key] = sums.get(key, 0) + g
        for key, g in sums.items():
            self.rows[key].learn(g)


def initial_values(values: int, seed: int) -> dict[int, np.ndarray]:
    """Values of new rows by id, for the ids of values 1 to `values`: they follow from seed and id alone."""
    at_once = FeatureConfig("at once", tuple(replace(s, admission=1) for s in CONFIG.slots), CONFIG.heads, CONFIG.model)
    table = EmbeddingTable(at_once, capacity=16, seed=seed)
    keys = [feature_id(slot.slot, value) for slot in SLOTS for value in range(1, values + 1)]
    rows = table.export(put(table, keys))
    return dict(zip(rows.keys.tolist(), rows.values.astype(np.float64), strict=True))
