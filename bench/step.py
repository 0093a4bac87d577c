"""Examples a second of one training step: `Trainer.learn` beside the same DeepFM in Keras.

    python -m bench.step

26 fields of one id each, drawn from 1 M ids with Zipf exponent 1.2; dim 16, an MLP of 256-128, one head; embeddings by
Adagrad on both sides. Keras has one Embedding for the weights and one for the vectors of all fields, is compiled with
and without XLA, and the better of the two counts. Each contender runs in a process of its own, with the threads it
chooses itself; their rounds alternate, so that a noisy machine disturbs them alike; medians of the rounds are reported.
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
from typing import Self

import numpy as np
from rich.progress import track

from bench.output import finish
from model.feature_ids import pack_ids
from schemas.config import FeatureConfig, Head, ModelConfig, Slot
from schemas.process import CommandParser, UserError, run_main
from serving import flags

FIELDS, ROWS, ZIPF = 26, 1_000_000, 1.2
PER_FIELD = ROWS // FIELDS
DIM, HIDDEN = 16, (256, 128)
BATCHES = 32
LEARNING_RATE, ACCUMULATOR, EPSILON = 0.05, 0.1, 1e-7


@dataclass(frozen=True)
class Batch:
    """Ranks of ids int64[N, FIELDS] from 0, labels float32[N, 1]."""

    ranks: np.ndarray
    labels: np.ndarray


def draw(size: int, seed: int) -> list[Batch]:
    """`BATCHES` batches; an id of rank r is drawn in proportion to (r + 1) ** -ZIPF."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, PER_FIELD + 1) ** -ZIPF
    cumulative = np.cumsum(weights / weights.sum())
    return [
        Batch(np.searchsorted(cumulative, rng.random((size, FIELDS))), (rng.random((size, 1)) < 0.3).astype(np.float32))
        for _ in range(BATCHES)
    ]


def freshet_step(batches: list[Batch]) -> Callable[[], object]:
    """A function that learns from the next batch."""
    from model.trainer import ExampleBatch, Trainer

    slots = tuple(
        Slot(name=f"f{n}", slot=n, source=f"f{n}", side="user" if n <= FIELDS // 2 else "item", kind="id", type="int")
        for n in range(1, FIELDS + 1)
    )
    model = ModelConfig(dim=DIM, hidden=HIDDEN)
    config = FeatureConfig("bench", slots, (Head("click", "click", 60),), model)
    trainer = Trainer(config, capacity=ROWS)
    trainer.warm_up((len(batches[0].ranks),))
    n = len(batches[0].ranks)
    ones, first, times = np.ones((n, 1), np.float32), np.ones(n, np.bool_), np.zeros(n, np.int64)
    numbers = np.arange(1, FIELDS + 1)
    prepared = [
        ExampleBatch(np.stack([pack_ids(s, b.ranks[:, s - 1]) for s in numbers.tolist()], 1), b.labels, ones, first, times)
        for b in batches
    ]
    turn = cycle(prepared)
    return lambda: trainer.learn(next(turn))


def keras_step(batches: list[Batch], jit: bool) -> Callable[[], object]:
    """A function that trains on the next batch."""
    import keras

    keras.utils.set_random_seed(0)
    ids = keras.Input((FIELDS,), dtype="int32")
    v = keras.layers.Embedding(ROWS, DIM)(ids)
    first_order = keras.ops.sum(keras.layers.Embedding(ROWS, 1)(ids), axis=1)
    squares = keras.ops.square(keras.ops.sum(v, axis=1)) - keras.ops.sum(keras.ops.square(v), axis=1)
    fm = 0.5 * keras.ops.sum(squares, axis=1, keepdims=True)
    deep = keras.layers.Flatten()(v)
    for units in HIDDEN:
        deep = keras.layers.Dense(units, activation="relu")(deep)
    logit = first_order + fm + keras.layers.Dense(1)(deep)
    model = keras.Model(ids, logit)
    optimizer = keras.optimizers.Adagrad(LEARNING_RATE, ACCUMULATOR, EPSILON)
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=jit)
    offsets = np.arange(FIELDS) * PER_FIELD
    turn = cycle([((b.ranks + offsets).astype(np.int32), b.labels) for b in batches])
    return lambda: model.train_on_batch(*next(turn))


def rate(step: Callable[[], object], size: int, steps: int) -> float:
    """Examples a second of `steps` steps."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return size * steps / (time.perf_counter() - started)


def contend(name: str, size: int, seconds: float, pipe: Connection) -> None:
    """A contender's process: compiles, says so, then measures a round of about `seconds` whenever it is asked."""
    batches = draw(size, seed=size)
    step = freshet_step(batches) if name == "freshet" else keras_step(batches, jit="jit" in name)
    rate(step, size, BATCHES if name == "freshet" else 3)  # compilation, and every row exists
    steps = max(3, round(seconds * rate(step, size, 3) / size))
    pipe.send(0.0)
    while pipe.recv():
        pipe.send(rate(step, size, steps))


class Contender:
    """A contender as the bench sees it; its process lives as long as the `with` block."""

    def __init__(self, name: str, size: int, seconds: float) -> None:
        self.name, self.size = name, size
        self.rates: list[float] = []
        spawn = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = spawn.Pipe()
        self._process = spawn.Process(target=contend, args=(name, size, seconds, self._theirs))

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._pipe.send(False)
        self._process.join()

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
    parser.add_argument(
        "--rounds", type=flags.count, default=9, help="rounds, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="a contender's time in a round (default: %(default)s)")
    args = parser.parse_args(argv)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    asked = (("freshet", 4096), ("freshet", 128), ("keras", 4096), ("keras, jit_compile", 4096))
    with contextlib.ExitStack() as stack:
        contenders = [stack.enter_context(Contender(*each, args.seconds)) for each in asked]
        for _ in track(range(args.rounds), "rounds"):
            for contender in contenders:
                contender.round()
    large, small, *rivals = contenders
    best = max(rival.median for rival in rivals)
    rows = [
        {
            "step": each.name,
            "batch": each.size,
            "examples/s": each.median,
            "lowest": min(each.rates),
            "highest": max(each.rates),
            "to keras": each.median / best,
        }
        for each in contenders
    ]
    fields = {
        "examples_per_s": round(large.median),
        "examples_per_s_at_128": round(small.median),
        "keras_examples_per_s": round(best),
        "ratio_to_keras": round(large.median / best, 2),
    }
    finish(rows, fields)
    return 0


if __name__ == "__main__":
    run_main(main)
