"""Turns a data set into the features and actions logs, in time order.

    python -m pipelines.replay --dataset kuairand --path KuaiRand-Pure --out out/logs
    python -m pipelines.train --logs out/logs --state_dir out/state --model_dir out/models

OUT/features and OUT/actions are the logs, OUT/feature_config.toml the feature configuration they were made with.
The simulator also leaves OUT/truth/*.parquet, the true probabilities, and prints the AUC of who knows them.
"""

import argparse
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
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
from pipelines.request_log import RequestLogWriter
from pipelines.truth_log import TruthWriter
from schemas.config import FeatureConfig, load_config
from schemas.process import EXIT_INTERRUPTED, UserError, run_main, setup_logging

log = logging.getLogger(__name__)

_READERS: dict[str, Callable[[Path, int | None], Stream]] = {
    "kuairand": read_kuairand,
    "movielens": read_movielens,
}
_SIMULATOR = "simulator"
_LOG_EVERY_S = 5.0


@dataclass
class Tally:
    """What was written so far."""

    requests: int = 0
    impressions: int = 0
    actions: Counter[str] = field(default_factory=Counter)


class _Report(Protocol):
    def __call__(self, tally: Tally) -> None: ...


def replay(
    stream: Stream,
    writer: RequestLogWriter,
    truth: TruthWriter | None = None,
    report: _Report = lambda tally: None,
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
    writer.append(requests.empty(), pending.pop_all())
    return tally


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    setup_logging()
    stream = _open(arguments)
    config = load_config(arguments.config or _built_in_config(arguments.dataset))
    out: Path = arguments.out
    _make_empty(out)
    config.dump(out / "feature_config.toml")
    started = time.monotonic()
    with _signals_noted() as stopped, ExitStack() as stack:
        writer = stack.enter_context(_writer(out, config, arguments))
        truth = TruthWriter(out / "truth") if arguments.dataset == _SIMULATOR else None
        if truth is not None:
            stack.callback(truth.close)
        report = stack.enter_context(_progress(arguments.dataset, stream.impressions))
        tally = replay(stream, writer, truth, report, stopped)
    _print_summary(arguments.dataset, out, tally, truth, time.monotonic() - started)
    if stopped():
        print(f"stopped by a signal: {out} is whole, but ends early", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
