"""From a batch's ids to pooled slots and back: distinct ids, their occurrences, pooling and its transpose."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.model.table_checks import (
    CONFIG,
    SLOTS,
    TAG,
    USER,
    WIDTH,
    batches,
    feature_id,
    ids_of,
    pooled,
    table_of,
)

MEAN = np.array([slot.pooling == "mean" for slot in SLOTS])


@given(batches())
def test_dedup_names_distinct_ids_by_first_appearance(values):
    ids = ids_of(values)
    unique, inverse, _ = table_of().dedup(ids)
    expected = list(dict.fromkeys([0, *ids.ravel().tolist()]))
    assert unique.tolist() == expected
    assert inverse.dtype == np.int32
    assert np.array_equal(unique[inverse], ids)


def test_dedup_results_survive_the_next_call():
    table = table_of()
    ids = ids_of(np.arange(1, 2 * CONFIG.width + 1).reshape(2, -1))
    unique, inverse, _ = table.dedup(ids)
    table.dedup(ids[::-1].copy() + 1)
    assert np.array_equal(unique[inverse], ids)


def test_dedup_leaves_out_of_its_counts_rows_that_came_before():
    table = table_of()
    ids = ids_of(np.array([[1, 2, 2, 0, 5, 1, 0], [1, 3, 0, 0, 5, 1, 1]]))
    unique, _, counts = table.dedup(ids, np.array([True, False]))
    by_id = dict(zip(unique.tolist(), counts.tolist(), strict=True))
    tag = [feature_id(TAG, value) for value in (2, 3)]
    assert (by_id[feature_id(USER, 1)], by_id[tag[0]], by_id[tag[1]]) == (1, 2, 0)


@given(batches(), st.integers(0, 2**31))
def test_pool_sums_or_averages_the_ids_present(values, seed):
    table, rng = table_of(), np.random.default_rng(seed)
    ids = ids_of(values)
    unique, inverse, _ = table.dedup(ids)
    rows, _ = table.admit(unique, np.full(unique.size, 9, np.int32), 0)
    table.update(rows, rng.normal(size=(unique.size, WIDTH)).astype(np.float32))
    first, v = pooled(table, rows, inverse)
    vectors = dict(zip(unique.tolist()[1:], table.export(rows[1:]).values, strict=True))
    expected = np.zeros((len(ids), len(SLOTS), WIDTH))
    for n, s in np.ndindex(expected.shape[:2]):
        present = [vectors[i] for i in ids[n, CONFIG.column_slot == s].tolist() if i]
        if present:
            expected[n, s] = np.mean(present, 0) if MEAN[s] else np.sum(present, 0)
    np.testing.assert_allclose(first, expected[:, :, 0], atol=1e-6)
    np.testing.assert_allclose(v, expected[:, :, 1:], atol=1e-6)


def test_pool_leaves_the_rows_behind_the_batch_alone():
    table = table_of()
    ids = ids_of(np.ones((2, CONFIG.width)))
    unique, inverse, _ = table.dedup(ids)
    first, v = np.full((5, len(SLOTS)), 7, np.float32), np.full((5, len(SLOTS), WIDTH - 1), 7, np.float32)
    table.pool(np.zeros((unique.size, WIDTH), np.float32), inverse, first, v)
    assert (first[2:] == 7).all() and (v[2:] == 7).all()
    assert not first[:2].any() and not v[:2].any()


@given(batches(), batches(), st.integers(0, 2**31))
def test_scatter_is_the_transpose_of_pool(values, more, seed):
    """<g, pool(E)> = <scatter(g), E> for every table E, with the parts of a batch summed."""
    table, rng = table_of(), np.random.default_rng(seed)
    ids = ids_of(np.concatenate([values, more]))
    unique, inverse, _ = table.dedup(ids)
    rows, _ = table.admit(unique, np.full(unique.size, 9, np.int32), 0)
    table.update(rows, rng.normal(size=(unique.size, WIDTH)).astype(np.float32))
    first, v = pooled(table, rows, inverse)
    grad_first = rng.normal(size=len(ids)).astype(np.float32)
    grad_v = rng.normal(size=v.shape).astype(np.float32)
    grad_v.flags.writeable = False
    cut = len(values)
    parts = [(grad_first[at], grad_v[at], inverse[at]) for at in (slice(cut), slice(cut, None))]
    summed = table.scatter(parts, rows)
    assert summed.shape == (unique.size, WIDTH) and not summed[0].any()
    have = np.sum(summed[1:] * table.export(rows[1:]).values)
    want = np.sum(grad_first * first.sum(1)) + np.sum(grad_v * v)
    np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-3)


def test_scatter_ignores_gradient_rows_behind_the_batch():
    table = table_of()
    unique, inverse, _ = table.dedup(ids_of(np.ones((2, CONFIG.width))))
    rows = table.find(unique)
    grad_first, grad_v = np.ones(4, np.float32), np.ones((4, len(SLOTS), WIDTH - 1), np.float32)
    longer = table.scatter([(grad_first, grad_v, inverse)], rows).copy()
    exact = table.scatter([(grad_first[:2], grad_v[:2], inverse)], rows)
    assert np.array_equal(longer, exact) and exact[1:].all()
