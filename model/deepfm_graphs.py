"""DeepFM's arithmetic as compiled functions: from pooled embeddings to logits, gradients and the next dense parameters.

Each is a pure function of its arguments, compiled by XLA once a process for a layout and a number of rows: a restored
trainer and the lagged copies run what is compiled already.

References:
    Guo, Tang, Ye, Li, He: DeepFM: A Factorization-Machine based Neural Network for CTR Prediction. IJCAI 2017, eq. 1 to 4.
    Kingma, Ba: Adam: A Method for Stochastic Optimization. ICLR 2015, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import tensorflow as tf

from .dense import DenseLayout
from .optimizers import MAX_GRADIENT

#: The embeddings' gradient is that of the summed loss over n ** SPARSE_EXPONENT, n being the rows learned from: 0 is the
#: sum, 1 the mean. A row is met by few examples of a step, so under the mean it would move less the larger the step, and
#: under the sum a common id's row would run away in large ones; 0.5 keeps Adagrad's rows on one scale from 64 to 4,096.
SPARSE_EXPONENT = 0.5

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-7  # Adam's, as Keras has them


class AdamState(NamedTuple):
    """Flat dense parameters and their Adam state: float32[size] each, and the number of steps, float32[1]."""

    theta: tf.Tensor
    first_moment: tf.Tensor
    second_moment: tf.Tensor
    steps: tf.Tensor


class Forward(NamedTuple):
    """Logits float32[N, heads] and what leads to them.

    `layers` are the inputs of the MLP's layers (the embeddings float32[N, S * dim] first), `first_order` and `fm`
    float32[N, 1], `slot_sum` float32[N, dim].
    """

    logits: tf.Tensor
    layers: list[tf.Tensor]
    first_order: tf.Tensor
    fm: tf.Tensor
    slot_sum: tf.Tensor


def forward(dense: Mapping[str, tf.Tensor], first: tf.Tensor, v: tf.Tensor, hidden: int) -> Forward:
    """The model on pooled embeddings.

    Args:
        dense: parameters by name.
        first: float32[N, S], first-order weights.
        v: float32[N, S, dim], embeddings.
        hidden: number of hidden layers.
    """
    width = v.shape[1] * v.shape[2]
    first_order = tf.reduce_sum(first, axis=1, keepdims=True)
    # sum_{s<t} <v_s, v_t> = (|sum_s v_s|^2 - sum_s |v_s|^2) / 2
    slot_sum = tf.reduce_sum(v, axis=1)
    flat = tf.reshape(v, [-1, width])
    # The sum over columns as a product: XLA's reduction takes twice as long.
    sum_of_squares = tf.matmul(tf.square(flat), tf.ones([width, 1]))
    fm = 0.5 * (tf.reduce_sum(tf.square(slot_sum), axis=1, keepdims=True) - sum_of_squares)
    layers = [flat]
    for number in range(hidden):
        z = tf.matmul(layers[-1], dense[f"kernel_{number}"], transpose_b=True) + dense[f"bias_{number}"]
        layers.append(tf.nn.relu(z))
    deep = tf.matmul(layers[-1], dense[f"kernel_{hidden}"], transpose_b=True)
    logits = dense["bias"] + dense["first_order_gain"] * first_order + dense["fm_gain"] * fm + deep
    return Forward(logits, layers, first_order, fm, slot_sum)


@cache
def predict_function(layout: DenseLayout, rows: int) -> Callable[..., tf.Tensor]:
    """(theta, first, v) to logits float32[rows, heads]; `first` and `v` as `forward` takes them."""
    theta, first, v, *_ = _specs(layout, rows)

    def predict(theta: tf.Tensor, first: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        return forward(layout.unpack(theta), first, v, len(layout.hidden)).logits

    return _compiled(predict, [theta, first, v])


@cache
def gradient_function(layout: DenseLayout, rows: int) -> Callable[..., Any]:
    """(theta, first, v, labels, mask, learned rows) to what `_gradient` returns."""

    def gradient(*arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return _gradient(layout, *arguments)

    return _compiled(gradient, _specs(layout, rows))


@cache
def descend_function(layout: DenseLayout, rate: float) -> Callable[..., Any]:
    """(`AdamState`, gradient float32[size], entropy float32[]) to the next state, and whether it moved."""

    def descend(*arguments: tf.Tensor) -> tuple[AdamState, tf.Tensor]:
        return _adam(AdamState(*arguments[:4]), arguments[4], arguments[5], rate)

    state = _state_specs(layout)
    return _compiled(descend, [*state, state.theta, tf.TensorSpec(())])


@cache
def step_function(layout: DenseLayout, rows: int, rate: float) -> Callable[..., Any]:
    """Both in one call: (state, first, v, labels, mask, learned rows) to (gradients, next state, whether it moved)."""

    def step(*arguments: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], AdamState, tf.Tensor]:
        state = AdamState(*arguments[:4])
        *rest, entropy, dense = _gradient(layout, state.theta, *arguments[4:])
        return (*rest, entropy), *_adam(state, dense, entropy, rate)

    return _compiled(step, [*_state_specs(layout), *_specs(layout, rows)[1:]])


def _compiled(function: Callable[..., Any], specs: list[tf.TensorSpec]) -> Callable[..., Any]:
    return tf.function(function, input_signature=specs, jit_compile=True, autograph=False).get_concrete_function()


def _specs(layout: DenseLayout, rows: int) -> list[tf.TensorSpec]:
    heads = (rows, layout.heads)
    shapes: list[tuple[int, ...]] = [(layout.size,), (rows, layout.slots), (rows, layout.slots, layout.dim), heads, heads, ()]
    return [tf.TensorSpec(shape, tf.float32) for shape in shapes]


def _state_specs(layout: DenseLayout) -> AdamState:
    flat = tf.TensorSpec((layout.size,))
    return AdamState(flat, flat, flat, tf.TensorSpec((1,)))


def _gradient(
    layout: DenseLayout,
    theta: tf.Tensor,
    first: tf.Tensor,
    v: tf.Tensor,
    labels: tf.Tensor,
    mask: tf.Tensor,
    rows: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
    """Gradients of first-order weights float32[N] and embeddings float32[N, S, dim], logits, entropy, dense gradient."""
    hidden = len(layout.hidden)
    parameters = layout.unpack(theta)
    out = forward(parameters, first, v, hidden)
    learned = mask > 0
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.where(learned, labels, 0.0), logits=out.logits)
    # d loss / d logit, by select rather than by product: zero times NaN is NaN.
    usable = learned & tf.math.is_finite(entropy)
    delta = tf.where(usable, tf.sigmoid(out.logits) - labels, 0.0) * tf.pow(rows, -SPARSE_EXPONENT)
    # Back through the MLP: d loss / d (a layer's output before its activation), first layer first.
    deltas = [delta]
    for number in range(hidden, 0, -1):
        upstream = tf.matmul(deltas[0], parameters[f"kernel_{number}"])
        deltas.insert(0, tf.where(out.layers[number] > 0, upstream, 0.0))
    # Embeddings: d FM / d v_s = sum_t v_t - v_s
    grad_first = tf.linalg.matvec(delta, parameters["first_order_gain"])
    grad_fm = tf.linalg.matvec(delta, parameters["fm_gain"])
    grad_v = tf.reshape(tf.matmul(deltas[0], parameters["kernel_0"]), v.shape)
    grad_v += grad_fm[:, None, None] * (out.slot_sum[:, None, :] - v)
    # Dense parameters
    dense = {
        "bias": tf.reduce_sum(delta, axis=0),
        "first_order_gain": tf.reduce_sum(delta * out.first_order, axis=0),
        "fm_gain": tf.reduce_sum(delta * out.fm, axis=0),
    }
    for number, (d, inputs) in enumerate(zip(deltas, out.layers, strict=True)):
        dense[f"kernel_{number}"] = tf.matmul(d, inputs, transpose_a=True)
        if number < hidden:
            dense[f"bias_{number}"] = tf.reduce_sum(d, axis=0)
    # What moves the dense parameters is the mean.
    flat = layout.pack(dense) * tf.pow(rows, SPARSE_EXPONENT - 1)
    return grad_first, grad_v, out.logits, tf.reduce_sum(tf.where(learned, entropy, 0.0)), flat


def _adam(state: AdamState, g: tf.Tensor, entropy: tf.Tensor, rate: float) -> tuple[AdamState, tf.Tensor]:
    """A step with Keras's placing of epsilon; nothing moves if the loss is not finite or the gradient explodes."""
    theta, m, s, t = state
    # A NaN compares false. What is finite but huge would make the second moment infinite, and soon the parameters NaN.
    finite = tf.math.is_finite(entropy) & tf.reduce_all(tf.abs(g) < float(MAX_GRADIENT))
    g = tf.where(finite, g, 0.0)
    # Factors of 0 rather than a choice of results: one pass over the parameters instead of two.
    moves = tf.cast(finite, tf.float32)
    t += moves
    m += (g - m) * ((1 - _BETA1) * moves)
    s += (tf.square(g) - s) * ((1 - _BETA2) * moves)
    # Before the first step t is 0, and so is moves.
    past = tf.maximum(t, 1.0)
    scale = rate * moves * tf.sqrt(1 - tf.pow(_BETA2, past)) / (1 - tf.pow(_BETA1, past))
    theta -= scale * m / (tf.sqrt(s) + _EPSILON)
    return AdamState(theta, m, s, t), finite
