"""Starts Python workers of Beam jobs on this machine, for the task managers that ask (environment_type EXTERNAL).

    python -m deploy.worker_pool --port 50000

Beam's SDK containers have `apache_beam.runners.worker.worker_pool_main` for that, with their boot program to start a worker.
There is no such program outside of them, and without it a worker knows none of the job's options (its state cache stays off)
and logs nothing to the task manager. This pool does what that program does, but installs nothing: a worker is this Python
with its packages, in the present folder, forked from a process that has imported most of them (`worker_process.py`). It also
tells the workers of several task managers apart, ends those whose task manager was killed, and listens on one address only.
"""

import argparse
import logging
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from deploy import worker_process
from deploy.worker import Worker
from schemas.process import CommandParser, UserError, run_main, setup_logging

log = logging.getLogger(__name__)


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Beam's service that starts and stops workers, each a process that is a child of this one."""

    def __init__(self) -> None:
        # Task managers number their workers each for itself: two of them have a worker 1-1.
        self._workers: dict[str, list[Worker]] = {}
        self._lock = threading.Lock()

    def StartWorker(  # noqa: N802 (gRPC)
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: grpc.ServicerContext
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        """Ask what the job's options are, and start a worker with them; why that failed, if it did."""
        try:
            worker = Worker(request, context.peer())
        except (grpc.RpcError, OSError) as error:
            log.exception("worker not started", extra={"worker": request.worker_id})
            return beam_fn_api_pb2.StartWorkerResponse(error=f"worker {request.worker_id}: {error}")
        with self._lock:
            self._workers.setdefault(request.worker_id, []).append(worker)
        log.info("worker started", extra={"worker": request.worker_id, "pid": worker.pid, "by": worker.peer})
        if worker.staged:
            log.warning("staged files are not installed", extra={"worker": request.worker_id, "files": worker.staged})
        threading.Thread(target=self._watch, args=(request.worker_id, worker), daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(  # noqa: N802 (gRPC)
        self, request: beam_fn_api_pb2.StopWorkerRequest, context: grpc.ServicerContext
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        """End the worker that this task manager has asked for under the id.

        One that it has asked for over another connection is not looked for: it is ended when its runner is gone.
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
        with ThreadPoolExecutor(max(1, len(found))) as executor:
            list(executor.map(Worker.end, found))

    def _watch(self, name: str, worker: Worker) -> None:
        """Wait for a worker's end, whatever brings it."""
        status = worker.wait()
        with self._lock:
            self._workers[name].remove(worker)
            if not self._workers[name]:
                del self._workers[name]
        log.info("worker ended", extra={"worker": name, "pid": worker.pid, "status": status})


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
    worker_process.prepare()
    server.start()
    log.info("serving", extra={"host": host, "port": bound})
    stop.wait()
    server.stop(grace=None).wait()
    pool.close()


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Values of the options."""
    parser = CommandParser(
        prog="python -m deploy.worker_pool", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--port",
        type=int,
        default=50000,
        help="that task managers ask on; 0 takes a free one, which the log names (default: %(default)s)",
    )
    add("--host", default="127.0.0.1", help="address to listen on; they ask from the same machine (default: %(default)s)")
    args: argparse.Namespace = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; 0 then."""
    args = parse_args(argv)
    setup_logging()
    serve(args.host, args.port)
    return 0


if __name__ == "__main__":
    run_main(main)
