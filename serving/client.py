"""A client for a model server, ours or TF Serving, over the stock tensorflow-serving-api stubs."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from tensorflow import make_ndarray
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.errors import ServingError
from serving.tensors import encode

# Retried by gRPC itself, within the call's deadline: a server that restarts, a connection that drops.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_CHANNEL_OPTIONS = (
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.enable_retries", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
_READY_POLL_S = 0.05
# What a server, or a proxy before it, answers while it starts, restarts or has no model.
_NOT_YET = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)


@dataclass(frozen=True)
class Candidates:
    """What the model knows of a user, and the videos it can rank.

    Attributes:
        user_ids: int64[Wu], the user's feature ids.
        known: whether the model has met the user; if not, `user_ids` hold the user id alone.
        item_ids: the M videos.
        ids: int64[M, Wi], their feature ids.
        version: the version that answered.
    """

    user_ids: np.ndarray
    known: bool
    item_ids: tuple[str, ...]
    ids: np.ndarray
    version: int


@dataclass(frozen=True)
class Ranking:
    """The best candidates, best first.

    Attributes:
        index: int32[k], rows of the candidates that were sent; shorter when fewer were sent.
        scores: float32[k], probabilities.
        version: the version that answered.
        shard_versions: int64[shards], steps each shard had learned when that version was written.
    """

    index: np.ndarray
    scores: np.ndarray
    version: int
    shard_versions: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """Probabilities, float32[N, heads], of the rows that were sent; `version` as in Ranking."""

    scores: np.ndarray
    version: int
    shard_versions: np.ndarray


class RankClient:
    """Asks one model server for candidates, rankings and predictions. Thread-safe; one channel.

    Every call has a deadline, retries UNAVAILABLE within it, and raises ServingError, which names the
    server, the reason and the remedy.

    Args:
        server: HOST:PORT.
        model_name: as the server was started with.
        timeout_s: deadline of a call.
    """

    def __init__(self, server: str, model_name: str = "freshet", timeout_s: float = 5.0) -> None:
        self.server = server
        self.model_name = model_name
        self.timeout_s = timeout_s
        self._channel = grpc.insecure_channel(server, options=_CHANNEL_OPTIONS)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def wait_until_ready(self, timeout_s: float = 30.0) -> int:
        """Wait until the server answers and has a model; the version that is available.

        Raises:
            ServingError: not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model_name
        while True:
            try:
                response = self._models.GetModelStatus(
                    request, timeout=max(deadline - time.monotonic(), 0.0), wait_for_ready=True
                )
                available = [
                    status.version
                    for status in response.model_version_status
                    if status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
                ]
                if available:
                    return max(available)
                error = ServingError(f"{self.server}: model {self.model_name} has no version that loads")
            except grpc.RpcError as failure:
                error = self._explained(failure)
                if error.code not in _NOT_YET:
                    raise error from failure
            if time.monotonic() + _READY_POLL_S > deadline:
                raise error
            time.sleep(_READY_POLL_S)  # a remote server's state: there is nothing here to wait on

    def heads(self) -> tuple[str, ...]:
        """Names of the model's heads, in the order of its scores."""
        outputs, _ = self._predict("status", {}, ("heads",))
        return tuple(name.decode() for name in outputs["heads"].ravel().tolist())

    def fingerprint(self) -> int:
        """Of the feature configuration that the model was trained with: ids made with another mean something else to it.

        That of yours is `FeatureConfig.fingerprint`.
        """
        outputs, _ = self._predict("status", {}, ("fingerprint",))
        return int(outputs["fingerprint"])

    def catalogue(self, user_id: str) -> Candidates:
        """The user's features and the candidate videos, as the model holds them."""
        outputs, version = self._predict("catalogue", {"user_id": np.array(user_id.encode(), object)})
        return Candidates(
            user_ids=outputs["user_ids"],
            known=bool(outputs["known"]),
            item_ids=tuple(item.decode() for item in outputs["item_ids"].tolist()),
            ids=outputs["ids"],
            version=version,
        )

    def rank(self, user_ids: np.ndarray, ids: np.ndarray, k: int, head: int = 0) -> Ranking:
        """The `k` best of the candidates for the user.

        Args:
            user_ids: int64[Wu].
            ids: int64[N, Wi].
            k: how many to return.
            head: position of the head to rank by.
        """
        inputs: dict[str, np.ndarray] = {
            "user_ids": np.asarray(user_ids, np.int64),
            "ids": np.asarray(ids, np.int64),
            "k": np.array(k, np.int32),
            "head": np.array(head, np.int32),
        }
        outputs, version = self._predict("rank", inputs)
        return Ranking(outputs["index"], outputs["scores"], version, outputs["version"])

    def predict(self, ids: np.ndarray) -> Prediction:
        """Probabilities of every head for `ids`, int64[N, Wu + Wi]."""
        outputs, version = self._predict("predict", {"ids": np.asarray(ids, np.int64)})
        return Prediction(outputs["scores"], version, outputs["version"])

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _predict(
        self, signature: str, inputs: Mapping[str, np.ndarray], output_filter: tuple[str, ...] = ()
    ) -> tuple[dict[str, np.ndarray], int]:
        request = predict_pb2.PredictRequest(output_filter=output_filter)
        request.model_spec.name = self.model_name
        request.model_spec.signature_name = signature
        for alias, array in inputs.items():
            request.inputs[alias].CopyFrom(encode(array, as_content=True))
        try:
            response = self._predictions.Predict(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise self._explained(error) from error
        outputs = {alias: make_ndarray(proto) for alias, proto in response.outputs.items()}
        return outputs, response.model_spec.version.value

    def _explained(self, error: Any) -> ServingError:
        """A ServingError for the grpc.RpcError of a call: one line."""
        code = error.code()
        remedy = _REMEDIES.get(code, "")
        details = " ".join(str(error.details()).split())
        return ServingError(f"{self.server}: {code.name}: {details}{remedy}", code)


_REMEDIES = {
    grpc.StatusCode.UNAVAILABLE: "; is a server running there? python -m serving.server --model_dir DIR",
    grpc.StatusCode.DEADLINE_EXCEEDED: "; is it the right address, or is a longer --timeout_s needed?",
    grpc.StatusCode.NOT_FOUND: "; check --model_name, and that the server has loaded a version",
    grpc.StatusCode.FAILED_PRECONDITION: "; is this a Freshet model?",
}
