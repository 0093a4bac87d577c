"""A Python worker of a Beam job as a process: what it is told, and that it ends with the runner that it works for."""

import json
import queue
import signal
import threading
import time

import grpc
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from google.protobuf import json_format, struct_pb2, text_format

from deploy.worker_process import WorkerProcess, work

_ASK_S = 30.0
_STOP_S = 10.0
_LOST_S = 10.0  # without a connection to a runner, after which it is taken to be gone
# Nothing is sent over the connection that watches a runner; it is kept all the same, and tried again soon.
_WATCH = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
#: What every job stages for people to read: a list of the submitter's packages.
_FOR_PEOPLE = "submission_environment_dependencies.txt"


class Worker:
    """A worker's process, from its start.

    Raises:
        OSError: it cannot be started.
        grpc.RpcError: the runner does not tell of its job.

    Attributes:
        peer: who asked for it, as gRPC names the connection.
        staged: names of files that its job has staged for workers to install, which this one has not.
    """

    def __init__(self, request: beam_fn_api_pb2.StartWorkerRequest, peer: str) -> None:
        info = _provision(request)
        self.peer = peer
        self.staged = [name for name in map(_staged_name, info.dependencies) if name != _FOR_PEOPLE]
        self._control = request.control_endpoint.url
        self._process = WorkerProcess(work, worker_environment(request, info))

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def end(self) -> None:
        """Have it end, by SIGTERM, and by SIGKILL where that takes too long; done when it has ended."""
        self._process.send(signal.SIGTERM)
        if not self._process.wait(_STOP_S):
            self._process.send(signal.SIGKILL)
            self._process.wait()

    def wait(self) -> int:
        """Wait until it ends; its status.

        A worker whose task manager was killed would live on, and try for ever to send its log. So it is ended once nothing
        has listened for ten seconds where its runner was.
        """
        changes: queue.SimpleQueue[grpc.ChannelConnectivity | None] = queue.SimpleQueue()

        def ended() -> None:
            self._process.wait()
            changes.put(None)

        threading.Thread(target=ended, daemon=True).start()
        with grpc.insecure_channel(self._control, options=_WATCH) as channel:
            channel.subscribe(changes.put, try_to_connect=True)
            _wait_for_loss(changes)
        if not self._process.wait(0):
            self.end()
        return self._process.status


def _wait_for_loss(changes: queue.SimpleQueue[grpc.ChannelConnectivity | None]) -> None:
    """Return once the connection has been lost for long, or at a None."""
    lost_at: float | None = time.monotonic()
    while True:
        left = None if lost_at is None else max(0.0, lost_at + _LOST_S - time.monotonic())
        try:
            change = changes.get(timeout=left)
        except queue.Empty:
            return
        if change is None:
            return
        if change is grpc.ChannelConnectivity.READY:
            lost_at = None
        elif lost_at is None:
            lost_at = time.monotonic()


def worker_environment(
    request: beam_fn_api_pb2.StartWorkerRequest, info: beam_provision_api_pb2.ProvisionInfo
) -> dict[str, str]:
    """Environment variables by which a worker is told who it is, where the runner is, and the job's options.

    Those of Beam's container contract, as `apache_beam.runners.worker.sdk_worker_main` reads them.
    """
    found = {
        "WORKER_ID": request.worker_id,
        "PIPELINE_OPTIONS": options_json(info.pipeline_options),
        "LOGGING_API_SERVICE_DESCRIPTOR": _text(request.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": _text(request.control_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    if info.HasField("status_endpoint"):
        found["STATUS_API_SERVICE_DESCRIPTOR"] = _text(info.status_endpoint)
    return found


def options_json(options: struct_pb2.Struct) -> str:
    """A job's options as JSON. A Struct has no integers: whole numbers become such again, as options need them."""
    return json.dumps(_whole(json_format.MessageToDict(options)))


def _whole(value: object) -> object:
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(endpoint: endpoints_pb2.ApiServiceDescriptor) -> str:
    text: str = text_format.MessageToString(endpoint, as_one_line=True)
    return text


def _staged_name(artifact: beam_runner_api_pb2.ArtifactInformation) -> str:
    name: str = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name
    return name


def _provision(request: beam_fn_api_pb2.StartWorkerRequest) -> beam_provision_api_pb2.ProvisionInfo:
    with grpc.insecure_channel(request.provision_endpoint.url, options=_WATCH) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        answer = stub.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=[("worker_id", request.worker_id)],
            timeout=_ASK_S,
            wait_for_ready=True,
        )
    return answer.info
