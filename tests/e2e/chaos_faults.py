"""What can happen to the training job and to the servers it runs on, and how it is put right again."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.flink_cluster import FlinkCluster
from deploy.kafka_broker import KafkaBroker
from deploy.model_server import ModelServer
from tests.e2e.flink_jobs import WAIT_S, Job, jobs, workers_of

#: Kinds of faults, by the names of the methods of `Stage`.
KILLS = ("kill_workers", "kill_task_manager", "kill_job_manager", "kill_broker", "kill_model_server")
PAUSES = ("pause_worker", "pause_task_manager", "pause_broker")
FILL_DISK = "fill_disk"
_PAUSE_S = 30.0


class Stage:
    """The servers and the job on them, and what can happen to them.

    Args:
        folder: for the job's log and figures; its state lies in `folder`/disk.
        options: of the job.
    """

    def __init__(
        self, cluster: FlinkCluster, broker: KafkaBroker, serving: ModelServer, folder: Path, options: Sequence[str]
    ) -> None:
        self.cluster, self.broker, self.serving, self.folder, self.options = cluster, broker, serving, folder, options
        self.disk = folder / "disk"
        self.job = self._submitted()

    def happen(self, fault: str) -> None:
        """A fault by its name."""
        getattr(self, fault)()

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
        """The job ends with it, and is submitted again: it goes on from its newest snapshot.

        What comes next happens to the job: a submission that finds no broker says so, and ends.
        """
        self.cluster.job_manager.kill()
        self.cluster.restart(self.cluster.job_manager)
        if self.job.process.wait(WAIT_S) == 0:
            raise AssertionError(f"a job without a job manager ended well: see {self.job.log}")
        self.job = self._submitted()
        self.job.wait_for(lambda: bool(jobs(self.cluster, "RUNNING")))

    def kill_broker(self) -> None:
        (server,) = self.broker.servers
        server.kill()
        self.broker.restart(server)

    def kill_model_server(self) -> None:
        (server,) = self.serving.servers
        server.kill()
        self.serving.restart(server)

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
        """Until a snapshot, or a dead letter, could not be written."""
        (manager,) = self.cluster.task_managers  # its log has the workers' lines
        said = manager.log.stat().st_size
        filler = self.disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
        deadline = time.monotonic() + WAIT_S
        while not _said(manager.log, said, "snapshot failed", "No space left on device; put it right"):
            if time.monotonic() > deadline:
                raise AssertionError(f"nothing failed on a full disk: see {manager.log}")
            time.sleep(0.2)
        filler.unlink()

    def end(self) -> None:
        """The submitter, if it is still there: its job ends with the cluster."""
        if self.job.process.poll() is None:
            self.job.process.kill()
        self.job.process.wait()


def _said(log: Path, since: int, *texts: str) -> bool:
    with log.open(errors="replace") as file:
        file.seek(since)
        said = file.read()
        return any(text in said for text in texts)
