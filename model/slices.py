"""Batches cut into slices of a fixed size, one thread each: how a step uses the cores of a machine.

TensorFlow's own threads inside a compiled step share every product among them: on two cores that gains a third, and a
busy machine makes it slower than one thread. A slice on one thread scales with the cores, and as the cut depends on the batch
alone, so does the result: it is the same bit by bit on any number of cores.
"""

from __future__ import annotations

import logging
import threading

import numpy as np
import tensorflow as tf

log = logging.getLogger(__name__)

#: Rows of a slice: small enough that two cores share a step of 4,096 evenly, large enough for fast products.
SLICE = 2048
#: Rows of a slice that is predicted: they come in odd numbers, and smaller slices are padded with less.
PREDICTED_SLICE = 512
#: Numbers of rows that functions are compiled for; a slice is padded to the next one. Few: each costs a compilation of
#: every function, and below a few hundred rows a call costs more than its arithmetic.
LADDER = (16, 64, 128, 512, SLICE)

_ALIGNMENT = 64  # bytes; TensorFlow takes such arrays as they are and copies others


def one_thread_a_call() -> None:
    """Make TensorFlow run each call on one thread; it must come before TensorFlow's first operation."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError:
        log.warning("TensorFlow ran before the model was imported: steps share its threads and are slower")


def cut(rows: int, most: int = SLICE) -> list[slice]:
    """The slices of a batch of `rows`, `most` of them in each but the last."""
    return [slice(start, min(start + most, rows)) for start in range(0, rows, most)]


def rung(rows: int) -> int:
    """The number of `LADDER` that holds `rows` (at most `SLICE`)."""
    return next(size for size in LADDER if size >= rows)


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """float32 zeros that TensorFlow takes without a copy."""
    nbytes = int(np.prod(shape)) * 4
    raw = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(np.float32).reshape(shape)


class Buffers:
    """Arrays of a slice's size that are filled anew for each slice: fresh memory would cost a page fault each 4 KB.

    Each thread has its own, so that there are as many as slices at work, whatever the size of a batch.

    Args:
        shapes: of one row, by name.
    """

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self._shapes = shapes
        self._own = threading.local()

    def take(self, rows: int) -> dict[str, np.ndarray]:
        """float32[rung, ...] by name, this thread's until it takes the next; what is past `rows` is zero."""
        size = rung(rows)
        of_size: dict[int, dict[str, np.ndarray]] = self._own.__dict__.setdefault("of_size", {})
        if size not in of_size:
            of_size[size] = {name: aligned((size, *shape)) for name, shape in self._shapes.items()}
        for array in of_size[size].values():
            array[rows:] = 0
        return of_size[size]
