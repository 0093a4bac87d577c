"""TF Serving's gRPC services over a VersionManager: the same requests, answers, codes and messages."""

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.errors import RequestError
from serving.metrics import Metrics
from serving.tensors import encode
from serving.versions import VersionManager

log = logging.getLogger(__name__)

DEFAULT_SIGNATURE = "serving_default"
SIGNATURE_DEF = "signature_def"


class Answering:
    """What both services share: which model a request means, and how an answer ends and is counted."""

    def __init__(self, versions: VersionManager, model_name: str, metrics: Metrics) -> None:
        self.versions = versions
        self.model_name = model_name
        self._metrics = metrics

    def wanted_version(self, request: Any) -> int | None:
        """The version a request's model_spec asks for; None is the latest.

        Raises:
            RequestError: no model_spec or name (INVALID_ARGUMENT), another model's name (NOT_FOUND), a
                version label (INVALID_ARGUMENT: this server gives none).
        """
        spec = request.model_spec
        if not request.HasField("model_spec"):
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
        if not spec.name:
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        if spec.WhichOneof("version_choice") == "version_label":
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Unrecognized servable version label: {spec.version_label}",
            )
        choice = spec.WhichOneof("version_choice")
        version = spec.version.value if choice == "version" else None
        if spec.name != self.model_name:
            asked = f"Latest({spec.name})" if version is None else f"Specific({spec.name}, {version})"
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
        return version

    def answer(
        self,
        method: str,
        handler: Callable[[Any], tuple[Any, str]],
        request: Any,
        context: grpc.ServicerContext,
    ) -> Any:
        """The handler's response; its RequestError becomes the call's status. Counted either way.

        A handler gives its response and the signature that answered.
        """
        started = time.perf_counter()
        code, signature = grpc.StatusCode.INTERNAL, ""
        try:
            response, signature = handler(request)
            code = grpc.StatusCode.OK
            return response
        except RequestError as error:
            code = error.code
            context.abort(code, error.details)
        except Exception as error:
            log.exception("request failed", extra={"method": method})
            context.abort(code, f"{type(error).__name__}: {error}")
        finally:
            self._metrics.answered(method, signature, code.name, time.perf_counter() - started)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata. Tensors are answered in typed fields, or packed if `as_content`."""

    def __init__(self, answering: Answering, as_content: bool = False) -> None:
        self._answering = answering
        self._as_content = as_content

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, gRPC's name
        """Run one signature."""
        return self._answering.answer("Predict", self._predict, request, context)

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """The model's signatures."""
        return self._answering.answer("GetModelMetadata", self._metadata, request, context)

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Not offered."""
        _refuse(context, "Classify", "call Predict with the signature serving_default")

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Not offered."""
        _refuse(context, "Regress", "call Predict with the signature serving_default")

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Not offered."""
        _refuse(context, "MultiInference", "call Predict with the signature serving_default")

    def _predict(self, request: Any) -> tuple[Any, str]:
        wanted = self._answering.wanted_version(request)
        with self._answering.versions.acquire(wanted) as model:
            signature = model.signature(request.model_spec.signature_name or DEFAULT_SIGNATURE)
            inputs = signature.decode(request.inputs)
            aliases = signature.select(request.output_filter)
            arrays = model.run(signature, inputs, aliases)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self._answering.model_name
        response.model_spec.signature_name = signature.name
        response.model_spec.version.value = model.version
        for alias, array in zip(aliases, arrays, strict=True):
            response.outputs[alias].CopyFrom(encode(array, self._as_content))
        return response, signature.name

    def _metadata(self, request: Any) -> tuple[Any, str]:
        if not request.HasField("model_spec"):
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
        if not request.metadata_field:
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "GetModelMetadataRequest must specify at least one metadata_field",
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, f"Metadata field {field} is not supported")
        with self._answering.versions.acquire(self._answering.wanted_version(request)) as model:
            signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=model.signature_defs)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self._answering.model_name
        response.model_spec.version.value = model.version
        response.metadata[SIGNATURE_DEF].Pack(signatures)
        return response, ""


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus: the state of every version, or of the one asked for."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """States of versions, newest first; a version that did not load says why."""
        return self._answering.answer("GetModelStatus", self._status, request, context)

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Not offered."""
        _refuse(context, "HandleReloadConfigRequest", "versions are taken from --model_dir as they appear")

    def _status(self, request: Any) -> tuple[Any, str]:
        # As TF Serving: any name is looked for, an empty one too, and a label chooses nothing.
        if not request.HasField("model_spec"):
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
        name = request.model_spec.name
        statuses = self._answering.versions.statuses() if name == self._answering.model_name else []
        if request.model_spec.HasField("version"):
            version = request.model_spec.version.value
            statuses = [status for status in statuses if status.version == version]
            missing = f"Could not find version {version} of model {name}"
        else:
            missing = f"Could not find any versions of model {name}"
        if not statuses:
            raise RequestError(grpc.StatusCode.NOT_FOUND, missing)
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in statuses:
            entry = response.model_version_status.add(version=status.version, state=int(status.state))
            entry.status.SetInParent()  # TF Serving sets it for healthy versions too
            if status.error:
                entry.status.error_code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
                entry.status.error_message = status.error
        return response, ""


def _refuse(context: grpc.ServicerContext, method: str, remedy: str) -> None:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here: {remedy}")
