"""Rows learn as Keras 3 would have them learn, to float32."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import pytest

from model.table import EmbeddingTable
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot
from tests.model.table_checks import feature_id, put

KINDS = {
    "adagrad": OptimizerConfig("adagrad", learning_rate=0.07, initial_accumulator=0.3, epsilon=1e-5),
    "adagrad as it comes": OptimizerConfig("adagrad"),
    "adam": OptimizerConfig("adam", learning_rate=0.01, beta1=0.8, beta2=0.95, epsilon=1e-6),
    "adam as it comes": OptimizerConfig("adam"),
    "sgd": OptimizerConfig("sgd", learning_rate=0.03),
    "ftrl": OptimizerConfig("ftrl", learning_rate=0.1, initial_accumulator=0.2),
    "ftrl with penalties": OptimizerConfig("ftrl", learning_rate=0.1, l1=0.05, l2=0.01),
}


def table_of(*optimizers: OptimizerConfig) -> EmbeddingTable:
    slots = tuple(
        Slot(f"s{i}", i, f"s{i}", "user" if i == 1 else "item", "id", "int", optimizer=o, init_scale=1.0)
        for i, o in enumerate(optimizers, 1)
    )
    return EmbeddingTable(FeatureConfig("o", slots, (Head("h", "h", 1.0),), ModelConfig(dim=7)), capacity=8)


def keras_of(o: OptimizerConfig) -> keras.optimizers.Optimizer:
    if o.kind == "adagrad":
        return keras.optimizers.Adagrad(o.learning_rate, o.initial_accumulator, o.epsilon)
    if o.kind == "sgd":
        return keras.optimizers.SGD(o.learning_rate)
    if o.kind == "ftrl":
        penalties = {"l1_regularization_strength": o.l1, "l2_regularization_strength": o.l2}
        return keras.optimizers.Ftrl(o.learning_rate, initial_accumulator_value=o.initial_accumulator, **penalties)
    return keras.optimizers.Adam(o.learning_rate, o.beta1, o.beta2, o.epsilon)


@pytest.mark.parametrize("name", KINDS)
def test_rows_learn_as_in_keras(name):
    table = table_of(KINDS[name], OptimizerConfig())
    rows = put(table, [feature_id(1, value) for value in range(1, 6)])
    rng = np.random.default_rng(1)
    weights = keras.Variable(table.export(rows).values)
    optimizer = keras_of(KINDS[name])
    for step in range(60):
        grads = (rng.normal(size=(5, 8)) * 10.0 ** rng.integers(-5, 3, (5, 8))).astype(np.float32)
        grads[step % 5] = 0
        optimizer.apply([keras.ops.convert_to_tensor(grads)], [weights])
        assert table.update(rows, grads) == 0
        np.testing.assert_allclose(table.export(rows).values, np.asarray(weights), rtol=2e-5, atol=2e-6)


def test_lazy_adam_counts_a_rows_own_steps():
    table = table_of(KINDS["adam"], OptimizerConfig())
    rows = put(table, [feature_id(1, 1), feature_id(1, 2)])
    start = table.export(rows).values
    gradient = np.full((1, 8), 0.5, np.float32)
    for _ in range(9):
        table.update(rows[:1], gradient)
    table.update(rows[1:], gradient)
    after = table.export(rows)
    assert after.steps.tolist() == [9, 1]
    # The first step of Adam is the learning rate in size, whenever it comes.
    np.testing.assert_allclose(start[1] - after.values[1], 0.01, rtol=1e-3)


def test_each_slot_has_its_own_optimizer():
    table = table_of(OptimizerConfig("adagrad", learning_rate=0.1), OptimizerConfig("adam", learning_rate=0.001))
    rows = put(table, [feature_id(1, 1), feature_id(2, 1)])
    start = table.export(rows)
    np.testing.assert_allclose(start.optimizer[0], [0.1] * 8 + [0.0] * 8)
    np.testing.assert_allclose(start.optimizer[1], 0)
    table.update(rows, np.full((2, 8), 2, np.float32))
    moved = start.values - table.export(rows).values
    np.testing.assert_allclose(moved[0], 0.1 * 2 / np.sqrt(4.1), rtol=1e-4)
    np.testing.assert_allclose(moved[1], 0.001, rtol=1e-3)


def test_a_default_row_learns_by_the_sum_of_its_ids_gradients():
    table = table_of(KINDS["adagrad"], OptimizerConfig())
    rows = table.find(np.array([feature_id(1, value) for value in range(1, 4)], np.int64))
    grads = np.array([[1.0], [2.0], [-0.5]], np.float32).repeat(8, 1)
    table.update(rows, grads)
    weights = keras.Variable(np.zeros((1, 8), np.float32))
    keras_of(KINDS["adagrad"]).apply([keras.ops.convert_to_tensor(grads.sum(0, keepdims=True))], [weights])
    np.testing.assert_allclose(table.export(rows[:1]).values, np.asarray(weights), rtol=1e-5)
