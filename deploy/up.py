"""Starts servers on this machine: a Kafka broker, Flink with Beam's job server and worker pool, the model server.

    python -m deploy.up                       # all of them
    python -m deploy.up --only kafka          # one
    python -m deploy.up --free_ports --dir out/others    # beside those that run already

It returns once all of them answer, and they go on: `python -m deploy.down` stops them. Addresses, logs and process ids are in
DIR: kafka.json, flink.json, serving.json, logs/. What runs already is left as it is. If one does not start, what this command
has started is stopped again.

What they need is fetched at the first start, by Maven and pip, into .servers/. With these defaults all of them take 2 GiB of
memory at first and 4.5 GiB at most; a job's Python workers come on top.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from deploy.flink_cluster import FlinkCluster
from deploy.flink_config import FlinkOptions
from deploy.kafka_broker import KafkaBroker, KafkaOptions
from deploy.model_server import ModelServer
from deploy.service import Service
from deploy.state import SERVERS, chosen, read, running
from schemas import flags
from schemas.process import CommandParser, alone, run_main, signals_interrupt

#: Option of a port → its default.
PORTS = {
    "kafka_port": KafkaOptions.port,
    "kafka_controller_port": KafkaOptions.controller_port,
    "rest_port": FlinkOptions.rest_port,
    "rpc_port": FlinkOptions.rpc_port,
    "job_port": FlinkOptions.job_port,
    "artifact_port": FlinkOptions.artifact_port,
    "expansion_port": FlinkOptions.expansion_port,
    "pool_port": FlinkOptions.pool_port,
    "serving_port": 8500,
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ports are numbers."""
    parser = CommandParser(
        prog="python -m deploy.up", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", type=chosen, default=chosen(""), metavar="NAMES", help="some of kafka,flink,serving (default: all)")
    add("--dir", type=Path, default=SERVERS, help="folder for all that they keep (default: %(default)s)")
    add("--host", default="127.0.0.1", help="that they listen on and are reached by (default: %(default)s, this machine alone)")
    add("--timeout_s", type=flags.positive, default=120.0, help="that each may take to answer (default: %(default)s)")
    add("--free_ports", action="store_true", help="any free port wherever none is given")

    def port(option: str, what: str) -> None:
        add(f"--{option}", type=flags.port, help=f"{what}; 0 takes a free one (default: {PORTS[option]})")

    add = parser.add_argument_group("kafka").add_argument
    port("kafka_port", "for clients")
    port("kafka_controller_port", "of the broker's own controller")
    add("--kafka_heap_mb", type=flags.count, default=KafkaOptions.heap_mb, help="Java heap, MiB (default: %(default)s)")
    add(
        "--kafka_setting",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the broker, as in server.properties; may be repeated",
    )

    add = parser.add_argument_group("flink").add_argument
    port("rest_port", "web interface and REST, for --flink_master")
    port("rpc_port", "of the job manager, for its task managers")
    port("job_port", "Beam's job server, for --job_endpoint")
    port("artifact_port", "its artifacts, for --artifact_endpoint")
    port("expansion_port", "its transforms of other languages")
    port("pool_port", "Beam's worker pool, for --environment_config")
    add("--task_managers", type=flags.count, default=FlinkOptions.task_managers, help="processes (default: %(default)s)")
    add("--slots", type=flags.count, default=FlinkOptions.slots, help="of each task manager (default: %(default)s)")
    add(
        "--job_manager_mb", type=flags.count, default=FlinkOptions.job_manager_mb, help="its memory, MiB (default: %(default)s)"
    )
    add(
        "--task_manager_mb",
        type=flags.count,
        default=FlinkOptions.task_manager_mb,
        help="memory of one, MiB, without the Python workers (default: %(default)s)",
    )
    add(
        "--job_server_heap_mb",
        type=flags.count,
        default=FlinkOptions.job_server_heap_mb,
        help="Java heap of Beam's job server, MiB (default: %(default)s)",
    )
    add(
        "--flink_setting",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the cluster, as in config.yaml; may be repeated",
    )

    add = parser.add_argument_group("serving").add_argument
    port("serving_port", "gRPC")
    add(
        "--model_dir",
        type=Path,
        default=Path("out/models"),
        metavar="MODELS",
        help="folder of versions; where there is none yet, the first that appears is served (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    for name, default in PORTS.items():
        if getattr(args, name) is None:
            setattr(args, name, 0 if args.free_ports else default)
    return args


def services(args: argparse.Namespace) -> list[Service]:
    """Those that are asked for, in the order of their start."""
    kafka = KafkaOptions(args.kafka_port, args.kafka_controller_port, args.kafka_heap_mb, dict(args.kafka_setting))
    flink = FlinkOptions(
        **{name: getattr(args, name) for name in vars(FlinkOptions()) if name != "config"}, config=dict(args.flink_setting)
    )
    make: dict[str, Callable[[], Service]] = {
        "kafka": lambda: KafkaBroker(args.dir, kafka, args.host, args.timeout_s),
        "flink": lambda: FlinkCluster(args.dir, flink, args.host, args.timeout_s),
        "serving": lambda: ModelServer(args.dir, args.model_dir, args.serving_port, args.host, args.timeout_s),
    }
    return [make[name]() for name in args.only]


def start(wanted: list[Service], console: Console) -> None:
    """Start what does not run yet, side by side; all or nothing.

    Raises:
        UserError: one does not start, or a part of what runs already has ended.
    """
    started: list[Service] = []
    begun = time.monotonic()
    try:
        for service in wanted:
            state = read(service.folder, service.name)
            if state is not None and len(state.gone()) < len(state.servers):
                _tell(console, service.name, running(service.folder, service.name).endpoints, "runs already")
                continue
            started.append(service)
            service.launch()
        for service in started:
            service.await_ready()
            _tell(console, service.name, service.endpoints, f"after {time.monotonic() - begun:.1f} s")
    except BaseException:
        for service in reversed(started):
            service.stop()
        raise
    for service in started:
        service.release()


def main(argv: list[str] | None = None) -> int:
    """Start them; 0 once they answer."""
    args = parse_args(argv)
    console = Console(highlight=False)
    args.dir.mkdir(parents=True, exist_ok=True)
    at_work = alone(args.dir, "another deploy.up or deploy.down", "give --dir another folder")
    show = console.status(f"starting {', '.join(args.only)}") if console.is_terminal else nullcontext()
    with signals_interrupt(), at_work, show:
        start(services(args), console)
    console.print(f"logs: {args.dir / 'logs'}; python -m deploy.down stops them", soft_wrap=True)
    if "serving" in args.only and not any(path.name.isdigit() for path in args.model_dir.iterdir()):
        console.print(f"no model yet: serving waits for the first version in {args.model_dir}", soft_wrap=True)
    return 0


def _setting(text: str) -> tuple[str, str]:
    """NAME=VALUE, taken apart."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _tell(console: Console, name: str, endpoints: dict[str, str], how: str) -> None:
    places = ", ".join(f"{each} {place}" for each, place in endpoints.items())
    console.print(f"{name:8} {how}: {places}", soft_wrap=True)


if __name__ == "__main__":
    run_main(main)
