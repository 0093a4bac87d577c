"""The training job on Flink, fed by Kafka, while one thing after the other dies under it: is each message learned once?

    python -m tests.e2e.chaos --faults 20

Topics with an end are learned by a job whose Python worker, task manager, job manager and broker are killed (SIGKILL) or
paused for 30 s, and whose disk is filled, spread evenly over the topics. At the end its table must equal that of an
undisturbed run: keys and counts exactly, values to 1e-5; and no process may be left. Exit status 1 says that it does not.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deploy.flink_cluster import FlinkCluster
from deploy.flink_config import FlinkOptions
from deploy.kafka_broker import KafkaBroker, KafkaOptions
from deploy.server import processes_of
from pipelines import replay
from schemas.process import CommandParser, UserError, run_main, signals_interrupt
from tests.e2e.flink_jobs import WAIT_S, Job, assert_same, learned_locally, manifests, workers_of

ANY_FLINK = FlinkOptions(rest_port=0, rpc_port=0, job_port=0, artifact_port=0, expansion_port=0, pool_port=0)
# So slow that there is time for faults: small batches and small steps.
SLOW = ("--step", "4", "--batch_rows", "128", "--window", "500")
FLINK = ("--max_bundle_size=2", "--snapshot_interval", "3", "--progress_interval", "2")
_PAUSE_S = 30.0
_DISK_MB = 256


class Stage:
    """A cluster, a broker and the job on them, and what can happen to them.

    Args:
        folder: for the job's log and figures; its state lies in `folder`/disk.
        small: whether that is a file system of its own, which can be filled.
    """

    def __init__(
        self, cluster: FlinkCluster, broker: KafkaBroker, folder: Path, small: bool, options: Sequence[str], seed: int
    ) -> None:
        self.cluster, self.broker, self.folder, self.options = cluster, broker, folder, options
        self.disk = folder / "disk"
        self.job = self._submitted()
        self._random = random.Random(seed)
        self.faults: list[Callable[[], None]] = [
            *(self.kill_workers, self.kill_task_manager, self.kill_job_manager, self.kill_broker),
            *(self.pause_worker, self.pause_task_manager, self.pause_broker),
            *([self.fill_disk] if small else []),
        ]

    def order(self, number: int) -> list[Callable[[], None]]:
        """So many faults: each kind comes before any comes again."""
        order: list[Callable[[], None]] = []
        while len(order) < number:
            order += self._random.sample(self.faults, len(self.faults))
        return order[:number]

    def _submitted(self) -> Job:
        return Job(self.cluster, self.folder, *self.options, state=self.disk / "state")

    def kill_workers(self) -> None:
        self.job.wait_for(lambda: bool(workers_of(self.cluster)))
        for pid in workers_of(self.cluster):
            os.kill(pid, signal.SIGKILL)

    def kill_task_manager(self) -> None:
        (manager,) = self.cluster.task_managers
        manager.kill()
        self.cluster.restart(manager)

    def kill_job_manager(self) -> None:
        """The job ends with it, and is submitted again: it goes on from its newest snapshot."""
        self.cluster.job_manager.kill()
        self.cluster.restart(self.cluster.job_manager)
        if self.job.process.wait(WAIT_S) == 0:
            raise AssertionError(f"a job without a job manager ended well: see {self.job.log}")
        self.job = self._submitted()

    def kill_broker(self) -> None:
        (server,) = self.broker.servers
        server.kill()
        self.broker.restart(server)

    def pause_worker(self) -> None:
        self.job.wait_for(lambda: bool(workers_of(self.cluster)))
        self._pause(workers_of(self.cluster)[0])

    def pause_task_manager(self) -> None:
        self._pause(self.cluster.task_managers[0].pid)

    def pause_broker(self) -> None:
        self._pause(self.broker.servers[0].pid)

    def _pause(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(_PAUSE_S)  # the pause itself
        with contextlib.suppress(ProcessLookupError):  # given up by its own, and ended
            os.kill(pid, signal.SIGCONT)

    def fill_disk(self) -> None:
        """Until a snapshot has failed."""
        (manager,) = self.cluster.task_managers  # its log has the workers' lines
        said = manager.log.stat().st_size
        filler = self.disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
        deadline = time.monotonic() + WAIT_S
        while not _said(manager.log, said, "snapshot failed"):
            if time.monotonic() > deadline:
                raise AssertionError(f"no snapshot failed on a full disk: see {manager.log}")
            time.sleep(0.2)
        filler.unlink()


def _said(log: Path, since: int, text: str) -> bool:
    with log.open() as file:
        file.seek(since)
        return text in file.read()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of a few MiB in a folder, where the system lets us have one; whether it does."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "freshet-chaos", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def chaos(folder: Path, faults: int, requests: int, seed: int) -> None:
    """One run.

    Raises:
        AssertionError: something was lost, learned twice, or left running.
    """
    with (
        KafkaBroker(folder / "kafka", KafkaOptions(port=0, controller_port=0)) as broker,
        FlinkCluster(folder / "flink", ANY_FLINK) as cluster,
        small_disk(folder / "disk") as small,
    ):
        world = ["--dataset", "simulator", "--days", "1", "--users", "400", "--seed", str(seed), "--partitions", "2"]
        world += ["--requests", str(requests), "--out", str(folder / "logs"), "--kafka", broker.bootstrap]
        if replay.main(world) != 0:
            raise UserError("the replay failed")
        options = ["--kafka", broker.bootstrap, "--config", str(folder / "logs" / "feature_config.toml"), *SLOW]
        undisturbed = folder / "undisturbed"
        expected = learned_locally(options, undisturbed)
        if not small:
            print("no file system of our own may be mounted here: the disk is not filled", flush=True)
        stage = Stage(cluster, broker, folder, small, [*options, *FLINK], seed)
        stage.job.wait_for(lambda: bool(manifests(stage.job.state)))
        for number, fault in enumerate(stage.order(faults), 1):
            at = expected["examples"] * number // (faults + 1)
            stage.job.wait_for(lambda at=at: stage.job.ended_well or stage.job.figures()["examples"] >= at)
            if stage.job.ended_well:  # while something was paused
                raise UserError(f"the topics ended after {number - 1} of {faults} faults: give --requests more")
            print(f"{number:>3} of {faults}: {fault.__name__} at {stage.job.figures()['examples']:,} examples", flush=True)
            fault()
        if stage.job.process.wait(10 * WAIT_S) != 0:
            raise AssertionError(f"the job failed: see {stage.job.log}")
        assert_same(stage.job.state, stage.job.figures(), (expected, undisturbed))
        tokens = [server.token for server in (*cluster.servers, *broker.servers)]
    left = [process for token in tokens for process in processes_of(token)]
    if left:
        raise AssertionError(f"left running: {left}")
    print(f"{faults} faults: {expected['examples']:,} examples, each learned once; nothing left running", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it in a folder that stays if it fails."""
    parser = CommandParser(
        prog="python -m tests.e2e.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", metavar="N", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--requests", metavar="N", type=int, default=60_000, help="of five videos each (default: %(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the world and the faults (default: %(default)s)")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="freshet-chaos-"))
    print(f"logs and states: {folder}", flush=True)
    with signals_interrupt():
        chaos(folder, args.faults, args.requests, args.seed)
    return 0


if __name__ == "__main__":
    run_main(main)
