"""Kernels between ids and slots: distinct ids of a batch, rows pooled into slots, gradients scattered back."""

from __future__ import annotations

import numpy as np
from numba import njit

from .feature_ids import mix63_jit


@njit(nogil=True, cache=True)
def dedup_ids(ids, inverse, unique, table_id, table_at):  # type: ignore[no-untyped-def]
    """Distinct ids in order of appearance, 0 first; ``inverse`` int32[N * W] leads back. Returns how many there are.

    ``table_id`` and ``table_at`` are an open-addressing table, a power of two larger than the ids, all -1.
    """
    mask = table_id.size - 1
    unique[0] = 0
    n = 1
    for i in range(ids.size):
        key = ids[i]
        if key == 0:
            inverse[i] = 0
            continue
        at = mix63_jit(key) & mask
        while table_id[at] != key:
            if table_id[at] == -1:
                table_id[at], table_at[at] = key, n
                unique[n] = key
                n += 1
                break
            at = (at + 1) & mask
        inverse[i] = table_at[at]
    return n


@njit(nogil=True, cache=True)
def pool_rows(values, rows, inverse, column_slot, mean, out):  # type: ignore[no-untyped-def]
    """``out`` float32[N, S, 1 + dim]: sum, or mean over the ids present, of the rows of each slot's columns."""
    n, width = inverse.shape
    d1 = values.shape[1]
    for i in range(n):
        c = 0
        while c < width:
            s = column_slot[c]
            present = 0
            for d in range(d1):
                out[i, s, d] = 0.0
            while c < width and column_slot[c] == s:
                u = inverse[i, c]
                if u > 0:
                    present += 1
                    r = rows[u]
                    for d in range(d1):
                        out[i, s, d] += values[r, d]
                c += 1
            if mean[s] and present > 1:
                scale = np.float32(1.0) / np.float32(present)
                for d in range(d1):
                    out[i, s, d] *= scale


@njit(nogil=True, cache=True)
def scatter_gradients(grad, inverse, column_slot, mean, out):  # type: ignore[no-untyped-def]
    """Transpose of :func:`pool_rows`: gradients float32[N, S, 1 + dim] summed by distinct id into ``out`` (zeros)."""
    n, width = inverse.shape
    d1 = grad.shape[2]
    for i in range(n):
        c = 0
        while c < width:
            s = column_slot[c]
            end = c
            present = 0
            while end < width and column_slot[end] == s:
                present += inverse[i, end] > 0
                end += 1
            scale = np.float32(1.0) / np.float32(present) if mean[s] and present > 1 else np.float32(1.0)
            for k in range(c, end):
                u = inverse[i, k]
                if u > 0:
                    for d in range(d1):
                        out[u, d] += grad[i, s, d] * scale
            c = end


@njit(nogil=True, cache=True)
def initial_rows(values, state, rows, ids, slots, scales, accumulators, seed):  # type: ignore[no-untyped-def]
    """New rows: first-order weight 0, embedding normal(0, scale) drawn from (seed, id), so that a replay gives the same."""
    width = values.shape[1]
    for i in range(rows.size):
        row, scale = rows[i], scales[slots[i]]
        x = mix63_jit(ids[i] ^ mix63_jit(np.int64(seed)))
        values[row, 0] = 0.0
        for d in range(1, width, 2):
            # Box and Muller: two normals of two uniforms.
            x = mix63_jit((x + np.int64(0x1E3779B97F4A7C15)) & np.int64(0x7FFFFFFFFFFFFFFF))
            u = ((x >> 32) + 1) / 2147483649.0
            v = (x & np.int64(0xFFFFFFFF)) / 4294967296.0
            radius = np.sqrt(-2.0 * np.log(u)) * scale
            values[row, d] = np.float32(radius * np.cos(2.0 * np.pi * v))
            if d + 1 < width:
                values[row, d + 1] = np.float32(radius * np.sin(2.0 * np.pi * v))
        for d in range(state.shape[1]):
            state[row, d] = accumulators[slots[i]]
