"""Files in, model out: examples a second of the whole training job on the local runner, and what memory it takes.

    python -m bench.pipeline

A simulated stream is written as Avro logs; then `pipelines.train` reads, merges, joins, scores and learns it, writes its
snapshots and exports the model, in one process of its own, as anyone would run it. The rate counts from the first record
to the last step; the seconds of the whole process, start of Python and compilation included, stand beside it. Memory
is sampled while it runs: once the ids have been seen it must not grow with the length of the stream.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from bench.output import finish
from schemas.process import CommandParser, UserError, run_main
from serving import flags

_SAMPLE_S = 0.25
_MB = 1 << 20


def replay(logs: Path, requests: int, days: float, seed: int) -> None:
    """Write the stream's logs.

    Raises:
        UserError: it failed; its own message is on stderr by then.
    """
    command = [sys.executable, "-m", "pipelines.replay", "--dataset", "simulator", "--out", str(logs)]
    command += ["--requests", str(requests), "--days", str(days), "--seed", str(seed)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise UserError("pipelines.replay failed: its reason is above")


def train(work: Path, step: int) -> tuple[float, np.ndarray]:
    """Run the training job over `work`/logs: seconds of the whole process, and its memory in bytes every quarter second.

    Raises:
        UserError: it failed; its own message is on stderr by then.
    """
    command = [sys.executable, "-m", "pipelines.train", "--step", str(step)]
    for option, name in (("logs", "logs"), ("state_dir", "state"), ("model_dir", "models"), ("metrics_json", "metrics.json")):
        command += [f"--{option}", str(work / name)]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    watched = psutil.Process(process.pid)
    samples: list[int] = []
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        while True:
            samples.append(watched.memory_info().rss)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SAMPLE_S)
                break
    if process.wait():
        raise UserError("pipelines.train failed: its reason is above")
    return time.perf_counter() - started, np.array(samples)


def main(argv: list[str] | None = None) -> int:
    """Print the table and the JSON line; 0 then."""
    parser = CommandParser(
        prog="python -m bench.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=flags.count, default=400_000, help="requests of the stream (default: %(default)s)")
    add("--days", type=float, default=1.0, help="simulated days that they take (default: %(default)s)")
    add("--step", type=flags.count, default=4096, help="examples a step of the model (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the simulated world (default: %(default)s)")
    args = parser.parse_args(argv)

    with tempfile.TemporaryDirectory(prefix="freshet-pipeline-") as folder:
        work = Path(folder)
        replay(work / "logs", args.requests, args.days, args.seed)
        logs_bytes = sum(path.stat().st_size for path in (work / "logs").rglob("*.avro"))
        seconds, memory = train(work, args.step)
        figures = json.loads((work / "metrics.json").read_text())
    # The peak of each quarter of the run: the first has imports and compilation, the last two must be level.
    quarters = [int(part.max()) / _MB for part in np.array_split(memory, 4)]
    fields = {
        "examples_per_s": round(figures["examples_per_s"]),
        "peak_rss_mb": round(float(memory.max()) / _MB),
        "rss_mb_by_quarter": [round(peak) for peak in quarters],
        "examples": figures["examples"],
        "seconds_of_process": round(seconds, 1),
        "log_mb": round(logs_bytes / _MB, 1),
        "table_rows": figures["table_rows"],
        "auc": figures["auc"],
        "step": args.step,
    }
    row = {
        "examples": figures["examples"],
        "examples/s": figures["examples_per_s"],
        "process s": seconds,
        "peak MB": float(memory.max()) / _MB,
        "MB by quarter": "  ".join(f"{peak:,.0f}" for peak in quarters),
        "AUC": figures["auc"],
    }
    finish([row], fields)
    return 0


if __name__ == "__main__":
    run_main(main)
