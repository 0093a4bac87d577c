"""NumPy arrays to TensorProtos and back, checked against what a signature declares."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

# A TensorProto of a few bytes can declare any shape; this bounds what one input may unfold to.
MAX_INPUT_BYTES = 1 << 28

# The typed field that TF Serving fills for each dtype (Tensor::AsProtoField).
_VALUE_FIELDS: dict[tf.DType, str] = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int64: "int64_val",
    tf.uint64: "uint64_val",
    tf.uint32: "uint32_val",
    tf.int32: "int_val",
    tf.int16: "int_val",
    tf.uint16: "int_val",
    tf.int8: "int_val",
    tf.uint8: "int_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
}


class TensorError(ValueError):
    """A tensor that does not fit its place in the signature."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature: its alias, the graph's tensor, dtype and shape.

    `shape` is None when the rank is unknown; a dimension of None takes any size.
    """

    alias: str
    tensor: str
    dtype: tf.DType
    shape: tuple[int | None, ...] | None

    @classmethod
    def of(cls, alias: str, info: Any) -> "TensorSpec":
        """The spec of `info`, a `tensorflow.TensorInfo` of a SignatureDef."""
        shape = tf.TensorShape(info.tensor_shape)
        dims = None if shape.rank is None else tuple(shape.as_list())
        return cls(alias, info.name, tf.as_dtype(info.dtype), dims)

    def __str__(self) -> str:
        dims = "..." if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype.name}[{dims}]"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of `shape` may be fed here."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )


def decode(proto: Any, spec: TensorSpec) -> np.ndarray:
    """The array in `proto` (a `tensorflow.TensorProto`), of the dtype and a shape that `spec` declares.

    Strings become an object array of bytes.

    Raises:
        TensorError: another dtype, another shape, or values that do not fill the shape.
    """
    if proto.dtype != spec.dtype.as_datatype_enum:
        got = tf.as_dtype(proto.dtype).name if proto.dtype else "no dtype"
        raise TensorError(f'input "{spec.alias}" must be {spec}, got {got}')
    if proto.tensor_shape.unknown_rank:
        raise TensorError(f'input "{spec.alias}" must be {spec}, got a tensor without a shape')
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if not spec.accepts(shape):
        raise TensorError(f'input "{spec.alias}" must be {spec}, got shape {list(shape)}')
    # A string unfolds to an object's address; its own bytes have been sent.
    cell = np.dtype(spec.dtype.as_numpy_dtype).itemsize
    if any(size < 0 for size in shape) or math.prod(shape) * cell > MAX_INPUT_BYTES:
        raise TensorError(f'input "{spec.alias}" has shape {list(shape)}: negative or over {MAX_INPUT_BYTES} bytes')
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise TensorError(f"tensor parsing error: {spec.alias}: {error}") from error


def encode(array: np.ndarray, as_content: bool) -> Any:
    """A `tensorflow.TensorProto` of `array`.

    Args:
        array: what a session returned, or what a client sends.
        as_content: packed bytes (`tensor_content`), the fastest; otherwise the typed field (`float_val`
            ...) as TF Serving does, which clients without TensorFlow read most easily. Strings, which
            have no packed form, always go to `string_val`.
    """
    array = np.asarray(array)
    dtype = tf.as_dtype(array.dtype)
    field = _VALUE_FIELDS.get(dtype)
    if dtype == tf.string:
        values = [tf.compat.as_bytes(value) for value in array.ravel().tolist()]
    elif as_content or field is None:
        return _tensor_proto(dtype, array.shape, tensor_content=array.tobytes())
    else:
        values = array.ravel().tolist()
    return _tensor_proto(dtype, array.shape, **{str(field): values})


def _tensor_proto(dtype: tf.DType, shape: tuple[int, ...], **values: Any) -> Any:
    dims = tf.TensorShape(shape).as_proto()
    return tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=dims, **values)
