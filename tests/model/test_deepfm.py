"""The dense part: its hand-written gradients against TensorFlow's, its Adam against Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.deepfm import DeepFM
from model.deepfm_graphs import SPARSE_EXPONENT, forward
from model.slices import aligned
from tests.model.model_examples import CONFIG

ROWS, LEARNED = 16, 11
SLOTS, DIM, HEADS = CONFIG.num_slots, CONFIG.model.dim, len(CONFIG.heads)


@pytest.fixture
def pooled() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"first": (SLOTS,), "v": (SLOTS, DIM), "labels": (HEADS,), "mask": (HEADS,)}
    arrays = {name: aligned((ROWS, *shape)) for name, shape in shapes.items()}
    arrays["first"][:LEARNED] = rng.normal(0, 1, (LEARNED, SLOTS))
    arrays["v"][:LEARNED] = rng.normal(0, 1, (LEARNED, SLOTS, DIM))
    arrays["labels"][:LEARNED] = rng.random((LEARNED, HEADS)) < 0.5
    arrays["mask"][:LEARNED] = rng.random((LEARNED, HEADS)) < 0.7
    arrays["mask"][:LEARNED, 0] = 1
    return arrays


def loss_of(network: DeepFM, theta, pooled) -> tf.Tensor:
    dense = network.layout.unpack(theta)
    logits = forward(dense, pooled["first"], pooled["v"], len(CONFIG.model.hidden)).logits
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=pooled["labels"], logits=logits)
    return tf.reduce_sum(entropy * pooled["mask"])


def test_gradients_are_those_of_the_loss(pooled):
    network = DeepFM(CONFIG, seed=3)
    tensors = {name: tf.constant(array) for name, array in pooled.items()}
    theta = tf.constant(network.state()["theta"])
    with tf.GradientTape() as tape:
        tape.watch([theta, tensors["first"], tensors["v"]])
        loss = loss_of(network, theta, tensors)
    wanted_theta, wanted_first, wanted_v = tape.gradient(loss, [theta, tensors["first"], tensors["v"]])
    result = network.gradient(pooled, LEARNED)
    scale = LEARNED**-SPARSE_EXPONENT
    assert result.entropy == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(result.dense, wanted_theta / LEARNED, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.grad_v, wanted_v * scale, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.tile(result.grad_first[:, None], SLOTS), wanted_first * scale, rtol=1e-4, atol=1e-6)


def test_a_step_is_a_step_of_keras_adam(pooled):
    network = DeepFM(CONFIG, seed=3)
    reference = tf.Variable(network.state()["theta"])
    optimizer = keras.optimizers.Adam(CONFIG.model.dense_learning_rate)
    optimizer.build([reference])
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = loss_of(network, reference, pooled) / LEARNED
        optimizer.apply_gradients([(tape.gradient(loss, reference), reference)])
        network.step(pooled, LEARNED)
    np.testing.assert_allclose(network.state()["theta"], reference.numpy(), atol=2e-6)


def test_slices_come_to_the_whole(pooled):
    whole, parts = DeepFM(CONFIG, seed=3), DeepFM(CONFIG, seed=3)
    first = {name: array.copy() for name, array in pooled.items()}
    second = {name: array.copy() for name, array in pooled.items()}
    first["mask"][5:], second["mask"][:5] = 0, 0
    one = whole.step(pooled, LEARNED)
    results = [parts.gradient(part, LEARNED) for part in (first, second)]
    assert parts.descend(results)
    np.testing.assert_allclose(parts.state()["theta"], whole.state()["theta"], atol=1e-6)
    assert one.entropy == pytest.approx(sum(result.entropy for result in results), rel=1e-5)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e25])  # the last leaves the loss finite, but not Adam's moments
def test_what_is_not_finite_moves_nothing(pooled, poison):
    network = DeepFM(CONFIG, seed=3)
    before = network.state()
    pooled["first"][2, 1], pooled["labels"][2] = poison, 0
    assert np.isfinite(network.gradient(pooled, LEARNED).entropy) == np.isfinite(poison)
    assert np.isnan(network.step(pooled, LEARNED).entropy)
    assert not network.descend([network.gradient(pooled, LEARNED)])
    for name, array in network.state().items():
        np.testing.assert_array_equal(array, before[name])
    result = network.gradient(pooled, LEARNED)
    assert np.isfinite(result.grad_first).all()


def test_a_masked_head_may_hold_any_label(pooled):
    network = DeepFM(CONFIG, seed=3)
    wanted = network.gradient(pooled, LEARNED)
    pooled["labels"][pooled["mask"] == 0] = np.nan
    result = network.gradient(pooled, LEARNED)
    np.testing.assert_array_equal(result.dense, wanted.dense)
    assert result.entropy == wanted.entropy


def test_parameters_travel_by_name():
    here, there = DeepFM(CONFIG, seed=3), DeepFM(CONFIG, seed=4)
    there.set_dense(here.dense)
    np.testing.assert_array_equal(there.state()["theta"], here.state()["theta"])
    assert {name: array.shape for name, array in here.dense.items()} == here.layout.shapes
