"""Examples a second of one training step: `Trainer.learn` beside the same DeepFM in Keras.

    python -m bench.step

26 fields of one id each, drawn from 1 M ids with Zipf exponent 1.2; dim 16, an MLP of 256-128, one head; embeddings by
Adagrad on both sides. Every id has its row before anything is measured, so both hold 1 M of them. Freshet's dense part
learns by Adam; a Keras model has one optimizer, which is Adagrad for all of it: less work than Adam, to Keras' advantage.

Keras has one Embedding for the weights and one for the vectors of all fields. It runs as fast as it can: its own train
function on batches that tf.data has ready as tensors, without `fit`'s callbacks; compiled with XLA and without, of which
the better counts. Each contender runs in a process of its own, with the threads it chooses itself; their rounds alternate,
so that a noisy machine disturbs them alike; medians of the rounds are reported.
"""

import argparse
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import numpy as np
from rich.progress import track

from bench.output import finish
from schemas import flags
from schemas.config import FeatureConfig, Head, ModelConfig, Slot
from schemas.process import CommandParser, UserError, run_main, signals_interrupt
from schemas.quiet import quiet_imports

FIELDS, ZIPF = 26, 1.2
DIM, HIDDEN = 16, (256, 128)
SMALL = 128
EXAMPLES = 32 * 4096  # drawn, and learned again and again: as many at each size of a step
LEARNING_RATE, ACCUMULATOR, EPSILON = 0.05, 0.1, 1e-7


@dataclass(frozen=True)
class Task:
    """What a contender is to do: `batch` examples a step, ids of 0 to `per_field` - 1 in each field."""

    batch: int
    per_field: int

    @property
    def rows(self) -> int:
        """Ids of all fields."""
        return FIELDS * self.per_field


@dataclass(frozen=True)
class Batch:
    """Ranks of ids int64[N, FIELDS] from 0, labels float32[N, 1]."""

    ranks: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Runner:
    """A model: a function that learns from the next batch, and the rows of its embeddings."""

    step: Callable[[], object]
    rows: int


def draw(task: Task, seed: int) -> list[Batch]:
    """`EXAMPLES` examples in batches; an id of rank r is drawn in proportion to (r + 1) ** -ZIPF."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, task.per_field + 1) ** -ZIPF
    cumulative = np.cumsum(weights / weights.sum())
    n = task.batch
    return [
        Batch(np.searchsorted(cumulative, rng.random((n, FIELDS))), (rng.random((n, 1)) < 0.3).astype(np.float32))
        for _ in range(max(1, EXAMPLES // n))
    ]


def freshet(task: Task, batches: list[Batch]) -> Runner:
    """Freshet's trainer, whose table has a row for every id."""
    from model.feature_ids import pack_ids
    from model.trainer import ExampleBatch, Trainer

    slots = tuple(
        Slot(name=f"f{n}", slot=n, source=f"f{n}", side="user" if n <= FIELDS // 2 else "item", kind="id", type="int")
        for n in range(1, FIELDS + 1)
    )
    config = FeatureConfig("bench", slots, (Head("click", "click", 60),), ModelConfig(dim=DIM, hidden=HIDDEN))
    trainer = Trainer(config, capacity=task.rows)
    trainer.warm_up((task.batch,))
    every = np.concatenate([pack_ids(slot.slot, np.arange(task.per_field)) for slot in slots])
    trainer.table.tick()
    trainer.table.admit(every, np.ones(every.size, np.int32), 0)
    trainer.trim(trainer.version)
    n = task.batch
    ones, first, times = np.ones((n, 1), np.float32), np.ones(n, np.bool_), np.zeros(n, np.int64)
    numbers = range(1, FIELDS + 1)
    prepared = cycle(
        [
            ExampleBatch(np.stack([pack_ids(s, b.ranks[:, s - 1]) for s in numbers], 1), b.labels, ones, first, times)
            for b in batches
        ]
    )
    return Runner(lambda: trainer.learn(next(prepared)), len(trainer.table))


def keras_model(task: Task, batches: list[Batch], jit: bool) -> Runner:
    """The same in Keras."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    ids = keras.Input((FIELDS,), dtype="int32")
    v = keras.layers.Embedding(task.rows, DIM)(ids)
    first_order = keras.ops.sum(keras.layers.Embedding(task.rows, 1)(ids), axis=1)
    squares = keras.ops.square(keras.ops.sum(v, axis=1)) - keras.ops.sum(keras.ops.square(v), axis=1)
    fm = 0.5 * keras.ops.sum(squares, axis=1, keepdims=True)
    deep = keras.layers.Flatten()(v)
    for units in HIDDEN:
        deep = keras.layers.Dense(units, activation="relu")(deep)
    logit = first_order + fm + keras.layers.Dense(1)(deep)
    model = keras.Model(ids, logit)
    optimizer = keras.optimizers.Adagrad(LEARNING_RATE, ACCUMULATOR, EPSILON)
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=jit)
    ranks = np.stack([b.ranks for b in batches]) + np.arange(FIELDS) * task.per_field
    data = tf.data.Dataset.from_tensor_slices((ranks.astype(np.int32), np.stack([b.labels for b in batches])))
    iterator = iter(data.cache().repeat().prefetch(tf.data.AUTOTUNE))
    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    return Runner(lambda: model.train_function(iterator), task.rows)


def rate(step: Callable[[], object], size: int, steps: int) -> float:
    """Examples a second of `steps` steps."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return size * steps / (time.perf_counter() - started)


def contend(name: str, task: Task, seconds: float, pipe: Connection) -> None:
    """A contender's process: compiles, tells its rows, then measures a round of about `seconds` whenever it is asked."""
    with quiet_imports():
        import tensorflow  # noqa: F401
    batches = draw(task, seed=task.batch)
    runner = freshet(task, batches) if name == "freshet" else keras_model(task, batches, jit="jit" in name)
    rate(runner.step, task.batch, 3)  # compilation
    steps = max(3, round(seconds * rate(runner.step, task.batch, 3) / task.batch))
    pipe.send(runner.rows)
    while pipe.recv():
        pipe.send(rate(runner.step, task.batch, steps))


class Contender:
    """A contender as the bench sees it; its process lives as long as the `with` block."""

    def __init__(self, name: str, task: Task, seconds: float) -> None:
        self.name, self.task = name, task
        self.rates: list[float] = []
        spawn = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = spawn.Pipe()
        # A daemon: should this process be interrupted, it is ended with it.
        self._process = spawn.Process(target=contend, args=(name, task, seconds, self._theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._process.terminate()
        elif self._process.is_alive():
            self._pipe.send(False)
        self._process.join()

    def rows(self) -> int:
        """Of its embeddings, once it is ready to be measured; to be asked first, and once."""
        return int(self._answer())

    @property
    def median(self) -> float:
        """Of the rounds so far, examples a second."""
        return float(np.median(self.rates))

    def round(self) -> None:
        """Measure once."""
        self._pipe.send(True)
        self.rates.append(self._answer())

    def _answer(self) -> float:
        try:
            answer: float = self._pipe.recv()
        except EOFError:
            raise UserError(f"the process of {self.name!r} has ended: its reason is above") from None
        return answer


def main(argv: list[str] | None = None) -> int:
    """Print the table and the JSON line; 0 then."""
    parser = CommandParser(
        prog="python -m bench.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=flags.count, default=9, help="rounds, of which the median counts (default: %(default)s)")
    add("--seconds", type=flags.positive, default=1.0, help="a contender's time in a round (default: %(default)s)")
    add("--batch", type=flags.count, default=4096, help="examples of a large step (default: %(default)s)")
    add("--rows", type=flags.count, default=1_000_000, help="ids, of all fields together (default: %(default)s)")
    args = parser.parse_args(argv)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    per_field = -(-args.rows // FIELDS)
    large, small = Task(args.batch, per_field), Task(SMALL, per_field)
    asked = (("freshet", large), ("freshet", small), ("keras", large), ("keras, jit_compile", large))
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals_interrupt())
        contenders = [stack.enter_context(Contender(*each, args.seconds)) for each in asked]
        held = [contender.rows() for contender in track(contenders, "ready")]
        for _ in track(range(args.rounds), "rounds"):
            for contender in contenders:
                contender.round()
    fresh, fresh_small, *rivals = contenders
    best = max(rival.median for rival in rivals)
    rows = [
        {
            "step": each.name,
            "batch": each.task.batch,
            "rows": rows_held,
            "examples/s": each.median,
            "lowest": min(each.rates),
            "highest": max(each.rates),
            "to keras": each.median / best,
        }
        for each, rows_held in zip(contenders, held, strict=True)
    ]
    fields = {
        "examples_per_s": round(fresh.median),
        f"examples_per_s_at_{SMALL}": round(fresh_small.median),
        "keras_examples_per_s": round(best),
        "ratio_to_keras": round(fresh.median / best, 2),
        "table_rows": held[0],
        "batch": args.batch,
    }
    finish(rows, fields)
    return 0


if __name__ == "__main__":
    run_main(main)
