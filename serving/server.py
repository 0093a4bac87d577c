"""A model server for machines without TF Serving's container: its gRPC services, on the same SavedModels.

    python -m serving.server --model_dir MODELS --port 8500

Serves the newest integer-named version in MODELS, takes new ones as they appear, and keeps the old one
while a new one is broken. Any TF Serving client works: PredictionService (Predict, GetModelMetadata) and
ModelService (GetModelStatus). Stops on SIGTERM or Ctrl-C after the running requests.
"""

import argparse
import gc
import signal
import socket
import threading
from pathlib import Path

from schemas import flags
from schemas.process import CommandParser, UserError, run_main, setup_logging
from schemas.quiet import quiet_imports
from serving.folders import require_version_folder


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as far as that goes without loading anything."""
    parser = CommandParser(
        prog="python -m serving.server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model_dir", type=Path, required=True, metavar="DIR", help="folder of integer-named version folders")
    add("--port", type=flags.port, default=8500, help="gRPC port; 0 takes a free one (default: %(default)s)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: %(default)s)")
    add("--model_name", default="freshet", help="name clients ask for (default: %(default)s)")
    add(
        "--poll_s",
        type=flags.positive,
        default=0.5,
        help="seconds between looks at the model folder (default: %(default)s)",
    )
    add("--wait", action="store_true", help="start without a model, and serve the first one that appears")
    add("--port_file", type=Path, metavar="FILE", help="write the bound port here once requests are answered")
    add(
        "--metrics_port",
        type=flags.port,
        help="publish Prometheus metrics on this loopback port; 0 takes a free one, which the log names",
    )
    add("--threads", type=flags.count, default=8, help="requests answered at once (default: %(default)s)")
    add(
        "--grace_s",
        type=flags.positive,
        default=5.0,
        help="seconds running requests get at the end (default: %(default)s)",
    )
    add(
        "--enable_serialization_as_tensor_content",
        action="store_true",
        help="answer tensors as packed bytes: faster, and TF Serving's flag of the same name",
    )
    add("--log_level", default="info", help="debug, info, warning or error (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; 0 then. Raises UserError for what the user can put right."""
    args = parse_args(argv)
    setup_logging(args.log_level)
    if not args.wait:
        require_version_folder(args.model_dir)
    _check_port_is_free(args.host, args.port)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    # TensorFlow takes seconds to import: everything above answers at once.
    with quiet_imports():
        from serving.host import ModelServer, ServerOptions
    # Sweeps of the collector stop every thread; after this they skip the libraries' own objects.
    gc.collect()
    gc.freeze()

    options = ServerOptions(
        model_dir=args.model_dir,
        host=args.host,
        port=args.port,
        model_name=args.model_name,
        poll_s=args.poll_s,
        threads=args.threads,
        wait=args.wait,
        metrics_port=args.metrics_port,
        tensor_content=args.enable_serialization_as_tensor_content,
        grace_s=args.grace_s,
    )
    with ModelServer(options) as server:
        if args.port_file is not None:
            _write_port(args.port_file, server.port)
        print(f"serving {args.model_name} on {flags.address(args.host, server.port)}", flush=True)
        stop.wait()
    return 0


def _check_port_is_free(host: str, port: int) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot listen on {flags.address(host, port)}: {error.strerror}; choose another --port (0: any free) or --host"
        ) from error


def _write_port(path: Path, port: int) -> None:
    try:
        draft = path.with_name(f".{path.name}.tmp")
        draft.write_text(f"{port}\n")
        draft.replace(path)
    except OSError as error:
        raise UserError(f"cannot write --port_file {path}: {error.strerror}") from error


if __name__ == "__main__":
    run_main(main)
