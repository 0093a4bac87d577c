"""Which servers run, and where: a small JSON file of each service in the folder of the servers.

What needs a server that `python -m deploy.up` started asks here::

    endpoints = running(SERVERS, "flink").endpoints
    ["--job_endpoint", endpoints["job_endpoint"], "--environment_config", endpoints["worker_pool"]]
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.server import processes_of
from schemas.files import replace_file
from schemas.process import UserError

#: Where `python -m deploy.up` keeps its servers, from the repository's folder.
SERVERS = Path("out/servers")
#: All services, in the order of their start.
SERVICES = ("kafka", "flink", "serving")


@dataclass(frozen=True)
class ServerState:
    """A server that was started.

    Attributes:
        name: what people call it.
        pid: its process.
        token: that this process and all it starts have in their environment.
        log: file with its output.
    """

    name: str
    pid: int
    token: str
    log: str

    def alive(self) -> bool:
        """Whether the process runs, and is not another one that has been given its number."""
        return any(process.pid == self.pid for process in processes_of(self.token))


@dataclass(frozen=True)
class ServiceState:
    """Servers that start and stop together.

    Attributes:
        service: its name: kafka, flink or serving.
        ready: all of them were found to answer.
        endpoints: name → HOST:PORT.
        servers: in the order of their start.
    """

    service: str
    ready: bool
    endpoints: dict[str, str]
    servers: list[ServerState]

    def write(self, folder: Path) -> None:
        """Write it to its file in the folder of the servers."""
        replace_file(_path(folder, self.service), json.dumps(asdict(self), indent=2) + "\n")

    def gone(self) -> list[ServerState]:
        """Those of its servers that have ended, or were ended with the machine."""
        return [server for server in self.servers if not server.alive()]


def read(folder: Path, service: str) -> ServiceState | None:
    """What was last written of a service; None if nothing was, or it was stopped.

    Raises:
        UserError: the file cannot be read.
    """
    path = _path(folder, service)
    try:
        found = json.loads(path.read_text())
        return ServiceState(**found | {"servers": [ServerState(**server) for server in found["servers"]]})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}; remove it, and end its servers by hand") from error


def running(folder: Path, service: str) -> ServiceState:
    """A service that is ready.

    Raises:
        UserError: it does not run, or a part of it has ended.
    """
    state = read(folder, service)
    if state is None or len(gone := state.gone()) == len(state.servers):
        raise UserError(f"{service} does not run in {folder}: python -m deploy.up --only {service} starts it")
    if gone:
        names = ", ".join(server.name for server in gone)
        remedy = f"python -m deploy.down --only {service}, then up again"
        raise UserError(f"{service} in {folder} lacks {names}, see {gone[0].log}: {remedy}")
    if not state.ready:
        remedy = f"wait for the python -m deploy.up that does it, or python -m deploy.down --only {service}"
        raise UserError(f"{service} in {folder} is not wholly started: {remedy}")
    return state


def chosen(names: str) -> list[str]:
    """Services named in an option's value, with commas between them, in the order of their start; all if it is empty."""
    found = {name.strip() for name in names.split(",") if name.strip()}
    if unknown := sorted(found - set(SERVICES)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {','.join(SERVICES)}")
    return [name for name in SERVICES if name in found or not found]


def forget(folder: Path, service: str) -> None:
    """Remove the file of a service that was stopped."""
    _path(folder, service).unlink(missing_ok=True)


def _path(folder: Path, service: str) -> Path:
    return folder / f"{service}.json"
