"""A Flink session cluster on this machine, with what Beam needs beside it: a job server and a pool of Python workers.

with FlinkCluster(folder, FlinkOptions(rest_port=0, task_managers=2)) as cluster:
    [*cluster.pipeline_options, "--streaming"]
"""

import json
import shutil
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from deploy import install
from deploy.flink_config import FlinkCommands, FlinkOptions, cluster_config, yaml
from deploy.grpc_health import speaks_grpc
from deploy.ports import Ports
from deploy.server import Server, wait_until
from deploy.service import Service

_ASK_S = 2.0
# No proxy stands between two processes of one machine, whatever the environment says.
_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class TaskManager(Server):
    """A task manager; under a new id at each start, so that the job manager cannot take it for its former life.

    Attributes:
        resource_id: by which Flink knows it; empty before the first start.
    """

    resource_id: str = ""

    def command_line(self) -> Sequence[str]:
        """With a new id."""
        self.resource_id = f"{self.log.stem}-{uuid.uuid4().hex[:8]}"
        return [*self.command, f"-Dtaskmanager.resource-id={self.resource_id}"]


class FlinkCluster(Service):
    """Job manager, task managers, Beam's job server and worker pool. Without high availability: jobs end with the job manager.

    Attributes:
        options: as given.
        rest: HOST:PORT of web interface and REST; for --flink_master.
        job_endpoint: HOST:PORT of the job server, for --job_endpoint.
        artifact_endpoint: HOST:PORT for --artifact_endpoint.
        worker_pool: HOST:PORT for --environment_config, with --environment_type EXTERNAL.
    """

    name: ClassVar[str] = "flink"

    def __init__(
        self,
        folder: Path,
        options: FlinkOptions | None = None,
        host: str = "127.0.0.1",
        timeout_s: float = 120.0,
    ) -> None:
        super().__init__(folder, host, timeout_s)
        self.options = options or FlinkOptions()
        self.rest = self.job_endpoint = self.artifact_endpoint = self.worker_pool = ""

    @property
    def endpoints(self) -> dict[str, str]:
        """`rest`, `job_endpoint`, `artifact_endpoint` and `worker_pool`."""
        names = ("rest", "job_endpoint", "artifact_endpoint", "worker_pool")
        return {name: getattr(self, name) for name in names}

    @property
    def pipeline_options(self) -> list[str]:
        """Options by which a Beam pipeline is submitted to it."""
        return [
            *("--runner=PortableRunner", f"--flink_master={self.rest}", f"--job_endpoint={self.job_endpoint}"),
            *(f"--artifact_endpoint={self.artifact_endpoint}",),
            *("--environment_type=EXTERNAL", f"--environment_config={self.worker_pool}"),
        ]

    @property
    def job_manager(self) -> Server:
        """Its process."""
        return self.servers[0]

    @property
    def task_managers(self) -> list["TaskManager"]:
        """Their processes."""
        return [server for server in self.servers if isinstance(server, TaskManager)]

    @property
    def job_server(self) -> Server:
        """Beam's job server."""
        return self.servers[-2]

    @property
    def pool(self) -> Server:
        """Beam's worker pool; the Python workers are among its members."""
        return self.servers[-1]

    def prepare(self, ports: Ports) -> Sequence[Server]:
        """Settings, and a command for each process."""
        options, home, logs = self.options, self.home, self.folder / "logs"
        rest, rpc, job, artifact, expansion, pool = (
            ports.take(getattr(options, name), f"--{name}")
            for name in ("rest_port", "rpc_port", "job_port", "artifact_port", "expansion_port", "pool_port")
        )
        self.rest, self.job_endpoint = f"{self.host}:{rest}", f"{self.host}:{job}"
        self.artifact_endpoint, self.worker_pool = f"{self.host}:{artifact}", f"{self.host}:{pool}"
        java, flink, jar = install.java(), install.flink_home(), install.job_server_jar()

        shutil.rmtree(home / "tmp", ignore_errors=True)  # what was killed could not clear away
        for name in ("conf", "tmp", "artifacts"):
            (home / name).mkdir(parents=True, exist_ok=True)
        (home / "conf" / "config.yaml").write_text(yaml(cluster_config(options, self.host, rest, rpc, home)))
        commands = FlinkCommands(java, flink, home)
        plugins = {"FLINK_PLUGINS_DIR": str(flink / "plugins"), "FLINK_CONF_DIR": str(home / "conf")}

        job_manager = Server(
            "the job manager", commands.job_manager(logs / "job-manager.log"), logs / "job-manager.log", plugins
        )
        task_managers = [
            TaskManager(f"task manager {number}", commands.task_manager(log), log, plugins)
            for number in range(1, options.task_managers + 1)
            for log in [logs / f"task-manager-{number}.log"]
        ]
        job_server = Server(
            "Beam's job server",
            [
                *(str(java), f"-Xmx{options.job_server_heap_mb}m", f"-Djava.io.tmpdir={home / 'tmp'}"),
                "-XX:TieredStopAtLevel=1",  # it works for seconds at a time: compiling at leisure would be most of it
                *("-Dorg.slf4j.simpleLogger.showDateTime=true", "-jar", str(jar), "--job-host", self.host),
                *("--job-port", str(job), "--artifact-port", str(artifact), "--expansion-port", str(expansion)),
                *("--flink-master", f"http://{self.rest}", "--artifacts-dir", str(home / "artifacts")),
            ],
            logs / "job-server.log",
        )
        worker_pool = Server(
            "Beam's worker pool",
            [sys.executable, "-m", "deploy.worker_pool", "--host", self.host, "--port", str(pool)],
            logs / "worker-pool.log",
            folder=install.ROOT,
        )
        return [job_manager, *task_managers, job_server, worker_pool]

    def wait_ready(self, deadline: float) -> None:
        """Wait until REST tells of all task managers, and job server and worker pool answer."""
        wanted = {each.resource_id for each in self.task_managers}

        def registered() -> bool:
            try:
                return wanted <= {each["id"] for each in self.ask("/taskmanagers")["taskmanagers"]}
            except OSError:  # urllib's errors are of this kind
                return False

        servers = [self.job_manager, *self.task_managers]
        wait_until(registered, servers, deadline, f"tell of {len(wanted)} task managers on {self.rest}")
        for server, address in ((self.job_server, self.job_endpoint), (self.pool, self.worker_pool)):
            wait_until(partial(speaks_grpc, address), [server], deadline, f"answer on {address}")

    def ask(self, path: str) -> dict[str, Any]:
        """Answer of the cluster's REST interface to GET.

        Args:
            path: from the root, as "/jobs".

        Raises:
            OSError: it does not answer, or not with 200.
        """
        with _HTTP.open(f"http://{self.rest}{path}", timeout=_ASK_S) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
