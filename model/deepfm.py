"""DeepFM with several heads over shared embeddings: its dense parameters, and how they learn.

    logit_h = b_h + g_h * sum_s w_s + f_h * sum_{s<t} <v_s, v_t> + MLP_h([v_1; ...; v_S])

`w_s` and `v_s` are a slot's pooled first-order weight and embedding; the MLP's hidden layers are shared by the heads.

Reference:
    Guo, Tang, Ye, Li, He: DeepFM: A Factorization-Machine based Neural Network for CTR Prediction. IJCAI 2017, eq. 1 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from schemas.config import FeatureConfig

from .deepfm_graphs import AdamState, descend_function, gradient_function, predict_function, step_function
from .dense import DenseLayout
from .slices import one_thread_a_call

one_thread_a_call()

_POOLED = ("first", "v", "labels", "mask")


class SliceResult(NamedTuple):
    """What a slice of a step gives.

    grad_first float32[N]: d loss / d w_s, the same for every slot of a row; grad_v float32[N, S, dim]; logits
    float32[N, H] before the step; entropy, the sum of the masked cross-entropies; dense float32[size], the dense gradient
    (empty where the step has been taken).
    """

    grad_first: np.ndarray
    grad_v: np.ndarray
    logits: np.ndarray
    entropy: float
    dense: np.ndarray


class DeepFM:
    """Dense parameters, their Adam state, and steps over pooled embeddings.

    A step of one slice is one call, `step`; one of several is `gradient` for each, in any thread, and then
    `descend`.

    Args:
        config: slots, dimension, hidden layers, heads.
        seed: of the initial values.
    """

    def __init__(self, config: FeatureConfig, seed: int = 0) -> None:
        self.layout = DenseLayout.of(config)
        self._rate = config.model.dense_learning_rate
        theta = tf.constant(self.layout.initial(seed))
        self._state = AdamState(theta, tf.zeros_like(theta), tf.zeros_like(theta), tf.zeros(1))

    def gradient(self, pooled: Mapping[str, np.ndarray], rows: int) -> SliceResult:
        """Gradients of one slice of a step; entries whose loss is not finite give none.

        Args:
            pooled: `first` float32[N, S], `v` float32[N, S, dim], `labels` float32[N, H] (anything where the mask is
                0), `mask` float32[N, H] (1 where a head is learned); N is one of the ladder's, padding rows are zero.
            rows: rows learned from in the whole step.
        """
        function = gradient_function(self.layout, len(pooled["first"]))
        grad_first, grad_v, logits, entropy, dense = function(self._state.theta, *_tensors(pooled, rows))
        return SliceResult(grad_first.numpy(), grad_v.numpy(), logits.numpy(), float(entropy), dense.numpy())

    def step(self, pooled: Mapping[str, np.ndarray], rows: int) -> SliceResult:
        """As `gradient`, and the dense parameters move, unless that is not finite or huge: `entropy` is NaN then."""
        function = step_function(self.layout, len(pooled["first"]), self._rate)
        (grad_first, grad_v, logits, entropy), state, moved = function(*self._state, *_tensors(pooled, rows))
        self._state = AdamState(*state)
        loss = float(entropy) if moved else float("nan")
        return SliceResult(grad_first.numpy(), grad_v.numpy(), logits.numpy(), loss, np.zeros(0, np.float32))

    def descend(self, slices: Sequence[SliceResult]) -> bool:
        """Move the dense parameters by the gradients of a step's slices, in their order.

        Returns:
            False if the loss is not finite or the gradient not below 2^60: they have not moved then.
        """
        total = slices[0].dense.copy()
        for part in slices[1:]:
            total += part.dense
        entropy = tf.constant(sum(part.entropy for part in slices), tf.float32)
        state, moved = descend_function(self.layout, self._rate)(*self._state, tf.convert_to_tensor(total), entropy)
        self._state = AdamState(*state)
        return bool(moved)

    def predict(self, pooled: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits float32[N, H] of `first` and `v` as `gradient` takes them."""
        first, v = tf.convert_to_tensor(pooled["first"]), tf.convert_to_tensor(pooled["v"])
        return np.asarray(predict_function(self.layout, len(first))(self._state.theta, first, v))

    def warm_up(self, pooled: Mapping[str, np.ndarray], several: bool) -> None:
        """Compile what steps of such slices call, the only one of their step or one of `several`; moves nothing."""
        state = self._state
        if several:
            self.descend([self.gradient(pooled, 1)])
        else:
            self.step(pooled, 1)
        self._state = state

    @property
    def dense(self) -> dict[str, np.ndarray]:
        """Parameters by name: copies."""
        return self.layout.unpack_array(np.array(self._state.theta.numpy()))

    def set_dense(self, dense: Mapping[str, np.ndarray]) -> None:
        """Parameters by name, as a delta carries them."""
        self._state = self._state._replace(theta=tf.constant(self.layout.pack_array(dense)))

    def state(self) -> dict[str, np.ndarray]:
        """Parameters and Adam's state as arrays: copies."""
        return {name: np.array(tensor.numpy()) for name, tensor in self._state._asdict().items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        self._state = AdamState(**{name: tf.constant(state[name]) for name in AdamState._fields})


def _tensors(pooled: Mapping[str, np.ndarray], rows: int) -> list[tf.Tensor]:
    return [*(tf.convert_to_tensor(pooled[name]) for name in _POOLED), tf.constant(rows, tf.float32)]
