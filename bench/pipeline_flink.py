"""The training job on Flink, fed by Kafka, for `bench.pipeline --runner flink`; and the textbook's join beside it."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from bench.processes import Child, run
from bench.textbook_join import JOIN
from deploy.flink_cluster import FlinkCluster
from deploy.flink_config import FlinkOptions
from deploy.kafka_broker import KafkaBroker, KafkaOptions
from deploy.ports import Ports
from pipelines import flink
from schemas.process import UserError

_T = TypeVar("_T")

_LOOK_S = 1.0
_WINDOW_S = 30.0  # the slowest such stretch of a run is reported, too
_START_S = 180.0
_NEWS = 4
_PREFIX = "freshet_trainer_"


class Look(NamedTuple):
    """What the trainer's endpoint told at a moment: seconds by `time.monotonic`, and its counters and gauges by name."""

    at: float
    values: dict[str, float]


class Measured(NamedTuple):
    """A job that ran for a while.

    Attributes:
        looks: from the first example on.
        first_example_s: seconds from its submission to the first example learned, to a second.
        checkpoints: Flink's summary of them.
    """

    looks: list[Look]
    first_example_s: float
    checkpoints: dict[str, Any]

    def per_s(self, name: str) -> float:
        """A counter's growth a second, from the first look to the last."""
        first, last = self.looks[0], self.looks[-1]
        return (last.values[name] - first.values[name]) / (last.at - first.at)

    def slowest(self, name: str) -> float:
        """The least growth a second in any stretch of 30 s; of a shorter run, in all of it."""
        rates = [
            (b.values[name] - a.values[name]) / (b.at - a.at)
            for i, a in enumerate(self.looks)
            for b in itertools.islice((b for b in self.looks[i:] if b.at - a.at >= _WINDOW_S), 1)
        ]
        return min(rates, default=self.per_s(name))


class Stage:
    """A broker with both topics, a cluster, and the jobs on it; nothing is left of them at its end.

    Args:
        stack: that ends them.
        work: a folder.
        slots: of the task manager.
    """

    def __init__(self, stack: ExitStack, work: Path, slots: int) -> None:
        self._work = work
        self.broker = stack.enter_context(KafkaBroker(work / "kafka", KafkaOptions(port=0, controller_port=0)))
        options = FlinkOptions(rest_port=0, rpc_port=0, job_port=0, artifact_port=0, expansion_port=0, pool_port=0, slots=slots)
        self.cluster = stack.enter_context(FlinkCluster(work / "flink", options))

    def write(self, requests: int, days: float, seed: int) -> None:
        """A simulated world's requests and actions to both topics."""
        world = ("--dataset", "simulator", "--requests", requests, "--days", days, "--seed", seed)
        run("pipelines.replay", "--out", self._work / "logs", "--kafka", self.broker.bootstrap, *world)

    def _options(self, name: str, parallelism: int) -> list[object]:
        return [
            *("--kafka", self.broker.bootstrap, "--config", self._work / "logs" / "feature_config.toml"),
            *("--state_dir", self._work / name, "--follow", f"--job_name={flink.JOB_PREFIX}{name}"),
            *(f"--parallelism={parallelism}", *self.cluster.pipeline_options),
        ]

    def learn(self, name: str, step: int, parallelism: int, seconds: float) -> Measured:
        """Runs `pipelines.train` for so many seconds from its first example on, or until it has learned all there is."""
        port = Ports("127.0.0.1").take(0, "--metrics_port")
        own = ("--step", step, "--metrics_port", port)
        submitted = time.monotonic()
        with Child("pipelines.train", *self._options(name, parallelism), *own) as child:
            looks = list(_looks(port, child, seconds))
            return Measured(looks, looks[0].at - submitted, self._ended(name))

    def join_by_the_textbook(self, seconds: float) -> float:
        """Events a second that the textbook's join takes, over so many seconds from its first on."""
        with Child("bench.textbook_join", *self._options("textbook", 1)) as child:
            job = _until(lambda: self._job("textbook"), child)
            _until(lambda: self._joined(job), child)
            start, told = time.monotonic(), [(0.0, 0)]
            # Flink tells news every ten seconds: what counts is from one piece of news to another.
            while time.monotonic() < start + seconds or len(told) < _NEWS:
                if (joined := self._joined(job)) != told[-1][1]:
                    told.append((time.monotonic(), joined))
                child.check()
                if time.monotonic() > start + seconds + _START_S:
                    raise UserError("the textbook's join has stood still: give more --requests")
                time.sleep(_LOOK_S)  # between two looks
            self._ended("textbook")
            (first_at, first), (last_at, last) = told[1], told[-1]
            return (last - first) / (last_at - first_at)

    def _job(self, name: str) -> str | None:
        return next((job.id for job in flink.alive(self.cluster.rest) if job.name == flink.JOB_PREFIX + name), None)

    def _joined(self, job: str) -> int:
        """Elements that the step which joins has read."""
        vertices = self.cluster.ask(f"/jobs/{job}")["vertices"]
        return sum(int(each["metrics"]["read-records"]) for each in vertices if JOIN in each["name"])

    def _ended(self, name: str) -> dict[str, Any]:
        """Cancels a job; what Flink tells of its checkpoints."""
        checkpoints = self.cluster.ask(f"/jobs/{self._job(name)}/checkpoints")
        flink.cancel(self.cluster.rest, flink.JOB_PREFIX + name)
        return checkpoints


def _looks(port: int, child: Child, seconds: float) -> Iterator[Look]:
    """The trainer's metrics second by second, from the first example on, for so long or until no more is learned."""
    first = _until(lambda: look if (look := _look(port)) and look.values.get("examples_total") else None, child)
    yield first
    before = first
    while before.at < first.at + seconds:
        time.sleep(_LOOK_S)  # between two looks
        child.check()
        look = _look(port)
        if look is None:
            raise UserError("the trainer's worker has ended: see the task manager's log")
        if look.values["examples_total"] == before.values["examples_total"] and look.at - before.at > 5 * _LOOK_S:
            return  # all there is has been learned
        if look.values["examples_total"] > before.values["examples_total"]:
            before = look
            yield look


def _look(port: int) -> Look | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except OSError:
        return None
    samples = (sample for family in families for sample in family.samples if sample.name.startswith(_PREFIX))
    return Look(time.monotonic(), {sample.name.removeprefix(_PREFIX): sample.value for sample in samples})


def _until(find: Callable[[], _T | None], child: Child) -> _T:
    """What `find` finds, while the child lives and the time that a start may take lasts."""
    deadline = time.monotonic() + _START_S
    while not (found := find()):
        child.check()
        if time.monotonic() > deadline:
            raise UserError(f"{child.module}: nothing was learned or joined within {_START_S:.0f} s: see {child.log}")
        time.sleep(0.1)
    return found


def measure(args: argparse.Namespace) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Rows of the table, and fields of the JSON line."""
    console = Console(stderr=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freshet-pipeline-")))
        with console.status("starting Kafka and Flink"):
            stage = Stage(stack, work, slots=max(args.parallelism))
        with console.status("writing the topics"):
            stage.write(args.requests, args.days, args.seed)
        found = {}
        for number, parallelism in enumerate(args.parallelism):
            with console.status(f"learning, parallelism {parallelism}"):
                seconds = args.seconds if number == 0 else args.seconds / 6
                found[parallelism] = stage.learn(f"learn-{parallelism}", args.step, parallelism, seconds)
        with console.status("joining by the textbook"):
            textbook = stage.join_by_the_textbook(args.seconds / 3)
    main = found[args.parallelism[0]]
    duration, size = (main.checkpoints["summary"][name] for name in ("end_to_end_duration", "state_size"))
    events = main.per_s("events_total")
    fields: dict[str, object] = {
        "examples_per_s": round(main.per_s("examples_total")),
        "examples_per_s_slowest_30_s": round(main.slowest("examples_total")),
        "seconds": round(main.looks[-1].at - main.looks[0].at, 1),
        "events_per_s": round(events),
        "textbook_events_per_s": round(textbook),
        "times_the_textbook": round(events / textbook, 2),
        "checkpoint_p99_ms": duration["p99"],
        "state_bytes": size["max"],
        "first_example_s": round(main.first_example_s, 1),
        "restores": {str(p): int(each.looks[-1].values.get("restores_total", 0)) for p, each in found.items()},
        "consumer_connects": {
            str(p): int(each.looks[-1].values.get("consumer_connects_total", 0)) for p, each in found.items()
        },
    }
    rows = [
        {
            "parallelism": parallelism,
            "examples/s": each.per_s("examples_total"),
            "slowest 30 s": each.slowest("examples_total"),
            "seconds": each.looks[-1].at - each.looks[0].at,
            "first example s": each.first_example_s,
            "restores": int(each.looks[-1].values.get("restores_total", 0)),
            "checkpoint p99 ms": each.checkpoints["summary"]["end_to_end_duration"]["p99"],
        }
        for parallelism, each in found.items()
    ]
    return rows, fields
