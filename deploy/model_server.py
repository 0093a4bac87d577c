"""The model server (`serving.server`) as one of the services of this machine."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from deploy import install
from deploy.grpc_health import speaks_grpc
from deploy.ports import Ports
from deploy.server import Server, wait_until
from deploy.service import Service


class ModelServer(Service):
    """Serves the newest version in a folder, which may have none yet: the first that appears is taken then.

    Args:
        folder: of all services.
        model_dir: folder of integer-named versions, made if it is not there.
        port: gRPC; 0: any free one.
        host: name or address that it listens on and is reached by.
        timeout_s: that it may take to answer.

    Attributes:
        address: HOST:PORT, for `serving.rank --server` and every client.
    """

    name: ClassVar[str] = "serving"

    def __init__(
        self, folder: Path, model_dir: Path, port: int = 8500, host: str = "127.0.0.1", timeout_s: float = 120.0
    ) -> None:
        super().__init__(folder, host, timeout_s)
        self._model_dir, self._port = model_dir.resolve(), port
        self.address = ""

    @property
    def endpoints(self) -> dict[str, str]:
        """`address`."""
        return {"address": self.address}

    def prepare(self, ports: Ports) -> Sequence[Server]:
        """The command, and the folder of versions."""
        port = ports.take(self._port, "--serving_port")
        self.address = f"{self.host}:{port}"
        self._model_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "serving.server", "--model_dir", str(self._model_dir), "--wait"]
        command += ["--host", self.host, "--port", str(port)]
        return [Server("the model server", command, self.folder / "logs" / "serving.log", folder=install.ROOT)]

    def wait_ready(self, deadline: float) -> None:
        """Wait until it answers, with a model or without."""
        wait_until(lambda: speaks_grpc(self.address), self.servers, deadline, f"answer on {self.address}")
