"""Stops the servers that `python -m deploy.up` started: Kafka, Flink with all that belongs to it, the model server.

    python -m deploy.down                 # all of them
    python -m deploy.down --only flink    # one

Each is asked by SIGTERM, and killed if it has not ended after --grace_s. What they keep stays in DIR: Kafka's log, checkpoints,
savepoints. Where nothing runs there is nothing to do.
"""

import argparse
from pathlib import Path

from deploy.server import STOP_S, end
from deploy.state import SERVERS, ServiceState, chosen, forget, read
from schemas import flags
from schemas.process import CommandParser, alone, run_main


def main(argv: list[str] | None = None) -> int:
    """Stop them; 0 once none of their processes is left."""
    parser = CommandParser(
        prog="python -m deploy.down", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", type=chosen, default=chosen(""), metavar="NAMES", help="some of kafka,flink,serving (default: all)")
    add("--dir", type=Path, default=SERVERS, help="folder of the servers (default: %(default)s)")
    add("--grace_s", type=flags.positive, default=STOP_S, help="that each may take to end (default: %(default)s)")
    args = parser.parse_args(argv)
    if not args.dir.is_dir():
        print(f"nothing runs in {args.dir}")
        return 0
    with alone(args.dir, "another deploy.up or deploy.down", "end that"):
        for name in reversed(args.only):
            state = read(args.dir, name)
            print(f"{name:8} {'does not run' if state is None else stop(args.dir, state, args.grace_s)}", flush=True)
    return 0


def stop(folder: Path, state: ServiceState, grace_s: float) -> str:
    """End the servers of a service, the last one first, and whatever they have started; what was found, in words."""
    gone = state.gone()
    for server in reversed(state.servers):
        end(server.token, grace_s)
    forget(folder, state.service)
    if not gone:
        return "stopped"
    if len(gone) == len(state.servers):
        return "had ended already"
    return f"stopped; had ended already: {', '.join(server.name for server in gone)}"


if __name__ == "__main__":
    run_main(main)
