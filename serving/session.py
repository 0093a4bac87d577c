"""One version of a model in memory: its SavedModel behind a session, one callable per signature."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf

from serving.errors import ModelLoadError, RequestError
from serving.tensors import TensorError, TensorSpec, decode

# Answered once with padding before a version goes live, so that no user's request pays for the
# session's graph optimisation. Only signatures that read: the others change the model.
WARM_UP_SIGNATURES = ("predict", "rank")

Run = Callable[..., list[np.ndarray]]


@dataclass(frozen=True)
class Signature:
    """What a signature takes and gives, by alias."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, name: str, definition: Any) -> "Signature":
        """The signature of `definition`, a `tensorflow.SignatureDef`."""
        return cls(
            name,
            {alias: TensorSpec.of(alias, info) for alias, info in sorted(definition.inputs.items())},
            {alias: TensorSpec.of(alias, info) for alias, info in sorted(definition.outputs.items())},
        )

    def decode(self, protos: Mapping[str, Any]) -> list[np.ndarray]:
        """The arrays in a request's TensorProtos, in the order of `inputs`.

        Raises:
            RequestError: INVALID_ARGUMENT if an input is missing, unknown, or of another dtype or shape.
        """
        if protos.keys() != self.inputs.keys():
            extra = sorted(protos.keys() - self.inputs.keys())
            missing = sorted(self.inputs.keys() - protos.keys())
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"input size does not match signature: {len(protos)}!={len(self.inputs)} "
                f"len({_braces(sorted(protos))}) != len({_braces(self.inputs)}). "
                f"Sent extra: {_braces(extra)}. Missing but required: {_braces(missing)}.",
            )
        try:
            return [decode(protos[alias], spec) for alias, spec in self.inputs.items()]
        except TensorError as error:
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error

    def select(self, output_filter: Iterable[str]) -> tuple[str, ...]:
        """The outputs to fetch: those of the filter, in its order, or all of them if it is empty.

        Raises:
            RequestError: INVALID_ARGUMENT if the filter names an unknown output, or one twice.
        """
        chosen = tuple(output_filter)
        for alias in chosen:
            if alias not in self.outputs:
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"output tensor alias not found in signature: {alias} "
                    f"Outputs expected to be in the set {_braces(self.outputs)}.",
                )
            if chosen.count(alias) > 1:
                raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, f"duplicate output tensor alias: {alias}")
        return chosen or tuple(self.outputs)


class LoadedModel:
    """A SavedModel version directory, loaded as TF Serving loads it and ready to answer.

    Thread-safe: a session takes any number of runs at once and releases the GIL while it works.
    """

    def __init__(self, version: int, session: Any, signature_defs: Mapping[str, Any]) -> None:
        self.version = version
        self.signature_defs = dict(signature_defs)
        self.signatures = {
            name: Signature.of(name, definition)
            for name, definition in self.signature_defs.items()
            if definition.method_name  # what initialises the model has none, and is nobody's to call
        }
        self._session = session
        self._callables: dict[tuple[str, tuple[str, ...]], Run] = {}

    @classmethod
    def load(cls, path: Path, version: int) -> "LoadedModel":
        """Load and warm up the SavedModel in `path`.

        Raises:
            ModelLoadError: it cannot be read, or does not answer.
        """
        graph = tf.Graph()
        session = tf.compat.v1.Session(graph=graph)
        try:
            with graph.as_default(), session.as_default():
                meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
            graph.finalize()
            model = cls(version, session, meta_graph.signature_def)
            model._warm_up()
        except Exception as error:  # whatever damaged files make the loader raise, this version is broken
            session.close()
            raise ModelLoadError(f"{path}: {type(error).__name__}: {first_line(error)}") from error
        return model

    def signature(self, name: str) -> Signature:
        """The signature of that name.

        Raises:
            RequestError: FAILED_PRECONDITION, as TF Serving says it, if the model has none.
        """
        found = self.signatures.get(name)
        if found is None:
            raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        return found

    def run(self, signature: Signature, inputs: list[np.ndarray], outputs: tuple[str, ...]) -> list[np.ndarray]:
        """Run `signature` on `inputs` (in the order of `signature.inputs`); the arrays of `outputs`.

        Raises:
            RequestError: what the graph's kernels answered, under TensorFlow's own status code.
        """
        try:
            return self._callable(signature, outputs)(*inputs)
        except tf.errors.OpError as error:
            raise RequestError(_STATUS[error.error_code], first_line(error)) from error
        except UnicodeDecodeError as error:
            # TensorFlow's binding cannot spell a message that quotes such bytes, and its code is lost with it. Nothing but
            # the request can have brought them.
            message = error.object.decode(errors="backslashreplace")
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, message.splitlines()[0]) from error

    def close(self) -> None:
        """Free the model's memory. Nothing may be running."""
        self._callables.clear()
        self._session.close()
        del self._session

    def _callable(self, signature: Signature, outputs: tuple[str, ...]) -> Run:
        key = (signature.name, outputs)
        run = self._callables.get(key)
        if run is None:
            fetches = [signature.outputs[alias].tensor for alias in outputs]
            feeds = [spec.tensor for spec in signature.inputs.values()]
            run = self._callables.setdefault(key, self._session.make_callable(fetches, feeds))
        return run

    def _warm_up(self) -> None:
        for name in WARM_UP_SIGNATURES:
            if name in self.signatures:
                signature = self.signatures[name]
                padding = [_padding(spec) for spec in signature.inputs.values()]
                self.run(signature, padding, tuple(signature.outputs))


_STATUS: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def first_line(error: BaseException) -> str:
    """What an error says, without the heading and the stack traces that TensorFlow puts around it."""
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    lines = (line.strip() for line in str(text).splitlines())
    said = (line for line in lines if line and line != "Graph execution error:")
    return next(said, type(error).__name__)


def _padding(spec: TensorSpec) -> np.ndarray:
    shape = tuple(1 if size is None else size for size in spec.shape or ())
    return np.zeros(shape, spec.dtype.as_numpy_dtype)


def _braces(names: Iterable[str]) -> str:
    return "{" + ",".join(names) + "}"
