"""Servers that start and stop together: what a broker, a cluster and a model server have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from deploy.ports import Ports
from deploy.server import Server, end
from deploy.state import ServerState, ServiceState, forget, read
from schemas.process import UserError


class Service(ABC):
    """Some servers on one host, that listen on ports of their own and keep what they have in one folder.

    A context manager: they answer inside the block, and nothing of them is left after it. `start` and `stop` do the same
    for who cannot use a block. Several may run at once, each in a folder and on ports of its own.

    Args:
        folder: of all services: FOLDER/logs has their logs, FOLDER/NAME what they write, FOLDER/NAME.json their state.
        host: name or address that they listen on and are reached by.
        timeout_s: that they may take to answer.
    """

    name: ClassVar[str]

    def __init__(self, folder: Path, host: str = "127.0.0.1", timeout_s: float = 120.0) -> None:
        self.folder = folder.resolve()
        self.host = host
        self.timeout_s = timeout_s
        self.servers: list[Server] = []
        self._ports = Ports(host)

    @property
    def home(self) -> Path:
        """What its servers write."""
        return self.folder / self.name

    @property
    @abstractmethod
    def endpoints(self) -> dict[str, str]:
        """Name → HOST:PORT; known once it is started."""

    @abstractmethod
    def prepare(self, ports: Ports) -> Sequence[Server]:
        """Take ports, write settings; the servers to be started."""

    @abstractmethod
    def wait_ready(self, deadline: float) -> None:
        """Wait until all servers answer.

        Raises:
            UserError: one has ended, or the deadline, by `time.monotonic`, has passed.
        """

    def launch(self) -> None:
        """Start all servers; they need not answer yet.

        Raises:
            UserError: some run already in this folder, a port is taken, or something they need is missing.
        """
        state = read(self.folder, self.name)
        if state is not None:
            if len(state.gone()) < len(state.servers):
                raise UserError(f"{self.name} runs already in {self.folder}: python -m deploy.down --only {self.name} stops it")
            for left in state.servers:
                end(left.token)  # what a server that was killed had started
        try:
            self.servers = list(self.prepare(self._ports))
            for server in self.servers:
                server.log.unlink(missing_ok=True)
            for server in self.servers:
                server.start()
                self._write(ready=False)
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start all servers and wait until they answer; if one does not, all are ended again.

        Raises:
            UserError: as `launch` and `wait_ready`.
        """
        self.launch()
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until the servers that `launch` has started answer; if one does not, all are ended again."""
        try:
            self.wait_ready(time.monotonic() + self.timeout_s)
        except BaseException:
            self.stop()
            raise
        self._write(ready=True)

    def restart(self, server: Server) -> None:
        """Start one of them again that has ended, with the same ports, and wait until all answer.

        Flink's task managers look for a job manager anew only after `heartbeat.timeout`, 50 s where it is not set.
        """
        server.start()
        self._write(ready=False)
        self.await_ready()

    def stop(self) -> None:
        """End them all, the last one first, and whatever they have started."""
        for server in reversed(self.servers):
            server.stop()
        forget(self.folder, self.name)
        self._ports.close()

    def release(self) -> None:
        """Let the servers live on without this object: the file of their state is what is left to find them by."""
        self._ports.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _write(self, ready: bool) -> None:
        started = [ServerState(each.name, each.pid, each.token, str(each.log)) for each in self.servers if each.pid]
        ServiceState(self.name, ready, self.endpoints, started).write(self.folder)
