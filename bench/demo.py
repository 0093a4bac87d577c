"""Freshet in about a minute: a stream is learned from as it comes, and a guest changes what he is shown.

    python -m bench.demo                            # a simulated world of short videos
    python -m bench.demo --path KuaiRand-Pure       # the real log; or a folder of MovieLens

Starts `pipelines.train` and `serving.server` as they are, writes both logs as an app would, shows what online learning is
worth against a frozen model, then lets a guest like twenty videos of one tag and shows his top 10 before and after. Ends
with OUT/report.html; what the processes wrote, their logs among it, stays in OUT/demo.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.display import Bar, Display
from bench.processes import NOTHING, Child, Learning, TrainLog, wait_for_line
from bench.stage import RECORDED, WARM_START, Stage, recorded, simulated
from bench.story import Story
from schemas import flags
from schemas.log_files import LogWriter
from schemas.process import CommandParser, UserError, alone, run_main, signals_interrupt
from schemas.quiet import quiet_imports

if TYPE_CHECKING:
    from bench.app import App

_STEP = 128  # examples a step, as is pipelines.train's default
_WINDOWS = 40  # over the evaluated stream: as many points as a curve wants
_POLL_S = 0.2
_PATIENCE_S = 180.0  # without an example learned
_REST_REQUESTS = 1_000


@dataclass(frozen=True)
class Folder:
    """Where the demo's processes work."""

    root: Path

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    def log_of(self, process: str) -> Path:
        return self.root / f"{process}.log"


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 0 when all of it happened."""
    started = time.monotonic()
    args = _parser().parse_args(argv)
    out: Path = args.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give --out another folder") from error
    display = Display()
    with signals_interrupt(), alone(out, "another demo", "give --out another folder"):
        stage = _stage(args)
        display.opening(stage.wording, round(stage.past_requests * stage.impressions_a_request))
        folder = Folder(out / "demo")
        shutil.rmtree(folder.root, ignore_errors=True)
        folder.logs.mkdir(parents=True)
        story = Demo(stage, folder, display, args.seed).play()
        from bench.report import write_report

        report = out / "report.html"
        write_report(json.loads(folder.metrics.read_text()), story, report)
    display.closing(report, time.monotonic() - started)
    return 0


class Demo:
    """The whole of it, once.

    Args:
        stage: the world, and how much of it is past when the guest comes.
        folder: for the processes; new.
        display: what people see.
        seed: by which the guest's tag is drawn.
    """

    def __init__(self, stage: Stage, folder: Folder, display: Display, seed: int) -> None:
        self._stage, self._folder, self._display, self._seed = stage, folder, display, seed
        self._children: list[Child] = []
        self._train_log = TrainLog(folder.log_of("train"))

    def play(self) -> Story:
        """Start everything, watch it learn, let the guest in, end everything.

        Raises:
            UserError: a process has failed; the message names its log.
        """
        stage, folder = self._stage, self._folder
        stage.config.dump(folder.logs / "feature_config.toml")
        for topic in ("features", "actions"):
            LogWriter(folder.logs, topic, 0).close()  # makes the partition: training starts before the first request
        with ExitStack() as stack:
            train = self._start(stack, "pipelines.train", *self._training())
            server = self._start(
                stack, "serving.server", "--model_dir", folder.root / "models", "--wait", "--poll_s", _POLL_S,
                "--port", 0, "--port_file", folder.root / "port",
            )  # fmt: skip
            with self._display.learning(round(stage.past_requests * stage.impressions_a_request)) as bar:
                bar.learned(NOTHING)
                # TensorFlow takes seconds to import: the children do the same meanwhile.
                with quiet_imports():
                    from bench.app import App
                    from bench.visit import Host
                    from serving.client import RankClient
                app = stack.enter_context(closing(App(stage, folder.logs)))
                app.past(lambda: self._look(bar))
                self._until_learned(app, bar)
            self._display.arms(self._metrics(), app.oracle_auc)
            port = wait_for_line(folder.root / "port", server)
            client = stack.enter_context(RankClient(f"127.0.0.1:{port}", timeout_s=20.0))
            client.wait_until_ready(_PATIENCE_S)
            head = client.heads()[0]
            with self._display.visiting() as bar:
                visit = Host(stage, app, client, self._learning, bar.liked, self._seed).play()
            story = Story(stage.wording, head, app.oracle_auc, visit)
            self._display.visit(story)
            self._rest(app)
            train.stop()
            server.stop()
            story.write(folder.root / "guest.json")
            return story

    def _training(self) -> list[object]:
        stage, folder = self._stage, self._folder
        evaluated = stage.past_requests * stage.impressions_a_request * (1 - WARM_START)
        return [
            *("--logs", folder.logs, "--state_dir", folder.root / "state", "--model_dir", folder.root / "models"),
            *("--metrics_json", folder.metrics, "--arms", "frozen,daily,hourly", "--warm_start_s", stage.warm_start_s),
            *("--window", max(200, round(evaluated / _WINDOWS)), "--step", _STEP),
            # Never idle: the app writes both logs at once. Versions come as fast as is cheap.
            *("--follow", "--idle", 3600, "--snapshot_interval", 2, "--progress_interval", _POLL_S),
        ]

    def _start(self, stack: ExitStack, module: str, *arguments: object) -> Child:
        child = stack.enter_context(Child(module, *arguments, log=self._folder.log_of(module.rpartition(".")[2])))
        self._children.append(child)
        return child

    def _learning(self) -> Learning:
        """How far training has come, every process being well."""
        for child in self._children:
            child.check()
        return self._train_log.newest()

    def _look(self, bar: Bar) -> Learning:
        learning = self._learning()
        bar.learned(learning)
        return learning

    def _until_learned(self, app: "App", bar: Bar) -> None:
        """Until all that can be decided has been learned from, but for a step that is not full."""
        settled = app.settled()
        bar.total(settled)
        self._wait(lambda: self._look(bar).examples > settled - 2 * _STEP, "learned nothing more")
        bar.done()

    def _rest(self, app: "App") -> None:
        """What is left of a recording."""
        if not self._stage.left:
            return
        with self._display.learning(app.impressions) as bar:
            while self._stage.left:
                app.live(_REST_REQUESTS)
            self._until_learned(app, bar)

    def _metrics(self) -> dict[str, Any]:
        self._wait(self._folder.metrics.exists, "wrote no metrics")
        return json.loads(self._folder.metrics.read_text())

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        newest, deadline = -1, time.monotonic() + _PATIENCE_S
        while not condition():
            learning = self._learning()
            if learning.examples > newest:
                newest, deadline = learning.examples, time.monotonic() + _PATIENCE_S
            if time.monotonic() > deadline:
                raise UserError(f"pipelines.train {complaint} within {_PATIENCE_S:.0f} s: see {self._folder.log_of('train')}")
            time.sleep(_POLL_S)  # other processes' files: there is nothing here to wait on


def _stage(args: argparse.Namespace) -> Stage:
    if args.path is not None:
        return recorded(args.path, args.rows, args.dataset)
    if args.dataset is not None:
        raise UserError(f"--path is missing: give the folder that the data set {args.dataset} unpacks to")
    return simulated(args.requests, args.days, args.users, args.seed)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m bench.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--path", type=Path, metavar="FOLDER", help="a data set to learn from (default: a simulated world)")
    add("--dataset", choices=[*RECORDED], help="what FOLDER holds (default: found out by its files)")
    add("--out", type=Path, default=Path("out"), help="folder for the report and all else (default: %(default)s)")
    add("--seed", type=flags.count, default=1, help="of the simulated world, and of the guest's choice (default: %(default)s)")
    add("--rows", type=flags.count, default=250_000, help="impressions taken of a data set (default: %(default)s)")
    group = parser.add_argument_group("simulated world")
    group.add_argument("--requests", type=flags.count, default=30_000, help="before the guest comes (default: %(default)s)")
    group.add_argument("--days", type=flags.positive, default=7.0, help="that they take (default: %(default)s)")
    group.add_argument("--users", type=flags.count, default=1_000, help="people in it (default: %(default)s)")
    return parser


if __name__ == "__main__":
    run_main(main)
