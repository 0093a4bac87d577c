"""Turns a data set into the features and actions logs, in time order.

    python -m pipelines.replay --dataset kuairand --path KuaiRand-Pure --out out/logs
    python -m pipelines.train --logs out/logs --state_dir out/state --model_dir out/models

LOGS/features and LOGS/actions are the logs, LOGS/feature_config.toml says how features became ids. The
simulator also leaves LOGS/truth/*.parquet, the true probabilities, and prints the AUC of one who knows them.
"""

import argparse
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

import schemas.config
from pipelines.datasets import (
    PendingActions,
    SimulatorOptions,
    Stream,
    World,
    read_kuairand,
    read_movielens,
    simulate,
)
from schemas.config import load_config
from schemas.kafka_logs import KafkaTopics
from schemas.kafka_writer import create_topics
from schemas.process import EXIT_INTERRUPTED, CommandParser, UserError, run_main, setup_logging
from schemas.quiet import quiet_imports

with quiet_imports():
    from pipelines.request_log import RequestLogWriter
    from pipelines.truth_log import TruthWriter

log = logging.getLogger(__name__)

_READERS: dict[str, Callable[[Path, int | None], Stream]] = {
    "kuairand": read_kuairand,
    "movielens": read_movielens,
}
SIMULATOR = "simulator"
_SIMULATOR_OPTIONS = tuple(option.name for option in fields(SimulatorOptions))
_LOG_EVERY_S = 5.0
_EXAMPLES = """\
examples:
  python -m pipelines.replay --dataset simulator --out out/logs
  python -m pipelines.replay --dataset simulator --out out/logs --requests 1000000 --days 30 --seed 7
  python -m pipelines.replay --dataset kuairand --path KuaiRand-Pure --out out/logs
  python -m pipelines.replay --dataset movielens --path ml-25m --out out/logs --rows 1000000

LOGS/features and LOGS/actions are the logs, LOGS/feature_config.toml says how features became ids. Then:
  python -m pipelines.train --logs LOGS --state_dir STATE --model_dir MODELS
"""


@dataclass
class Tally:
    """What was written so far."""

    requests: int = 0
    impressions: int = 0
    actions: Counter[str] = field(default_factory=Counter)


Report = Callable[[Tally], None]


def replay(
    stream: Stream,
    writer: RequestLogWriter,
    truth: TruthWriter | None = None,
    report: Report = lambda tally: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Tally:
    """Writes a stream to the logs, each in time order; `stopped()` ends it early, between two batches.

    However it ends, every request that was written has all its actions.
    """
    tally, pending = Tally(), PendingActions()
    for requests, actions, known in stream.events:
        pending.push(actions)
        # Later batches' actions are later than this batch's last request: what is before it is in order.
        writer.append(requests, pending.pop_before(int(requests.time_ms[-1])))
        if truth is not None and known is not None:
            truth.append(known)
        tally.requests += len(requests)
        tally.impressions += requests.impressions
        tally.actions.update(actions.action.tolist())
        report(tally)
        if stopped():
            break
    writer.append_actions(pending.pop_all())
    return tally


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    setup_logging()
    config = load_config(arguments.config or _built_in_config(arguments.dataset))
    _need_empty(arguments.out)
    topics = _topics(arguments)
    stream = _open(arguments)
    if topics is not None:
        create_topics(topics, arguments.partitions)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        config.dump(arguments.out / "feature_config.toml")
    except OSError as error:
        raise UserError(f"{arguments.out} cannot be written ({error.strerror}): give --out another folder") from error
    started = time.monotonic()
    with signals_noted() as stopped, ExitStack() as stack:
        logs = topics or arguments.out
        writer = stack.enter_context(RequestLogWriter(logs, config, arguments.partitions, arguments.log_raw))
        truth = TruthWriter(arguments.out / "truth") if arguments.dataset == SIMULATOR else None
        if truth is not None:
            stack.callback(truth.close)
        report = stack.enter_context(_progress(arguments.dataset, stream.impressions))
        tally = replay(stream, writer, truth, report, stopped)
    _print_summary(arguments, tally, truth, time.monotonic() - started)
    if stopped():
        print(f"stopped by a signal: {arguments.out} is whole, but ends early", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _topics(arguments: argparse.Namespace) -> KafkaTopics | None:
    """Where records go in place of files."""
    if arguments.kafka is None:
        if arguments.kafka_prefix or arguments.kafka_config:
            raise UserError("--kafka_prefix and --kafka_config are of --kafka: leave them out")
        return None
    return KafkaTopics.configured(arguments.kafka, arguments.kafka_prefix, arguments.kafka_config)


def _open(arguments: argparse.Namespace) -> Stream:
    sizes = {name: value for name in _SIMULATOR_OPTIONS if (value := getattr(arguments, name)) is not None}
    if arguments.dataset == SIMULATOR:
        if arguments.path is not None or arguments.rows is not None:
            raise UserError("the simulator reads nothing: leave out --path and --rows, use --requests")
        return simulate(SimulatorOptions(**sizes))
    if sizes:
        raise UserError(f"--{min(sizes)} is an option of the simulator: leave it out, use --rows")
    if arguments.path is None:
        raise UserError(f"--path is missing: give the folder that the data set {arguments.dataset} unpacks to")
    return _READERS[arguments.dataset](arguments.path, arguments.rows)


def _need_empty(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give --out a folder")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: remove it, or give --out another folder")


def _built_in_config(dataset: str) -> Path:
    return Path(schemas.config.__file__).with_name(f"{dataset}.toml")


@contextmanager
def signals_noted() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are noted, and asked about between two batches, so that no record is cut in two."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(dataset: str, impressions: int) -> Iterator[Report]:
    """A progress bar on a terminal, otherwise a line of the log every few seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        due = time.monotonic()

        def log_line(tally: Tally) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _LOG_EVERY_S
                log.info("replaying %s", dataset, extra={"impressions": tally.impressions, "of": impressions})

        yield log_line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} impressions"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"replay {dataset}", total=impressions)
        yield lambda tally: progress.update(task, completed=tally.impressions)


def _print_summary(arguments: argparse.Namespace, tally: Tally, truth: TruthWriter | None, seconds: float) -> None:
    actions = ", ".join(f"{count:,} {action}" for action, count in tally.actions.most_common())
    print(
        f"{arguments.dataset}: {tally.requests:,} requests with {tally.impressions:,} impressions; "
        f"actions: {actions or 'none'}; {seconds:.1f} s "
        f"({tally.impressions / seconds:,.0f} impressions/s) into {arguments.out}"
    )
    if truth is not None:
        print("oracle AUC: " + ", ".join(f"{head} {auc:.4f}" for head, auc in truth.oracle_auc.items()))


def _at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    bound = f"{least} to {most}" if most is not None else f"{least} or more"

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number: {bound}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text} is out of range: {bound}")
        return value

    return number


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number of days") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is out of range: more than 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m pipelines.replay",
        description="Turn a data set into a features log and an actions log, in time order.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--dataset", required=True, choices=[*_READERS, SIMULATOR], help="what to replay")
    option("--path", type=Path, metavar="FOLDER", help="where the data set was unpacked (not for the simulator)")
    option("--out", type=Path, required=True, metavar="LOGS", help="folder for the logs; must be new or empty")
    option("--partitions", type=_at_least(1, 999), default=1, help="partitions of each log (default: 1)")
    option("--rows", type=_at_least(1), help="stop after this many impressions, in time order")
    option("--config", type=Path, metavar="FILE", help="feature configuration (default: schemas/DATASET.toml)")
    option("--kafka", metavar="HOST:PORT,...", help="brokers that get the records; topics are made, and LOGS has the rest")
    option("--kafka_prefix", default="", metavar="TEXT", help="of the topics: TEXTfeatures and TEXTactions (default: none)")
    option("--kafka_config", type=Path, metavar="FILE", help="further settings of librdkafka, a NAME=VALUE a line")
    option("--log_raw", action="store_true", help="also log the raw features by name, for audits")
    group = parser.add_argument_group("simulator")
    default = SimulatorOptions()
    group.add_argument("--users", type=_at_least(1), help=f"users of the world (default: {default.users:,})")
    group.add_argument("--days", type=_days, help=f"simulated days (default: {default.days:g})")
    group.add_argument("--requests", type=_at_least(1), help=f"in total (default: {default.requests:,})")
    group.add_argument(
        "--videos_per_request",
        type=_at_least(1, World.MAX_VIDEOS_PER_REQUEST),
        help=f"videos shown at a request (default: {default.videos_per_request})",
    )
    group.add_argument("--seed", type=_at_least(0), help=f"same seed, same world (default: {default.seed})")
    return parser


if __name__ == "__main__":
    run_main(main)
