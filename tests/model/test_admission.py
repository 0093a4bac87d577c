import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.admission import AdmissionSketch

IDS = np.arange(1, 9, dtype=np.int64) << 48 | 5


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), max_size=20))
def test_few_ids_are_counted_exactly(rounds):
    sketch, exact = AdmissionSketch(1 << 12), np.zeros(8, np.int64)
    for occurrences in rounds:
        exact += occurrences
        assert np.array_equal(sketch.count(IDS, np.array(occurrences, np.int32)), exact)


def test_it_never_counts_too_little_and_seldom_too_much():
    sketch, rng = AdmissionSketch(1 << 14), np.random.default_rng(0)
    stream = rng.zipf(1.5, 15_000) % 50_000
    for part in np.split(stream, 15):
        ids, occurrences = np.unique(part, return_counts=True)
        sketch.count(ids.astype(np.int64), occurrences.astype(np.int32))
    ids, exact = np.unique(stream, return_counts=True)
    estimates = sketch.count(ids.astype(np.int64), np.zeros(ids.size, np.int32))
    assert (estimates >= exact).all()
    assert np.mean(estimates > exact) < 0.05


def test_old_occurrences_fade():
    sketch = AdmissionSketch(64)
    assert sketch.count(IDS[:1], np.array([40], np.int32)).tolist() == [40]
    sketch.count(IDS[1:2], np.array([30], np.int32))  # 70 of 64: everything is halved
    assert sketch.count(IDS[:1], np.array([0], np.int32)).tolist() == [20]
    for _ in range(40):
        sketch.count(IDS[1:2], np.array([64], np.int32))
    assert sketch.count(IDS[:1], np.array([0], np.int32)).tolist() == [0]


def test_counts_stop_at_their_largest():
    sketch = AdmissionSketch(1 << 18)
    for _ in range(4):
        count = sketch.count(IDS[:1], np.array([30_000], np.int32))
    assert count.tolist() == [65_535]


def test_the_state_goes_on_where_it_was():
    rng = np.random.default_rng(2)
    one, other = AdmissionSketch(256), AdmissionSketch(256)
    for step in range(12):
        occurrences = rng.integers(0, 20, 8).astype(np.int32)
        counts = one.count(IDS, occurrences)
        if step > 5:
            assert np.array_equal(other.count(IDS, occurrences), counts)
        if step == 5:
            other.load_state(one.state())


def test_a_sketch_of_another_width_is_refused():
    with pytest.raises(ValueError, match="sketch"):
        AdmissionSketch(256).load_state(AdmissionSketch(512).state())
    with pytest.raises(ValueError, match="100"):
        AdmissionSketch(100)
