"""How long one batch holds up a table that grows, expires and is copied, for `bench.table`: a trainer as the product has it."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.table_peers import DIM, RATE
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot
from schemas.quiet import quiet_imports

with quiet_imports():
    from model.trainer import ExampleBatch, Trainer

_ROWS = 4096  # of a batch, a user and an item each
_NEW = _ROWS // 4
_RECENT = 200 * _NEW  # ids that come again
_TTL_S = 60  # of items; users stay, so that the table grows
_IDS_EVERY = 1000  # ms of event time between two batches
_WARM = 200  # batches that are not timed: the first compile, and items begin to expire with the 61st
# 10 s, the default of --sync_interval, at 30 batches a second, which bench.step reaches on two cores.
_DELTA_EVERY = 300
_ROWS_LEARN_BY = OptimizerConfig("adagrad", learning_rate=RATE)  # as most slots do
# A dense part as small as it can be: what it takes is much the same each time, and would hide what the table takes.
CONFIG = FeatureConfig(
    "bench.table latency",
    (
        Slot("user", 1, "user", "user", "id", "int", optimizer=_ROWS_LEARN_BY),
        Slot("item", 2, "item", "item", "id", "int", ttl_s=_TTL_S, optimizer=_ROWS_LEARN_BY),
    ),
    (Head("click", "click", 1.0),),
    ModelConfig(dim=DIM, hidden=(1,)),
)


@dataclass
class _Copies:
    """Snapshots written one after the other by a thread, to a folder of which each is removed again."""

    trainer: Trainer
    folder: Path
    ended: threading.Event
    count: int = 0
    bytes: int = 0

    def write(self) -> None:
        """At least one, and so on until `ended`."""
        while True:
            path = self.folder / str(self.count)
            self.trainer.snapshot(path)
            self.count += 1
            self.bytes += sum(file.stat().st_size for file in path.iterdir())
            shutil.rmtree(path)
            if self.ended.is_set():
                return


def _batch_of(rng: np.random.Generator, number: int) -> ExampleBatch:
    """4,096 examples; a quarter of the users and of the items are new with each batch, the others came not long ago."""
    fresh = 1 + number * _NEW
    new = np.arange(fresh, fresh + _NEW)
    known = rng.integers(max(1, fresh - _RECENT), fresh + _NEW, (2, _ROWS - _NEW))
    ids = np.stack([np.concatenate([new, each]) | (slot << 48) for slot, each in zip((1, 2), known, strict=True)], 1)
    labels = (rng.random((_ROWS, 1)) < 0.3).astype(np.float32)
    mask, first = np.ones((_ROWS, 1), np.float32), np.ones(_ROWS, np.bool_)
    return ExampleBatch(ids, labels, mask, first, np.full(_ROWS, number * _IDS_EVERY, np.int64))


def latency(steps: int) -> tuple[list[dict[str, object]], dict[str, Any]]:
    """Times of all that a batch of 4,096 rows waits for, as the pipeline has it.

    That is `Trainer.learn`, with admission, expiry and whatever index and arena need to grow; when it is due a delta of what
    was touched, and forgetting it; and what another thread, which writes one `Trainer.snapshot` to disk after the other, has
    it wait for: a chunk of rows at a time, at the end of each the rows touched meanwhile, and its share of the cores.

    The product makes a snapshot every 30 s; here there is always one under way, so that none of the batches goes without. A
    snapshot ends in a pause for what was touched since it began, a delta is one: the longest is `learn_max_us`, and the share
    of batches that took more than three times the median `learn_share_over_3_p50`.

    Args:
        steps: batches whose times are taken, after 200 that are not.

    Returns:
        One row of a table, and fields of the JSON line: µs.

    Raises:
        OSError: the disk refuses a snapshot.
    """
    trainer, rng = Trainer(CONFIG, capacity=1024), np.random.default_rng(0)
    trainer.warm_up((_ROWS,))
    taken, deltas, times = 0, 0, np.zeros(_WARM + steps)

    def turn(number: int) -> None:
        nonlocal taken, deltas
        batch = _batch_of(rng, number)
        start = time.perf_counter()
        trainer.learn(batch)
        if trainer.version - taken >= _DELTA_EVERY:
            trainer.delta(taken)
            taken = trainer.version
            trainer.trim(taken)
            deltas += 1
        times[number] = time.perf_counter() - start

    for number in range(_WARM):
        turn(number)
    rows, expired, deltas_before = len(trainer.table), trainer.table.expired, deltas
    with tempfile.TemporaryDirectory(prefix="bench-table-") as folder, ThreadPoolExecutor(1) as pool:
        copies = _Copies(trainer, Path(folder), threading.Event())
        written = pool.submit(copies.write)
        try:
            for number in range(_WARM, _WARM + steps):
                if written.done():  # it ends by itself only where it fails
                    break
                turn(number)
        finally:
            copies.ended.set()
        written.result()
    micros = times[_WARM:] * 1e6
    quantiles = {f"p{q}": float(np.percentile(micros, q)) for q in (50, 90, 99)} | {"max": float(micros.max())}
    counted = {
        "rows_before": rows,
        "rows": len(trainer.table),
        "expired": trainer.table.expired - expired,
        "deltas": deltas - deltas_before,
        "snapshots": copies.count,
        "snapshot_bytes": copies.bytes,
    }
    fields = {f"learn_{name}_us": round(value, 1) for name, value in quantiles.items()}
    fields["learn_p99_over_p50"] = round(quantiles["p99"] / quantiles["p50"], 3)
    fields["learn_share_over_3_p50"] = round(float(np.mean(micros > 3 * quantiles["p50"])), 5)
    fields |= {f"learn_{name}": value for name, value in counted.items()}
    shown = {"learn() of 4,096 rows": "us", **quantiles, **counted}
    return [shown], fields
