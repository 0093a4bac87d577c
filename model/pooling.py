"""From the rows of distinct ids to pooled slots, and from the slots' gradients back to the ids."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .arena import word
from .cuckoo_kernels import BLOCK
from .growing_array import kernel_array
from .prefetch import AHEAD, LINE, prefetch

_CLEARED = 64  # sums of ids that come next are cleared together: a branch that is hard to foretell costs more
_SAMPLE = 1024  # ids of a batch by which threads share it


def check_inverse(inverse: NDArray[np.int32], unique: int, width: int) -> NDArray[np.int32]:
    """The inverse int32[N, W] as kernels take it.

    Raises:
        ValueError: it does not lead into `unique` ids.
    """
    inverse = kernel_array(inverse, np.int32)
    if inverse.ndim != 2 or inverse.shape[1] != width:
        raise ValueError(f"an inverse of shape {inverse.shape} for {width} id columns: pass what dedup returned")
    # As unsigned numbers the negative ones are the largest: one pass checks both ends.
    if inverse.size and largest(inverse.reshape(-1)) >= unique:
        raise ValueError(f"the inverse leads outside its {unique} distinct ids: pass what the same dedup returned")
    return inverse


@njit(nogil=True, cache=True)
def largest(numbers: NDArray[np.int32]) -> int:
    """The largest of int32[N], negative ones being larger than all others; -1 of none."""
    found = np.uint32(0)
    for number in numbers:
        found = max(found, np.uint32(number))
    return int(found) if numbers.size else -1


def check_pooled(name: str, array: NDArray[np.float32], rows: int, shape: tuple[int, ...]) -> None:
    """Check that the array is contiguous float32[>= rows, *shape], as kernels take it.

    Raises:
        ValueError: it is not.
    """
    if (
        array.dtype != np.float32
        or array.ndim != 1 + len(shape)
        or array.shape[1:] != shape
        or len(array) < rows
        or not (array.flags.c_contiguous and array.flags.aligned)
    ):
        expected = ", ".join(map(str, (f">= {rows}", *shape)))
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}: pass contiguous float32[{expected}]")


def read_only(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A view as TensorFlow's arrays are: that is a type of its own to Numba, and one kernel serves all."""
    view = array.view()
    view.flags.writeable = False
    return view


@njit(inline="always")
def hint_values(floats, start, dim, row):  # type: ignore[no-untyped-def]
    """Fetches a row's values, which will be pooled soon."""
    for column in range(start, start + dim, LINE):
        prefetch(floats, row, column)
    prefetch(floats, row, start + dim)


@njit(inline="always")
def pool_block(floats, start, cells, n, at, column_slot, mean, first_out, v_out):  # type: ignore[no-untyped-def]
    """Pools `n` examples into outputs `at` and on; `cells` int32[>= n * W] are the rows of their ids, 0 for padding."""
    dim, width = v_out.shape[2], column_slot.size
    for j in range(min(AHEAD, n * width)):
        hint_values(floats, start, dim, cells[j])
    j = 0
    for i in range(at, at + n):
        present = 0
        for c in range(width):
            if j + AHEAD < n * width:
                hint_values(floats, start, dim, cells[j + AHEAD])
            x, s, row = word(i, 0), word(column_slot[c], 0), word(cells[j], 0)
            if c == 0 or column_slot[c - 1] != column_slot[c]:
                first_out[x, s] = floats[row, word(start, 0)]
                for d in range(dim):
                    v_out[x, s, word(d, 0)] = floats[row, word(start + 1, d)]
                present = cells[j] > 0
            elif cells[j] > 0:
                present += 1
                first_out[x, s] += floats[row, word(start, 0)]
                for d in range(dim):
                    v_out[x, s, word(d, 0)] += floats[row, word(start + 1, d)]
            j += 1
            if present > 1 and mean[s] and (c + 1 == width or column_slot[c + 1] != column_slot[c]):
                scale = np.float32(1.0) / np.float32(present)
                first_out[x, s] *= scale
                for d in range(dim):
                    v_out[x, s, word(d, 0)] *= scale


@njit(nogil=True, cache=True, error_model="numpy")
def pool_rows(
    values: NDArray[np.float32],
    inverse: NDArray[np.int32],
    column_slot: NDArray[np.int32],
    mean: NDArray[np.bool_],
    first_out: NDArray[np.float32],
    v_out: NDArray[np.float32],
) -> None:
    """Pools values by slot: weights into `first_out` float32[>= N, S], embeddings into `v_out` float32[>= N, S, dim].

    Args:
        values: float32[U, 1 + dim] of the distinct ids, of which the first is padding: zeros.
        inverse: int32[N, W].
        column_slot: int32[W], ascending.
        mean: bool[S], whether a slot's bag is averaged over the ids present.
    """
    pool_block(values, 0, inverse.reshape(-1), inverse.shape[0], 0, column_slot, mean, first_out, v_out)


@njit(inline="always")
def examples_of(width: int) -> int:
    """Examples of `width` ids whose rows are found at a time."""
    return max(1, BLOCK // width)


@njit(nogil=True, cache=True, error_model="numpy")
def scatter_gradients(
    grad_first: NDArray[np.float32],
    grad_v: NDArray[np.float32],
    inverse: NDArray[np.int32],
    column_slot: NDArray[np.int32],
    mean: NDArray[np.bool_],
    start: int,
    stop: int,
    begun: int,
    out: NDArray[np.float32],
) -> int:
    """The transpose of `pool_rows`: adds gradients of pooled slots to those of the distinct ids, `out` float32[U, 1 + dim].

    Only distinct ids `start` to `stop` are dealt with, in the order of the batch: threads that share a batch by its ids
    add up what one thread would.

    `grad_first` float32[>= N] is that of the sum of a row's weights, the same for all its slots; `grad_v` is
    float32[>= N, S, dim]. `out` holds sums of the ids before `begun`, and anything for the others: since ids are numbered by
    first appearance, they are cleared as they come.

    Returns:
        `begun` for the next part of the batch.
    """
    dim = grad_v.shape[2]
    for i in range(inverse.shape[0]):
        averaged, share = np.int32(-1), np.float32(1.0)
        for c in range(column_slot.size):
            u = int(inverse[i, c])
            if not (start <= u < stop and u > 0):
                continue
            if u >= begun:
                clear = min(stop, u + _CLEARED)
                out[begun:clear] = np.float32(0.0)
                begun = clear
            s = column_slot[c]
            if mean[s] and s != averaged:
                averaged, share = s, _share(inverse, i, column_slot, c)
            scale = share if mean[s] else np.float32(1.0)
            out[word(u, 0), word(0, 0)] += grad_first[i] * scale
            for d in range(dim):
                out[word(u, 0), word(1, d)] += grad_v[word(i, 0), word(s, 0), word(d, 0)] * scale
    return begun


@njit(inline="always")
def _share(inverse, i, column_slot, c):  # type: ignore[no-untyped-def]
    """What each id of an averaged bag counts, of which column `c` is one: one over those present."""
    s, present = column_slot[c], 0
    while c > 0 and column_slot[c - 1] == s:
        c -= 1
    while c < column_slot.size and column_slot[c] == s:
        present += inverse[i, c] > 0
        c += 1
    return np.float32(1.0) / np.float32(present)


def even_shares(inverse: Sequence[NDArray[np.int32]], unique: int, parts: int) -> list[slice]:
    """Distinct ids cut into ranges that occur about as often each, by a sample: those that are frequent appear early."""
    every = max(1, sum(part.size for part in inverse) // _SAMPLE)
    sample = np.sort(np.concatenate([part.reshape(-1)[::every] for part in inverse]))
    cuts = [0, *sample[np.arange(1, parts) * sample.size // parts].tolist(), unique]
    return [slice(first, last) for first, last in itertools.pairwise(cuts)]
