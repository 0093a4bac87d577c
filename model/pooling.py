"""From the rows of distinct ids to pooled slots, and from the slots' gradients back to the ids."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .arena import word
from .cuckoo_kernels import BLOCK
from .growing_array import kernel_array
from .prefetch import AHEAD, LINE, prefetch

_CLEARED = 64  # sums of ids that come next are cleared together: a branch that is hard to foretell costs more


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
    return np.int64(found) if numbers.size else np.int64(-1)


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
        c = 0
        while c < width:
            s = column_slot[c]
            present = 0
            first = c
            while c < width and column_slot[c] == s:
                if j + AHEAD < n * width:
                    hint_values(floats, start, dim, cells[j + AHEAD])
                row = cells[j]
                if c == first:
                    first_out[i, s] = floats[row, word(start, 0)]
                    for d in range(dim):
                        v_out[i, s, d] = floats[row, word(start + 1, d)]
                    present = 1 if row > 0 else 0
                elif row > 0:
                    present += 1
                    first_out[i, s] += floats[row, word(start, 0)]
                    for d in range(dim):
                        v_out[i, s, d] += floats[row, word(start + 1, d)]
                c += 1
                j += 1
            if mean[s] and present > 1:
                scale = np.float32(1.0) / np.float32(present)
                first_out[i, s] *= scale
                for d in range(dim):
                    v_out[i, s, d] *= scale


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
    width = column_slot.size
    for i in range(inverse.shape[0]):
        c = 0
        while c < width:
            s = column_slot[c]
            end = c + 1
            while end < width and column_slot[end] == s:
                end += 1
            scale = np.float32(1.0)
            if mean[s] and end - c > 1:
                present = 0
                for k in range(c, end):
                    present += inverse[i, k] > 0
                if present > 1:
                    scale = np.float32(1.0) / np.float32(present)
            for k in range(c, end):
                u = inverse[i, k]
                if start <= u < stop and u > 0:
                    if begun <= u:
                        clear = min(stop, np.int64(u) + _CLEARED)
                        out[begun:clear] = np.float32(0.0)
                        begun = clear
                    out[word(u, 0), word(0, 0)] += grad_first[i] * scale
                    for d in range(dim):
                        out[word(u, 0), word(1, d)] += grad_v[i, s, word(d, 0)] * scale
            c = end
    return begun
