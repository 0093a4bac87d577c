"""Starts Python workers of Beam jobs on this machine, for the task managers that ask (environment_type EXTERNAL).

    python -m deploy.worker_pool --port 50000

Beam's SDK containers have `apache_beam.runners.worker.worker_pool_main` for that, with their boot program to start a worker.
There is no such program outside of them, and without it a worker knows none of the job's options (its state cache stays off)
and logs nothing to the task manager. This pool does what that program does, but installs nothing: a worker is this Python
with its packages, in the present folder. It also tells the workers of several task managers apart, and listens on one
address only.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from google.protobuf import json_format, struct_pb2, text_format

from schemas.process import CommandParser, UserError, run_main, setup_logging

log = logging.getLogger(__name__)

_ASK_S = 30.0
_STOP_S = 10.0


@dataclass(frozen=True)
class _Worker:
    """A worker's process, and the connection over which it was asked for."""

    process: subprocess.Popen[bytes]
    peer: str

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Beam's service that starts and stops workers, each a process that is a child of this one."""

    def __init__(self) -> None:
        # Task managers number their workers each for itself: two of them have a worker 1-1.
        self._workers: dict[str, list[_Worker]] = {}
        self._lock = threading.Lock()

    def StartWorker(  # noqa: N802 (gRPC)
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: grpc.ServicerContext
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        """Ask what the job's options are, and start a worker with them; why that failed, if it did."""
        try:
            environment = os.environ | worker_environment(request, _provision(request))
            process = subprocess.Popen(
                [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        except (grpc.RpcError, OSError) as error:
            log.exception("worker not started", extra={"worker": request.worker_id})
            return beam_fn_api_pb2.StartWorkerResponse(error=f"worker {request.worker_id}: {error}")
        worker = _Worker(process, context.peer())
        with self._lock:
            self._workers.setdefault(request.worker_id, []).append(worker)
        log.info("worker started", extra={"worker": request.worker_id, "pid": process.pid, "by": worker.peer})
        threading.Thread(target=self._watch, args=(request.worker_id, worker), daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(  # noqa: N802 (gRPC)
        self, request: beam_fn_api_pb2.StopWorkerRequest, context: grpc.ServicerContext
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        """End the worker that this task manager has asked for under the id.

        One that it has asked for over another connection is not looked for: it ends by itself with its control stream,
        which the task manager has closed before it calls.
        """
        with self._lock:
            found = [each for each in self._workers.get(request.worker_id, []) if each.peer == context.peer()]
        for worker in found:
            worker.end()
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            found = [worker for workers in self._workers.values() for worker in workers]
        for worker in found:
            worker.process.terminate()
        for worker in found:
            worker.end()

    def _watch(self, name: str, worker: _Worker) -> None:
        """Wait for a worker's end, whatever brings it."""
        status = worker.process.wait()
        with self._lock:
            self._workers[name].remove(worker)
            if not self._workers[name]:
                del self._workers[name]
        log.info("worker ended", extra={"worker": name, "pid": worker.process.pid, "status": status})


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
    """Options as JSON. A Struct has no integers: whole numbers become integers again, which is what options take."""
    return json_format.json.dumps(_whole(json_format.MessageToDict(options)))


def _whole(value: object) -> object:
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(endpoint: endpoints_pb2.ApiServiceDescriptor) -> str:
    text: str = text_format.MessageToString(endpoint, as_one_line=True)
    return text


def _provision(request: beam_fn_api_pb2.StartWorkerRequest) -> beam_provision_api_pb2.ProvisionInfo:
    with grpc.insecure_channel(request.provision_endpoint.url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        answer = stub.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=[("worker_id", request.worker_id)],
            timeout=_ASK_S,
            wait_for_ready=True,
        )
    info = answer.info
    if info.dependencies:
        # They are what setup_file and the like stage: here they are in this environment, or nowhere.
        log.warning("staged files are not installed", extra={"worker": request.worker_id, "files": len(info.dependencies)})
    return info


def serve(host: str, port: int) -> None:
    """Answer until SIGTERM or Ctrl-C; all workers have ended then.

    Raises:
        UserError: the port is taken.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    pool = WorkerPool()
    server = grpc.server(ThreadPoolExecutor(16, thread_name_prefix="request"), options=[("grpc.so_reuseport", 0)])
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise UserError(f"cannot listen on {host}:{port}: choose another --port (0: any free one)") from error
    server.start()
    log.info("serving", extra={"host": host, "port": bound})
    stop.wait()
    server.stop(grace=None).wait()
    pool.close()


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; 0 then."""
    parser = CommandParser(
        prog="python -m deploy.worker_pool", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--port", type=int, default=50000, help="that task managers ask on; 0 takes a free one, which the log names (default: %(default)s)")
    add("--host", default="127.0.0.1", help="address to listen on; task managers ask from the same machine (default: %(default)s)")
    args = parser.parse_args(argv)
    setup_logging()
    serve(args.host, args.port)
    return 0


if __name__ == "__main__":
    run_main(main)
