"""Figures from histograms against the same figures from the examples themselves."""

import numpy as np
import pytest

from model.evaluation import Progressive


def exact_auc(logits, labels, weight):
    """Mann-Whitney: the share of (positive, negative) pairs in the right order, ties half, by ranks of the logits."""
    order = np.argsort(logits, kind="stable")
    logits, labels, weight = logits[order], labels[order], weight[order]
    _, group = np.unique(logits, return_inverse=True)
    negatives = np.bincount(group, weight * (1 - labels))
    positives = np.bincount(group, weight * labels)
    below = np.cumsum(negatives) - negatives
    return (positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum())


def examples(seed, n=5000, spread=2.0, shift=-1.0, ties=False):
    rng = np.random.default_rng(seed)
    truth = rng.normal(shift, spread, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    logits = (truth + rng.normal(0, spread / 2, n)).astype(np.float32)
    return (np.round(logits) if ties else logits), labels, rng.choice([0.5, 1.0, 4.0], n).astype(np.float32)


CASES = {
    "plain": {},
    "rare": {"shift": -6.0},
    "ties": {"ties": True},
    "narrow": {"spread": 0.05},
    "cold": {"spread": 0.01},  # logits of a new model, most of them within 40 bins
    "wide": {"spread": 8.0},
    "few": {"n": 30},
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_the_examples(case, seed, weighted):
    logits, labels, weight = examples(seed, **CASES[case])
    progressive = Progressive()
    progressive.update(logits, labels, weight if weighted else None)
    weight = weight.astype(np.float64) if weighted else np.ones(logits.size)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    likelihood = np.where(labels > 0, probability, 1 - probability)
    assert progressive.auc == pytest.approx(exact_auc(logits, labels, weight), abs=1e-4)
    assert progressive.logloss == pytest.approx(-(weight * np.log(likelihood)).sum() / weight.sum(), rel=1e-9)
    assert progressive.calibration == pytest.approx((weight * probability).sum() / (weight * labels).sum(), rel=1e-9)
    assert progressive.count == weight.sum()
    assert progressive.figures()["positives"] == (weight * labels).sum()


@pytest.mark.parametrize("seed", range(3))
def test_a_cold_model_that_orders_well_is_told_so(seed):
    logits, _, _ = examples(seed, spread=0.01)
    order = (logits - logits.mean()) / logits.std()
    labels = (np.random.default_rng(seed).random(logits.size) < 1 / (1 + np.exp(-3 * order))).astype(np.float32)
    progressive = Progressive()
    progressive.update(logits, labels)
    wanted = exact_auc(logits, labels, np.ones(logits.size))
    assert wanted > 0.85
    assert progressive.auc == pytest.approx(wanted, abs=1e-4)


def test_exact_auc_is_that_of_all_pairs():
    logits, labels, weight = examples(0, n=60, ties=True)
    pairs = [(i, j) for i in np.flatnonzero(labels) for j in np.flatnonzero(1 - labels)]
    right = [weight[i] * weight[j] * ((logits[i] > logits[j]) + (logits[i] == logits[j]) / 2) for i, j in pairs]
    total = sum(weight[i] * weight[j] for i, j in pairs)
    assert exact_auc(logits, labels, weight) == pytest.approx(sum(right) / total)


def test_parts_merge_into_the_whole_and_survive_as_arrays():
    logits, labels, weight = examples(1)
    whole, merged = Progressive(), Progressive()
    whole.update(logits, labels, weight)
    for part in np.array_split(np.random.default_rng(0).permutation(logits.size), 7):
        own = Progressive()
        own.update(logits[part], labels[part], weight[part])
        merged.merge(Progressive.from_state(own.state()))
    assert merged.auc == whole.auc
    assert merged.figures() == pytest.approx(whole.figures(), rel=1e-12)
    assert merged.reliability() == whole.reliability()


def test_a_state_is_a_copy():
    progressive = Progressive()
    progressive.update(np.float32([1, -1]), np.float32([1, 0]))
    state = progressive.state()
    again = Progressive.from_state(state)
    again.update(np.float32([-3, 3]), np.float32([1, 0]))
    state[:] = 0
    assert progressive.auc == 1.0
    assert again.auc == 0.25


def test_figures_without_both_classes_are_no_numbers():
    progressive = Progressive()
    assert np.isnan([progressive.auc, progressive.logloss, progressive.calibration]).all()
    assert progressive.reliability() == []
    progressive.update(np.float32([0.5, 1.5]), np.float32([0, 0]))
    assert np.isnan([progressive.auc, progressive.calibration]).all()
    assert progressive.logloss > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_no_number_is_refused_and_nothing_counted(bad):
    progressive = Progressive()
    with pytest.raises(ValueError, match="not finite"):
        progressive.update(np.float32([1, bad]), np.float32([1, 0]))
    assert progressive.count == 0


def test_logits_beyond_every_bound_stay_in_order():
    progressive = Progressive()
    with np.errstate(all="raise", under="ignore"):
        progressive.update(np.float32([-3e38, -20.0, 20.0, 3e38]), np.float32([0, 0, 1, 1]))
    assert progressive.auc == 1.0
    assert progressive.logloss == pytest.approx(0, abs=1e-8)
    assert progressive.calibration == pytest.approx(1)


def test_reliability_tells_each_quantile_its_rate():
    logits, labels, _ = examples(2, n=20_000)
    progressive = Progressive()
    progressive.update(logits, labels)
    found = progressive.reliability(10)
    order = np.argsort(logits)
    assert len(found) == 10
    assert sum(weight for _, _, weight in found) == 20_000
    for part, (prediction, label, weight) in zip(np.array_split(order, 10), found, strict=True):
        assert weight == pytest.approx(2000, abs=25)
        assert prediction == pytest.approx((1 / (1 + np.exp(-logits[part]))).mean(), abs=0.005)
        assert label == pytest.approx(labels[part].mean(), abs=0.01)
