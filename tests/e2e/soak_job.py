"""The training job on Flink, fed by Kafka, for half an hour: does the memory of any process grow?

    python -m tests.e2e.soak_job --minutes 30

The job learns from topics that are longer than it has time for, into a table held to a number of bytes, so that after a while
everything should be as large as it gets. From then on, over the second half of the time,

- the resident memory of the Python worker may not be more than it was at most in the first half, but for an allocator's leeway;
- what lives on the task manager's heap after a collection may not grow either. Byte arrays, in which batches wait for a
  checkpoint, come and go: of them the least of each half counts, of all other objects the most. Classes that grew are named;
- nothing is restored.

Exit status 1 says that one of these does not hold. The JSON line at the end has the figures.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.progress import Progress

from deploy.flink_cluster import FlinkCluster
from deploy.flink_config import FlinkOptions
from deploy.kafka_broker import KafkaBroker, KafkaOptions
from pipelines import replay
from schemas.process import CommandParser, UserError, run_main, signals_interrupt
from tests.e2e.flink_jobs import Job, workers_of

ANY_FLINK = FlinkOptions(rest_port=0, rpc_port=0, job_port=0, artifact_port=0, expansion_port=0, pool_port=0)
# Small steps, so that half an hour needs no more than a few gigabytes of topics; a budget that is soon reached.
OPTIONS = ("--step", "4", "--batch_rows", "256", "--table_bytes", "32000000", "--max_cache_memory_usage_mb=64")
_MOST_GROWTH = 1.05  # an allocator's leeway
_LOOK_S = 5.0
_HEAPS = 24  # looks at the heap: each stops the task manager for a full collection
_SHOWN = 8  # classes
_BUFFERS = "[B"  # byte arrays, by the name that Java gives them


class Histogram(NamedTuple):
    """What lives on a heap: bytes by class, and in all."""

    classes: dict[str, int]
    total: int

    def bytes_of(self, name: str) -> int:
        """Bytes of a class's objects."""
        return self.classes.get(name, 0)


def histogram(pid: int) -> Histogram:
    """Of a JVM, after a full collection."""
    done = subprocess.run(["jcmd", str(pid), "GC.class_histogram"], capture_output=True, text=True, check=True, timeout=120)
    classes: dict[str, int] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) >= 4 and words[0].rstrip(":").isdigit():
            classes[words[3]] = classes.get(words[3], 0) + int(words[2])
    return Histogram(classes, sum(classes.values()))


@dataclass
class Life:
    """What was seen of a job, look by look.

    Attributes:
        resident: memory of the Python worker, in bytes.
        heaps: of the task manager.
        examples: learned at the end.
        restores: of the shard's state.
    """

    resident: list[int] = field(default_factory=list)
    heaps: list[Histogram] = field(default_factory=list)
    examples: int = 0
    restores: int = 0

    def growth(self) -> dict[str, float]:
        """How large each was in the second half of a life, to what it was in the first; of two looks or more."""
        buffers = [heap.bytes_of(_BUFFERS) for heap in self.heaps]
        objects = [heap.total - heap.bytes_of(_BUFFERS) for heap in self.heaps]
        return {
            "worker_rss": _growth(self.resident, max),
            "heap_buffers": _growth(buffers, min),
            "heap_objects": _growth(objects, max),
        }

    def check(self) -> None:
        """Raises AssertionError if anything has grown, or was restored."""
        for name, growth in self.growth().items():
            if growth > _MOST_GROWTH:
                first = self.heaps[(len(self.heaps) - 1) // 2]
                more = ", ".join(f"{kind} by {size:,} bytes" for kind, size in grown(first, self.heaps[-1]))
                raise AssertionError(f"{name} has grown to {growth:.3f} of what it was; on the heap grew {more}")
        if self.restores:
            raise AssertionError(f"the state was restored {self.restores} times, and nothing had died")


def _growth(sizes: Sequence[int], of: Callable[[Sequence[int]], int]) -> float:
    half = len(sizes) // 2
    return of(sizes[half:]) / of(sizes[:half])


def grown(before: Histogram, after: Histogram) -> list[tuple[str, int]]:
    """The classes that grew most: name, and bytes more."""
    more = [(name, size - before.bytes_of(name)) for name, size in after.classes.items()]
    return sorted((each for each in more if each[1] > 0), key=lambda each: -each[1])[:_SHOWN]


def soak(folder: Path, minutes: float, requests: int, seed: int, told: Callable[[float], None]) -> Life:
    """One run.

    Raises:
        UserError: the job has ended, or the topics were too short.
    """
    with (
        KafkaBroker(folder / "kafka", KafkaOptions(port=0, controller_port=0)) as broker,
        FlinkCluster(folder / "flink", ANY_FLINK) as cluster,
    ):
        world = ["--dataset", "simulator", "--days", "30", "--seed", str(seed), "--requests", str(requests)]
        if replay.main([*world, "--out", str(folder / "logs"), "--kafka", broker.bootstrap]) != 0:
            raise UserError("the replay failed")
        options = ["--kafka", broker.bootstrap, "--config", str(folder / "logs" / "feature_config.toml"), "--follow", *OPTIONS]
        job = Job(cluster, folder, *options)
        try:
            job.wait_for(lambda: job.figures()["examples"] > 0)
            (worker,) = (psutil.Process(pid) for pid in workers_of(cluster))
            (manager,) = cluster.task_managers
            life, started, learned = Life(), time.monotonic(), 0
            while (passed := time.monotonic() - started) < 60 * minutes:
                job.wait_for(lambda: True)  # it lives
                life.examples = job.figures()["examples"]
                life.resident.append(worker.memory_info().rss)
                if passed >= 60 * minutes * len(life.heaps) / _HEAPS:
                    if life.heaps and life.examples == learned:
                        raise UserError("nothing is learned any more: give more --requests")
                    learned = life.examples
                    life.heaps.append(histogram(manager.pid))
                told(passed)
                time.sleep(_LOOK_S)  # between two looks
            life.restores = len(re.findall(r"shard\.py:\d+ restoring", manager.log.read_text(errors="replace")))
        finally:
            job.process.terminate()  # the cluster goes with its job
            job.process.wait()
    return life


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it in a folder that stays if it fails."""
    parser = CommandParser(
        prog="python -m tests.e2e.soak_job", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", metavar="N", type=float, default=30, help="(default: %(default)s)")
    parser.add_argument(
        "--requests", metavar="N", type=int, default=400_000, help="of five videos each in the topics (default: %(default)s)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the world (default: %(default)s)")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="freshet-soak-"))
    print(f"logs and states: {folder}", flush=True)
    with signals_interrupt(), Progress() as progress:
        bar = progress.add_task("learning", total=60 * args.minutes)
        life = soak(folder, args.minutes, args.requests, args.seed, lambda done: progress.update(bar, completed=done))
    growth = {f"{name}_growth": round(value, 3) for name, value in life.growth().items()}
    most = {"worker_rss_mib": max(life.resident) >> 20, "heap_mib": max(heap.total for heap in life.heaps) >> 20}
    print(json.dumps({"minutes": args.minutes, "examples": life.examples, "restores": life.restores, **growth, **most}))
    life.check()
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    run_main(main)
