"""Logs in, model out: examples a second of the whole training job, and what it takes.

    python -m bench.pipeline [--runner flink]

A simulated stream is written as Avro logs; then `pipelines.train` reads, merges, joins, scores and learns it, writes its
snapshots and exports the model, in one process of its own, as anyone would run it. The rate counts from the first record
to the last step; the seconds of the whole process, start of Python and compilation included, stand beside it. The peak
of its memory is the kernel's mark for that process's program alone, looked at every 50 ms until it ends. What is resident is
looked at as well, quarter by quarter of the run: once the ids have been seen it must not grow with the length of the stream,
which `rss_growth_mb`, from the third quarter to the last, tells.

With `--runner flink` the stream is in Kafka, and broker, Flink cluster and worker run beside each other on this machine. What
the job has learned is read from its metrics, second by second, for `--seconds`; then for a sixth of that at each further
`--parallelism`, and last, for a third of it, on the same cluster with the same options, the join of a Beam textbook
(`bench.textbook_join`).
"""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from bench.output import finish
from bench.processes import Child, Usage, run
from schemas import flags
from schemas.process import CommandParser, UserError, run_main, signals_interrupt

_QUARTERS = 4
_MB = 1 << 20


def train(work: Path, step: int) -> tuple[Usage, list[float]]:
    """Run the training job over `work`/logs: what it took, and the most memory in each quarter of it, in MB.

    Raises:
        UserError: it failed, or was over before it could be watched.
    """
    names = (("logs", "logs"), ("state_dir", "state"), ("model_dir", "models"), ("metrics_json", "metrics.json"))
    folders = (part for option, name in names for part in (f"--{option}", work / name))
    with Child("pipelines.train", "--step", step, *folders) as child:
        usage = child.finish()
    if len(usage.resident) < _QUARTERS:
        raise UserError(f"memory was seen {len(usage.resident)} times only: give more --requests, on Linux")
    return usage, [int(part.max()) / _MB for part in np.array_split(usage.resident, _QUARTERS)]


def main(argv: list[str] | None = None) -> int:
    """Print the table and the JSON line; 0 then."""
    parser = CommandParser(
        prog="python -m bench.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=flags.count, help="of the stream, five videos each (default: 400,000; on Flink 800,000)")
    add("--days", type=flags.positive, default=1.0, help="simulated days that they take (default: %(default)s)")
    add("--step", type=flags.count, default=4096, help="examples a step of the model (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the simulated world (default: %(default)s)")
    add("--runner", choices=("local", "flink"), default="local", help="where it runs (default: %(default)s)")
    add("--seconds", type=flags.positive, default=180.0, help="flink: that are measured (default: %(default)s)")
    add("--parallelism", type=flags.count, nargs="+", default=[1, 2, 4], help="flink: of the job (default: 1 2 4)")
    args = parser.parse_args(argv)
    args.requests = args.requests or {"local": 400_000, "flink": 800_000}[args.runner]
    if args.runner == "flink":
        from bench.pipeline_flink import measure  # it brings Beam: not for --help

        with signals_interrupt():
            finish(*measure(args))
        return 0

    with contextlib.ExitStack() as stack:
        stack.enter_context(signals_interrupt())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freshet-pipeline-")))
        console = Console(stderr=True)
        with console.status("writing the logs"):
            world = ("--dataset", "simulator", "--requests", args.requests, "--days", args.days, "--seed", args.seed)
            run("pipelines.replay", "--out", work / "logs", *world)
        logs_bytes = sum(path.stat().st_size for path in (work / "logs").rglob("*.avro"))
        with console.status("training"):
            usage, quarters = train(work, args.step)
        figures = json.loads((work / "metrics.json").read_text())
    peak, growth = usage.peak_rss / _MB, quarters[-1] - quarters[-2]
    fields = {
        "examples_per_s": round(figures["examples_per_s"]),
        "peak_rss_mb": round(peak),
        "rss_growth_mb": round(growth),
        "rss_mb_by_quarter": [round(quarter) for quarter in quarters],
        "examples": figures["examples"],
        "seconds_of_process": round(usage.seconds, 1),
        "log_mb": round(logs_bytes / _MB, 1),
        "table_rows": figures["table_rows"],
        "auc": figures["auc"],
        "step": args.step,
    }
    row = {
        "examples": figures["examples"],
        "examples/s": figures["examples_per_s"],
        "process s": usage.seconds,
        "peak MB": peak,
        "MB by quarter": "  ".join(f"{quarter:,.0f}" for quarter in quarters),
        "growth MB": growth,
        "AUC": figures["auc"],
    }
    finish([row], fields)
    return 0


if __name__ == "__main__":
    run_main(main)
