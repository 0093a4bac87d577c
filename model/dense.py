"""The dense parameters: their names and shapes, and how they lie in one flat vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from schemas.config import FeatureConfig


@dataclass(frozen=True)
class DenseLayout:
    """Names and shapes of the dense parameters, in the order in which they lie in one flat float32 vector.

    One vector, so that a compiled step takes few arguments and Adam is one fused loop. Kernels are [outputs, inputs]:
    then every product of the backward pass runs along rows in memory, which takes two thirds of the time.
    """

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
        """Shape of each parameter by name, in their order; S slots, D dimensions, H heads, layers of U_1 to U_n units.

        bias, first_order_gain and fm_gain [H]; kernel_0 [U_1, S * D], kernel_i [U_{i+1}, U_i], the last [H, U_n];
        bias_i [U_{i+1}] of each hidden layer.
        """
        shapes: dict[str, tuple[int, ...]] = {
            "bias": (self.heads,),
            "first_order_gain": (self.heads,),
            "fm_gain": (self.heads,),
        }
        inputs = self.slots * self.dim
        for number, units in enumerate((*self.hidden, self.heads)):
            shapes[f"kernel_{number}"] = (units, inputs)
            if number < len(self.hidden):
                shapes[f"bias_{number}"] = (units,)
            inputs = units
        return shapes

    @cached_property
    def _sizes(self) -> list[int]:
        return [int(np.prod(shape)) for shape in self.shapes.values()]

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(self._sizes)

    def initial(self, seed: int) -> np.ndarray:
        """float32[size]: He-normal kernels, gains 1, biases 0; the last kernel starts at a tenth, so that the FM leads."""
        random = np.random.default_rng(seed)
        parts = []
        for name, shape in self.shapes.items():
            if name.startswith("kernel"):
                scale = np.sqrt(2 / shape[1]) * (0.1 if name == f"kernel_{len(self.hidden)}" else 1)
                parts.append((random.standard_normal(shape) * scale).ravel())
            else:
                parts.append(np.full(shape, 1.0 if name.endswith("gain") else 0.0).ravel())
        return np.concatenate(parts).astype(np.float32)

    def unpack(self, flat: tf.Tensor) -> dict[str, tf.Tensor]:
        """The flat vector as named tensors."""
        parts = tf.split(flat, self._sizes)
        return {name: tf.reshape(part, shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def pack(self, dense: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The inverse of `unpack`."""
        return tf.concat([tf.reshape(dense[name], [-1]) for name in self.shapes], axis=0)

    def unpack_array(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """As `unpack`, in NumPy: views into `flat`."""
        parts = np.split(flat, np.cumsum(self._sizes)[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def pack_array(self, dense: Mapping[str, np.ndarray]) -> np.ndarray:
        """The inverse of `unpack_array`."""
        return np.concatenate([np.asarray(dense[name], np.float32).ravel() for name in self.shapes])
