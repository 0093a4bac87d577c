"""A long life of the table, in batches, against plain NumPy.

    python -m tests.model.soak_table --operations 10000000

An operation is one id that is learned or looked up, one row that expiry looks at, or one row that a reader takes. On one
thread and on two tables must stay equal bit by bit; a reader's copy must equal the table each time it has taken a delta; the
table is restored from a snapshot now and then; a third one, held to a number of bytes, must stay within them, evict only what
it may, and hold what it should otherwise. The memory of the process must not grow. A failure names the seed and the operation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.progress import Progress

from model.admission import AdmissionSketch
from model.table import EmbeddingTable
from model.threads import use_threads
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot
from schemas.process import CommandParser, UserError, run_main
from tests.model.held_model import HeldModel, bytes_for, most_ids
from tests.model.table_model import TableModel

DIM = 4
CONFIG = FeatureConfig(
    "soak",
    (
        Slot("user", 1, "user", "user", "id", "int", admission=3, ttl_s=400, optimizer=OptimizerConfig("sgd")),
        Slot("tag", 3, "tag", "user", "id", "int", admission=2, admission_mode="probability", ttl_s=150),
        Slot("video", 7, "video", "item", "id", "int", ttl_s=80, min_rows=300, optimizer=OptimizerConfig("adam")),
        Slot("author", 9, "author", "item", "id", "int", init="uniform", optimizer=OptimizerConfig("ftrl", l1=1e-3, l2=1e-3)),
    ),
    (Head("click", "click", 60.0),),
    ModelConfig(dim=DIM),
)
# Of a table held to a number of bytes, see `HeldModel`: videos stay for as long as there is room.
HELD = replace(CONFIG, slots=tuple(replace(slot, ttl_s=None) if slot.min_rows else slot for slot in CONFIG.slots))
_MOST_GROWTH = 1.05  # of the memory of the process over the second half of a life, most to most: an allocator's leeway
_BATCH = 1024  # rows of a batch, of four ids each
_SKETCH_WIDTH = 1 << 20  # the table's


class Soak:
    """Tables that live side by side, and the model that says what is to be in them.

    Args:
        values: ids of each slot there can be.
        seed: of all that happens.
    """

    def __init__(self, values: int, seed: int) -> None:
        self.rng, self.values, self.seed = np.random.default_rng(seed), values, seed
        self.model = TableModel(CONFIG, values, seed, AdmissionSketch(_SKETCH_WIDTH))
        self.tables = {threads: EmbeddingTable(CONFIG, capacity=1, seed=seed) for threads in (1, 2)}
        self.table_bytes = bytes_for(HELD, values // 2)  # an eighth of the ids there can be
        self.held = EmbeddingTable(HELD, capacity=1, seed=seed, table_bytes=self.table_bytes)
        self.held_model = HeldModel(HELD, values, seed, most_ids(self.held), AdmissionSketch(_SKETCH_WIDTH))
        self.copy, self.taken = EmbeddingTable(CONFIG, capacity=1), 0
        self.time_ms, self.batches, self.operations, self.checks = 0, 0, 0, 0

    def batch(self) -> None:
        """Learn a batch, some ids of it often and some once, and let a part of the table expire."""
        self.batches += 1
        self.time_ms = max(0, self.time_ms + int(self.rng.integers(-3_000, 20_000)))
        size = int(self.rng.integers(1, _BATCH))
        often = np.exp(self.rng.random((size, 4)) * np.log(self.values)).astype(np.int64) - 1
        once = self.rng.integers(0, self.values, (size, 4))
        ids = self.model.ids.reshape(4, -1)[np.arange(4), np.where(self.rng.random((size, 4)) < 0.5, often, once)]
        ids[self.rng.random((size, 4)) < 0.1] = 0
        first = self.rng.random(size) < 0.9
        unique, _, occurrences = self.held.dedup(ids, first)
        gradients = self.rng.normal(size=(unique.size, 1 + DIM)).astype(np.float32)
        gradients[self.rng.random(unique.size) < 0.001] = np.nan
        budget = int(self.rng.integers(0, 4 * size))
        entries = self.model.admit(unique, occurrences, self.time_ms, self.tables[1].version + 1)
        left_out = self.model.update(entries, gradients)
        for threads, table in self.tables.items():
            use_threads(threads)
            table.tick()
            rows, values = table.admit(unique, occurrences, self.time_ms)
            assert (values[1:] == table.export(rows[1:]).values).all(), "values of other rows"
            bad = table.update(rows, gradients)
            assert bad == left_out, f"{bad} gradients left out, expected {left_out}"
            assert (rows == self.tables[1].find(unique)).all(), "find and admit disagree"
            gone = self._expire(table, budget)
            if threads == 1:
                self.model.expire(self.time_ms, budget, gone)
        self._batch_of_held(unique, occurrences, gradients, budget)
        self.operations += 3 * ids.size + 2 * unique.size + 3 * budget

    def _batch_of_held(self, unique: np.ndarray, occurrences: np.ndarray, gradients: np.ndarray, budget: int) -> None:
        self.held.tick()
        rows, _ = self.held.admit(unique, occurrences, self.time_ms)
        there = self.held.export(self.held.touched_since(0)).keys
        entries = self.held_model.admit(unique, occurrences, self.time_ms, self.held.version, there)
        assert (self.held.export(rows[rows > 0]).keys == self.held_model.keys[entries[entries >= 0]]).all(), (
            "an id has another row"
        )
        assert self.held.update(rows, gradients) == self.held_model.update(entries, gradients)
        self.held_model.expire(self.time_ms, budget, self._expire(self.held, budget))

    def _expire(self, table: EmbeddingTable, budget: int) -> np.ndarray:
        """Keys that an expiry lets go."""
        table.tick()
        table.expire(self.time_ms, budget)
        return np.unique(table.removed_since(table.version - 1))

    def take(self) -> None:
        """A reader takes a delta, after which it has what the table has; nobody needs what was before."""
        table = self.tables[1]
        rows, removed = table.export(table.touched_since(self.taken)), table.removed_since(self.taken)
        self.copy.load(rows, removed)
        self.copy.tick()
        self.copy.trim(self.copy.version)
        self.taken = table.version
        for each in (*self.tables.values(), self.held):
            each.tick()
            each.trim(each.version - 1)
        self.operations += len(rows) + removed.size

    def restore(self) -> None:
        """Both tables go on from what they hold, in new ones."""
        for threads, table in self.tables.items():
            restored = EmbeddingTable(CONFIG, capacity=int(self.rng.integers(0, 5000)), seed=self.seed)
            restored.restore(table.export(table.touched_since(0)), table.state(), table.version)
            self.tables[threads] = restored

    def check(self) -> None:
        """All tables, in full."""
        self.model.check(self.tables[1], relative=1e-4)
        rows = [sorted_rows(table) for table in (*self.tables.values(), self.copy)]
        for name in ("keys", "values", "optimizer", "steps", "counts", "last_seen_ms"):
            one, two, copy = (getattr(each, name) for each in rows)
            assert one.tobytes() == two.tobytes(), f"{name} depend on the number of threads"
            assert self.taken < self.tables[1].version - 1 or one.tobytes() == copy.tobytes(), f"{name} of the copy are others"
        self.held_model.check(self.held, relative=1e-4)
        assert self.held.nbytes <= self.table_bytes, f"{self.held.nbytes} bytes, of {self.table_bytes}"
        self.checks += 1


def sorted_rows(table: EmbeddingTable):
    """All rows of a table, by key."""
    rows = table.export(table.touched_since(0))
    return table.export(rows.numbers[np.argsort(rows.keys)])


def soak(operations: int, seed: int, told=lambda done: None) -> dict:
    """Live for so many operations; figures of that life.

    Raises:
        AssertionError: a table is not as it should be.
    """
    life, started, resident = Soak(max(500, min(40_000, operations // 100)), seed), time.monotonic(), []
    try:
        while life.operations < operations:
            life.batch()
            if life.batches % 7 == 0:
                life.take()
                life.check()
                resident.append(resident_bytes())
                if life.batches % 21 == 0:
                    life.restore()
            told(life.operations)
        life.take()
        life.check()
        growth = growth_of(resident)
        assert growth <= _MOST_GROWTH, f"the memory of the process has grown to {growth:.3f} of what it was"
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, operation {life.operations}: {error}") from error
    table = life.tables[1]
    return {
        "operations": life.operations,
        "checks": life.checks,
        "rows": len(table),
        "expired": table.expired,
        "evicted": life.held.evicted,
        "seconds": round(time.monotonic() - started, 1),
        "refused": life.held.refused,
        "rss_growth": round(growth, 3),
    }


def growth_of(resident: list[int]) -> float:
    """The most of the second half over the most of the first: what is allocated for a batch comes and goes."""
    half = len(resident) // 2
    return max(resident[half:]) / max(resident[:half]) if half else 1.0


def resident_bytes() -> int:
    """RSS of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(argv: list[str] | None = None) -> int:
    """Print the figures as one line of JSON; 0 if all was as it should be."""
    parser = CommandParser(
        prog="python -m tests.model.soak_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", type=int, default=10_000_000, help="how many (default: 10 M)")
    parser.add_argument("--seed", type=int, default=0, help="of all that happens (default: %(default)s)")
    args = parser.parse_args(argv)
    with Progress(disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("operations", total=args.operations)
        try:
            figures = soak(args.operations, args.seed, lambda done: progress.update(bar, completed=done))
        except AssertionError as error:
            raise UserError(f"the table is not as it should be: {error}") from error
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    run_main(main)
