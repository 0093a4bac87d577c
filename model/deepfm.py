"""DeepFM with several heads over shared embeddings, and its compiled training step.

    logit_h = b_h + g_h * sum_s w_s + f_h * sum_{s<t} <v_s, v_t> + MLP_h([v_1; ...; v_S])

``w_s`` and ``v_s`` are a slot's pooled first-order weight and embedding; the MLP's hidden layers are shared by the heads.

Reference:
    Guo, Tang, Ye, Li, He: DeepFM: A Factorization-Machine based Neural Network for CTR Prediction. IJCAI 2017, eq. 1 to 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from schemas.config import FeatureConfig

#: Numbers of rows that the step is compiled for; a batch is padded to the next one.
LADDER = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-7  # Adam's, as Keras has them


@dataclass(frozen=True)
class DenseLayout:
    """Names and shapes of the dense parameters, in the order in which they lie in one flat vector."""

    slots: int
    dim: int
    hidden: tuple[int, ...]
    heads: int

    @classmethod
    def of(cls, config: FeatureConfig) -> DenseLayout:
        """The layout of a configuration."""
        return cls(config.num_slots, config.model.dim, tuple(config.model.hidden), len(config.heads))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By name."""
        shapes: dict[str, tuple[int, ...]] = {
            "bias": (self.heads,),
            "first_order_gain": (self.heads,),
            "fm_gain": (self.heads,),
        }
        width = self.slots * self.dim
        for number, units in enumerate((*self.hidden, self.heads)):
            shapes[f"kernel_{number}"] = (width, units)
            if number < len(self.hidden):
                shapes[f"bias_{number}"] = (units,)
            width = units
        return shapes

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def initial(self, seed: int) -> np.ndarray:
        """float32[size]: He-normal kernels, gains 1, biases 0; the last kernel starts at a tenth, so that the FM leads."""
        random = np.random.default_rng(seed)
        parts = []
        for name, shape in self.shapes.items():
            if name.startswith("kernel"):
                scale = np.sqrt(2 / shape[0]) * (0.1 if name == f"kernel_{len(self.hidden)}" else 1)
                parts.append((random.standard_normal(shape) * scale).ravel())
            else:
                parts.append(np.full(shape, 1.0 if name.endswith("gain") else 0.0).ravel())
        return np.concatenate(parts).astype(np.float32)

    def unpack(self, flat: tf.Tensor) -> dict[str, tf.Tensor]:
        """The flat vector as named tensors."""
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        parts = tf.split(flat, sizes)
        return {name: tf.reshape(part, shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def unpack_array(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The same in NumPy: views into ``flat``."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes.values()])[:-1]
        return {
            name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), np.split(flat, ends), strict=True)
        }

    def pack_array(self, dense: dict[str, np.ndarray]) -> np.ndarray:
        """The inverse of :meth:`unpack_array`."""
        return np.concatenate([np.asarray(dense[name], np.float32).ravel() for name in self.shapes])


def forward(dense: dict[str, tf.Tensor], embeddings: tf.Tensor, layers: int) -> tf.Tensor:
    """Logits of a batch.

    Args:
        dense: parameters by name.
        embeddings: float32[N, S, 1 + dim], pooled by slot: first-order weight, then embedding.
        layers: hidden layers.

    Returns:
        float32[N, heads].
    """
    first_order = tf.reduce_sum(embeddings[:, :, 0], axis=1, keepdims=True)
    v = embeddings[:, :, 1:]
    # sum_{s<t} <v_s, v_t> = ((sum v)^2 - sum v^2) / 2, summed over the dimensions.
    square_of_sum = tf.square(tf.reduce_sum(v, axis=1))
    sum_of_square = tf.reduce_sum(tf.square(v), axis=1)
    fm = 0.5 * tf.reduce_sum(square_of_sum - sum_of_square, axis=1, keepdims=True)
    h = tf.reshape(v, [-1, v.shape[1] * v.shape[2]])
    for number in range(layers):
        h = tf.nn.relu(h @ dense[f"kernel_{number}"] + dense[f"bias_{number}"])
    deep = h @ dense[f"kernel_{layers}"]
    return dense["bias"] + dense["first_order_gain"] * first_order + dense["fm_gain"] * fm + deep


class DeepFM:
    """Dense parameters, their Adam state, and compiled functions over pooled embeddings.

    Args:
        config: slots, dimension, hidden layers, heads.
        seed: of the initial values.
    """

    def __init__(self, config: FeatureConfig, seed: int = 0) -> None:
        self.layout = DenseLayout.of(config)
        self._rate = config.model.dense_learning_rate
        self._theta = tf.Variable(self.layout.initial(seed), name="theta")
        self._first_moment = tf.Variable(tf.zeros_like(self._theta))
        self._second_moment = tf.Variable(tf.zeros_like(self._theta))
        self._steps = tf.Variable(0.0)
        self._step_of: dict[int, Callable[..., tuple[tf.Tensor, ...]]] = {}
        self._predict_of: dict[int, Callable[..., tf.Tensor]] = {}

    def step(self, embeddings: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """One step of the dense parameters; the embeddings' gradient is handed back.

        The loss is the mean over rows of the masked binary cross-entropy, summed over heads. The embeddings' gradient is
        that of the mean times sqrt(N): an Adagrad row then moves alike whether steps are small or large.

        Args:
            embeddings: float32[N, S, 1 + dim], N one of :data:`LADDER`; padding rows have a zero mask.
            labels: float32[N, H].
            mask: float32[N, H], 1 where a head is learned.

        Returns:
            (gradient float32[N, S, 1 + dim], logits float32[N, H] before the step, loss). A loss that is not finite
            leaves the dense parameters as they were.
        """
        function = self._step_of.get(len(embeddings))
        if function is None:
            function = self._step_of[len(embeddings)] = self._compile_step(len(embeddings))
        gradient, logits, loss = function(embeddings, labels, mask)
        return gradient.numpy(), logits.numpy(), float(loss)

    def predict(self, embeddings: np.ndarray) -> np.ndarray:
        """Logits float32[N, H]; N one of :data:`LADDER`."""
        function = self._predict_of.get(len(embeddings))
        if function is None:
            function = self._predict_of[len(embeddings)] = self._compile_predict(len(embeddings))
        return np.asarray(function(embeddings))

    @property
    def dense(self) -> dict[str, np.ndarray]:
        """Parameters by name."""
        return self.layout.unpack_array(self._theta.numpy())

    def state(self) -> dict[str, np.ndarray]:
        """Parameters and Adam's moments as arrays."""
        return {
            "theta": self._theta.numpy(),
            "first_moment": self._first_moment.numpy(),
            "second_moment": self._second_moment.numpy(),
            "steps": np.array([self._steps.numpy()], np.float32),
        }

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state`."""
        self._theta.assign(state["theta"])
        self._first_moment.assign(state["first_moment"])
        self._second_moment.assign(state["second_moment"])
        self._steps.assign(float(state["steps"][0]))

    def set_dense(self, dense: dict[str, np.ndarray]) -> None:
        """Parameters by name, as a delta carries them."""
        self._theta.assign(self.layout.pack_array(dense))

    def _compile_step(self, rows: int) -> Callable[..., tuple[tf.Tensor, ...]]:
        layout = self.layout

        @tf.function(jit_compile=True, input_signature=self._signature(rows, heads=True))
        def step(embeddings: tf.Tensor, labels: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, ...]:
            theta = self._theta.read_value()
            with tf.GradientTape() as tape:
                tape.watch((theta, embeddings))
                logits = forward(layout.unpack(theta), embeddings, len(layout.hidden))
                entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
                n = tf.maximum(1.0, tf.reduce_sum(tf.reduce_max(mask, axis=1)))
                # where, not times: a masked label may be anything.
                loss = tf.reduce_sum(tf.where(mask > 0, entropy, 0.0)) / n
            g, gradient = tape.gradient(loss, (theta, embeddings))
            self._adam(theta, g, tf.math.is_finite(loss) & tf.reduce_all(tf.math.is_finite(g)))
            return gradient * tf.sqrt(n), logits, loss

        return step.get_concrete_function()

    def _adam(self, theta: tf.Tensor, g: tf.Tensor, finite: tf.Tensor) -> None:
        """Kingma and Ba 2015, algorithm 1, with Keras's placing of epsilon; nothing moves unless ``finite``."""
        t = self._steps + 1.0
        m = self._first_moment + (g - self._first_moment) * (1 - _BETA1)
        v = self._second_moment + (tf.square(g) - self._second_moment) * (1 - _BETA2)
        rate = self._rate * tf.sqrt(1 - tf.pow(_BETA2, t)) / (1 - tf.pow(_BETA1, t))
        moved = theta - rate * m / (tf.sqrt(v) + _EPSILON)
        for variable, value in (
            (self._theta, moved),
            (self._first_moment, m),
            (self._second_moment, v),
            (self._steps, t),
        ):
            variable.assign(tf.where(finite, value, variable))

    def _compile_predict(self, rows: int) -> Callable[..., tf.Tensor]:
        layout = self.layout

        @tf.function(jit_compile=True, input_signature=self._signature(rows, heads=False))
        def predict(embeddings: tf.Tensor) -> tf.Tensor:
            return forward(layout.unpack(self._theta.read_value()), embeddings, len(layout.hidden))

        return predict.get_concrete_function()

    def _signature(self, rows: int, heads: bool) -> list[tf.TensorSpec]:
        layout = self.layout
        signature = [tf.TensorSpec([rows, layout.slots, 1 + layout.dim], tf.float32)]
        return signature + [tf.TensorSpec([rows, layout.heads], tf.float32)] * (2 * heads)


def padded(rows: int) -> int:
    """The rung of :data:`LADDER` that holds ``rows`` (at most its last one)."""
    return next(rung for rung in LADDER if rung >= rows)
