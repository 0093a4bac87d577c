"""Row updates against Keras's own optimizers."""

import numpy as np
import pytest
from keras import Variable, optimizers

from model.optimizers import settings_of, update_rows
from schemas.slots import OptimizerConfig

ROWS, WIDTH = 5, 17


def state_for(config):
    settings = settings_of([config])
    states = np.zeros((ROWS, 2 * WIDTH), np.float32)
    if config.kind == "adagrad":
        states[:] = config.initial_accumulator
    return settings, states


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_a_row_touched_at_every_step_moves_as_in_keras(kind):
    config = OptimizerConfig(kind=kind, learning_rate=0.05)
    keras = optimizers.Adagrad(0.05, 0.1) if kind == "adagrad" else optimizers.Adam(0.05)
    random = np.random.default_rng(0)
    values = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
    values[0] = 0
    expected = Variable(values[1:].copy())
    settings, states = state_for(config)
    steps = np.zeros(ROWS, np.int32)
    rows, slots = np.arange(ROWS), np.zeros(ROWS, np.int64)
    for _ in range(20):
        gradient = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
        assert update_rows(values, states, steps, rows, slots, gradient, settings) == 0
        keras.apply([gradient[1:]], [expected])
    np.testing.assert_allclose(values[1:], np.asarray(expected), rtol=1e-4, atol=1e-5)
    assert (values[0] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_whose_gradient_is_not_finite_keeps_its_value(bad):
    settings, states = state_for(OptimizerConfig())
    values = np.ones((ROWS, WIDTH), np.float32)
    gradient = np.ones((ROWS, WIDTH), np.float32)
    gradient[2, 3] = bad
    steps = np.zeros(ROWS, np.int32)
    bad_rows = update_rows(values, states, steps, np.arange(ROWS), np.zeros(ROWS, np.int64), gradient, settings)
    assert bad_rows == 1
    assert (values[2] == 1).all()
    assert (values[1] != 1).all()
