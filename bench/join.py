"""What the joiner takes by itself: events a second of one shard on one core, and memory of what waits.

    python -m bench.join

A stream of requests, one video each with 40 packed feature ids, and of the actions that follow on some of them is written as
Avro logs. They are read as the training job reads them: decoded, merged by event time and joined; each head that is decided
leaves with its row's ids as rows of Arrow batches. There is no model. The clock begins with the first byte read and ends when
the last window has closed; the median of the rounds counts. All of it, whatever threads the libraries begin, is on one core.

A row is remembered for the longest window and the lateness after it: the memory reported is that of ring, index and payload
where most rows waited, by the rows that did.

Last, on the same core, the join of a Beam textbook (`bench.textbook_join`, a state cell and a timer for each request, Beam's
local runner) reads shorter logs of the same kind, of two lengths: its rate is that of what the longer one has more, so that
its start does not count.
"""

import argparse
import bisect
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import track

from bench.output import finish
from bench.processes import Child
from schemas import flags
from schemas.config import FeatureConfig, Head, ModelConfig, Side, Slot
from schemas.log_files import LogWriter
from schemas.process import CommandParser, UserError, run_main, signals_interrupt
from schemas.quiet import quiet_imports

with quiet_imports():
    from model.feature_ids import pack_ids
    from pipelines.batches import EventBatch, Final, Kind
    from pipelines.join import Decisions, Join
    from pipelines.join_kernel import TAKEN
    from pipelines.merge import MergedLogs
    from pipelines.rows import RowStore
    from schemas.logs import FileLogs

USER_SLOTS, ITEM_SLOTS = 10, 30
HEADS = (Head("click", "click", 60), Head("long_view", "long_view", 180), Head("like", "like", 300))
#: Share of the requests that each action follows on.
RATES = {"click": 0.3, "long_view": 0.2, "like": 0.05}
START_MS = 1_650_000_000_000
#: Requests a second, by event time.
RATE = 500
_PART = 8192
_BATCH_ROWS = 4096
_CONSOLE = Console(stderr=True)


class Round(NamedTuple):
    """One pass over the logs.

    Attributes:
        events: requests and actions.
        examples: rows that left.
        seconds: it took.
        waiting: rows remembered at most.
        nbytes: of all that holds them, then.
    """

    events: int
    examples: int
    seconds: float
    waiting: int
    nbytes: int


def feature_config() -> FeatureConfig:
    """Forty slots of one id each, and three heads."""

    def slot(number: int) -> Slot:
        side: Side = "user" if number <= USER_SLOTS else "item"
        return Slot(name=f"s{number}", slot=number, source=f"s{number}", side=side, kind="id", type="int")

    slots = tuple(slot(number) for number in range(1, USER_SLOTS + ITEM_SLOTS + 1))
    return FeatureConfig(name="join", slots=slots, heads=HEADS, model=ModelConfig(dim=16, hidden=(256, 128)))


def write_logs(root: Path, config: FeatureConfig, requests: int, seed: int) -> None:
    """Both logs of so many requests, evenly over time; actions come within the first half of their window."""
    root.mkdir()
    config.dump(root / "feature_config.toml")
    with LogWriter(root, "features", 0) as shown, LogWriter(root, "actions", 0) as acted:
        later: list[dict[str, Any]] = []
        for start in track(range(0, requests, _PART), "writing logs", console=_CONSOLE):
            rng = np.random.default_rng([seed, start])
            numbers = range(start, min(start + _PART, requests))
            records = list(_requests(config, numbers, rng))
            shown.append(records)
            later = sorted([*later, *_actions(records, rng)], key=lambda record: record["time_ms"])
            # What follows has later times than the next request.
            done = bisect.bisect(later, _time_ms(numbers.stop), key=lambda record: record["time_ms"])
            acted.append(later[:done])
            later = later[done:]
        acted.append(later)


def _time_ms(number: int) -> int:
    return START_MS + number * 1000 // RATE


def _requests(config: FeatureConfig, numbers: range, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    values = rng.integers(1, 1 << 40, (len(numbers), USER_SLOTS + ITEM_SLOTS))
    ids = np.stack([pack_ids(slot.slot, values[:, at]) for at, slot in enumerate(config.slot_order)], axis=1)
    for number, row in zip(numbers, ids, strict=True):
        yield {
            "request_id": f"request-{number:012d}",
            "user_id": str(row[0]),
            "time_ms": _time_ms(number),
            "fingerprint": config.fingerprint,
            "user_ids": row[:USER_SLOTS].tobytes(),
            "items": [{"item_id": str(row[USER_SLOTS]), "ids": row[USER_SLOTS:].tobytes()}],
            "scores": None,
            "model_version": None,
            "raw": None,
        }


def _actions(requests: list[dict[str, Any]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    windows = {head.action: round(head.window_s * 1000) for head in HEADS}
    for name, rate in RATES.items():
        for at in np.flatnonzero(rng.random(len(requests)) < rate).tolist():
            request = requests[at]
            after = int(rng.integers(1, windows[name] // 2))
            own = {key: request[key] for key in ("request_id", "user_id")}
            item = request["items"][0]["item_id"]
            yield own | {"item_id": item, "action": name, "time_ms": request["time_ms"] + after, "value": None}


def join_logs(root: Path, config: FeatureConfig) -> Round:
    """Read, merge and join the logs; the examples are made and dropped."""
    join, rows = Join(config), RowStore(config.width, arms=0, heads=len(config.heads))
    started = time.perf_counter()
    events = examples = waiting = nbytes = 0
    for batch in _batches(root, config):
        events += len(batch)
        examples += _join_batch(join, rows, batch)
        if join.next - join.first > waiting:
            waiting, nbytes = join.next - join.first, join.nbytes + rows.nbytes(join.next)
        join.release(join.next)
        rows.let_go(join.first, join.next)
    return Round(events, examples, time.perf_counter() - started, waiting, nbytes)


def _batches(root: Path, config: FeatureConfig) -> Iterator[EventBatch]:
    merged = MergedLogs(FileLogs(str(root)).open(follow=False), config, Join(config).actions, {}, batch_rows=_BATCH_ROWS)
    with contextlib.closing(merged):
        while not merged.finished:
            batch = merged.next(stop=False)
            if batch is not None:
                yield batch


def _join_batch(join: Join, rows: RowStore, batch: EventBatch) -> int:
    before = join.next
    kind = batch.column("kind")
    joined = join.apply(
        kind, batch.column("key"), batch.column("action"), batch.column("time_ms"), batch.column("order_ms"), batch.watermark_ms
    )
    rows.resize(join.capacity, join.first, before)
    shown = kind == Kind.FEATURES
    rows.put(before, batch.ids(join.config.width)[(joined.fate == TAKEN)[shown]])
    left = _examples(join, rows, joined.decisions).num_rows
    if batch.final is Final.END:
        left += _examples(join, rows, join.close().decisions).num_rows
    return left


def _examples(join: Join, rows: RowStore, decisions: Decisions) -> pa.RecordBatch:
    heads = len(join.config.heads)
    ids = rows.ids[rows.at(decisions.seq)]
    labels, mask = (decisions.bits(name, heads).ravel() for name in ("label", "mask"))
    return pa.RecordBatch.from_arrays(
        [
            pa.array(join.keys(decisions.seq)),
            pa.array(join.times(decisions.seq)),
            pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), join.config.width),
            *(pa.FixedSizeListArray.from_arrays(pa.array(values), heads) for values in (labels, mask)),
        ],
        names=["key", "time_ms", "ids", "labels", "mask"],
    )


def textbook_rate(work: Path, config: FeatureConfig, requests: int, seed: int) -> float:
    """Events a second of the textbook's join: of what logs of three times as many requests have more."""
    took, events = [], []
    for times in (1, 3):
        logs = work / f"textbook-{times}"
        write_logs(logs, config, times * requests, seed)
        events.append(sum(map(len, _batches(logs, config))))
        took.append(Child("bench.textbook_join", "--logs", logs, "--state_dir", work / f"state-{times}").finish().seconds)
    return (events[1] - events[0]) / (took[1] - took[0])


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("bench.join: this system cannot keep a process on one core: measure on Linux")
    cores, threads = os.sched_getaffinity(0), pa.cpu_count()
    os.sched_setaffinity(0, {min(cores)})
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        pa.set_cpu_count(threads)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = CommandParser(
        prog="python -m bench.join", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=flags.count, default=600_000, help="of the stream, a video each (default: %(default)s)")
    add("--rounds", type=flags.count, default=5, help="passes over it (default: %(default)s)")
    add("--textbook_requests", type=flags.count, default=2_000, help="of the textbook's shorter logs (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the stream (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, and print a table and a line of JSON."""
    args = parse(argv)
    config = feature_config()
    with signals_interrupt(), _one_core(), tempfile.TemporaryDirectory(prefix="freshet-join-") as folder:
        work = Path(folder)
        for name, requests in (("warm", 2_000), ("logs", args.requests)):
            write_logs(work / name, config, requests, args.seed)
        join_logs(work / "warm", config)  # compiles what is not in the cache
        rounds = [join_logs(work / "logs", config) for _ in track(range(args.rounds), "joining", console=_CONSOLE)]
        textbook = textbook_rate(work, config, args.textbook_requests, args.seed)
    per_s = statistics.median(each.events / each.seconds for each in rounds)
    row_bytes = rounds[0].nbytes / rounds[0].waiting
    payload = 8 * config.width
    finish(
        [
            {
                "events": rounds[0].events,
                "examples": rounds[0].examples,
                "events/s": per_s,
                "textbook events/s": textbook,
                "rows remembered": rounds[0].waiting,
                "bytes a row": row_bytes,
                "of the payload": row_bytes / payload,
            }
        ],
        {
            "events_per_s_memory": round(per_s),
            "events": rounds[0].events,
            "examples": rounds[0].examples,
            "bytes_per_waiting_row": round(row_bytes, 1),
            "payload_bytes": payload,
            "textbook_events_per_s": round(textbook),
            "times_the_textbook": round(per_s / textbook, 1),
        },
    )
    return 0


if __name__ == "__main__":
    run_main(main)
