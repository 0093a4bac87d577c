"""A model server as an object: gRPC services, the versions behind them, metrics beside them."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from schemas import flags
from schemas.metrics_endpoint import MetricsEndpoint
from schemas.process import UserError
from serving.folders import require_version_folder
from serving.metrics import Metrics
from serving.service import Answering, ModelService, PredictionService
from serving.versions import VersionManager

log = logging.getLogger(__name__)

_SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not half of the traffic
    ("grpc.max_receive_message_length", -1),  # as TF Serving: messages of any size
    ("grpc.max_send_message_length", -1),
)


@dataclass(frozen=True)
class ServerOptions:
    """What a model server is started with; the meaning of each field is its flag's in serving.server."""

    model_dir: Path
    host: str = "127.0.0.1"
    port: int = 8500
    model_name: str = "freshet"
    poll_s: float = 0.5
    threads: int = 8
    wait: bool = False
    metrics_port: int | None = None
    tensor_content: bool = False
    grace_s: float = 5.0


class ModelServer:
    """Serves the newest model in `options.model_dir` over gRPC, from `start` to `stop`.

    Usable as a context manager. `port` and `metrics_port` are the bound ones, known after `start`.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.port = options.port
        self.metrics_port: int | None = None
        self._metrics = Metrics()
        self._endpoint: MetricsEndpoint | None = None
        self.versions = VersionManager(options.model_dir, options.model_name, options.poll_s, self._metrics)
        self._grpc = grpc.server(ThreadPoolExecutor(options.threads, thread_name_prefix="request"), options=_SERVER_OPTIONS)
        answering = Answering(self.versions, options.model_name, self._metrics)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(answering, options.tensor_content), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(answering), self._grpc)

    def start(self) -> None:
        """Load the newest version (unless told to wait for one), then answer on the port.

        Raises:
            UserError: no version in the directory loads, or a port is in use.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        log.info(
            "serving",
            extra={
                "model_name": self.options.model_name,
                "host": self.options.host,
                "port": self.port,
                "metrics_port": self.metrics_port,
            },
        )

    def stop(self) -> None:
        """Take no new requests, let the running ones end within `grace_s`, then free everything."""
        self._grpc.stop(self.options.grace_s).wait()
        self.versions.close()
        if self._endpoint is not None:
            self._endpoint.close()
        log.info("stopped")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _start(self) -> None:
        self.versions.poll()
        if not self.options.wait:
            self._require_a_version()
        address = flags.address(self.options.host, self.options.port)
        try:
            self.port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise UserError(f"cannot listen on {address}: choose another --port or --host") from error
        if self.options.metrics_port is not None:
            self._endpoint = self._metrics.serve(self.options.metrics_port)
            self.metrics_port = self._endpoint.port
        self._grpc.start()
        self.versions.start()

    def _require_a_version(self) -> None:
        require_version_folder(self.options.model_dir)
        statuses = self.versions.statuses()
        # None yet: the first folder has appeared since the manager looked, and is loaded at its next look.
        if statuses and all(status.error for status in statuses):
            newest = statuses[0]
            raise UserError(
                f"no version in {self.options.model_dir} loads: version {newest.version}: {newest.error}; "
                "write a new version or start with --wait"
            )
