"""A server as a process of its own: started apart from its starter, watched, and ended with all that it has started."""

import contextlib
import os
import select
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.tail import tail
from schemas.process import UserError

#: In the environment of a server and of all that it starts: the token of this server alone. A process id may be another
#: process's by the time that it is read from a file; nobody else has the token.
MARK = "FRESHET_SERVER"

STOP_S = 30.0
_KILLED_S = 10.0  # that the kernel may take to clear away what was killed
_LOOK_S = 0.1


def processes_of(token: str) -> list[psutil.Process]:
    """All processes that carry a server's token, in no order; none that has ended and only waits to be waited for."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has ended, or is another user's, and so none of ours
    return found


def end(token: str, seconds: float = STOP_S) -> None:
    """End a server and what it has started: SIGTERM to all of them, and SIGKILL to those that live on for `seconds`.

    Raises:
        UserError: one cannot be ended.
    """
    for process in processes_of(token):
        _send(process, signal.SIGTERM)
        _send(process, signal.SIGCONT)  # one that is stopped hears nothing before
    if _gone(token, seconds):
        return
    deadline = time.monotonic() + _KILLED_S
    while left := processes_of(token):
        if time.monotonic() > deadline:
            raise UserError(f"process {left[0].pid} does not end, not even by SIGKILL: is its disk at fault?")
        for process in left:
            _send(process, signal.SIGKILL)  # also one that another had just begun to start
        _gone(token, 1.0)


def _gone(token: str, seconds: float) -> bool:
    """Whether all processes of a server end within so long."""
    deadline = time.monotonic() + seconds
    while left := processes_of(token):
        if time.monotonic() > deadline:
            return False
        _await_end(left[0].pid)
    return True


def _await_end(pid: int) -> None:
    """Wait until a process ends, or a moment; how it ended is left to be asked by whoever has started it.

    `psutil.Process.wait` would take a child's status away from its `subprocess.Popen`, which then says 0.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([handle], [], [], _LOOK_S)
    finally:
        os.close(handle)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


@dataclass
class Server:
    """A process, its log, and how to start it as often as is wanted.

    Attributes:
        name: what people call it.
        command: program and arguments.
        log: file that its output is added to; each line of it since the last start is looked at for errors.
        environment: what it has besides ours.
        folder: that it works in.
        token: in the environment of all its processes.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _begun_at: int = field(default=0, init=False, repr=False)

    def start(self) -> None:
        """Start it, in a session of its own: no Ctrl-C in our terminal reaches it, and it outlives us.

        Raises:
            UserError: it runs already, or there is no such program.
        """
        if self.alive():
            raise UserError(f"{self.name} runs already, as process {self.pid}")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._begun_at = log.tell()
            try:
                self._process = subprocess.Popen(
                    self.command_line(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env=os.environ | self.environment | {MARK: self.token},
                    start_new_session=True,
                )
            except OSError as error:
                raise UserError(f"cannot start {self.name}: {self.command[0]}: {error.strerror}") from error

    def command_line(self) -> Sequence[str]:
        """Program and arguments of the next start."""
        return self.command

    @property
    def pid(self) -> int:
        """Of the process that was started last; 0 before the first."""
        return 0 if self._process is None else self._process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raises UserError, with the end of its log, if it has ended."""
        if not self.alive():
            status = None if self._process is None else self._process.returncode
            raise UserError(f"{self.name} has ended with status {status}: {self.ending()}")

    def wait(self, seconds: float) -> None:
        """Wait until it ends, or so long."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def ending(self) -> str:
        """Where its log is, and the last lines that it wrote there since it was started."""
        with self.log.open("rb") as file:
            file.seek(self._begun_at)
            return f"see {self.log}{tail(file.read().decode(errors='replace'))}"

    def members(self) -> list[psutil.Process]:
        """Its process and those that it has started."""
        return processes_of(self.token)

    def stop(self, seconds: float = STOP_S) -> None:
        """End it with all that it has started, by SIGTERM, and by SIGKILL where that takes longer than `seconds`."""
        if self._process is not None:
            if self.alive():
                self._process.terminate()
                self.wait(0)
            end(self.token, seconds)
            self._process.wait()

    def kill(self) -> None:
        """End its process by SIGKILL, as a crash would, and nothing else."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def wait_until(ready: Callable[[], bool], servers: Sequence[Server], deadline: float, what: str) -> None:
    """Wait for a condition that needs all these servers.

    Args:
        ready: asked every 0.1 s, and at once when the first of the servers ends.
        servers: that must stay alive; the log of the first is shown where it takes too long.
        deadline: by `time.monotonic`.
        what: is waited for, as in "does not WHAT".

    Raises:
        UserError: one has ended, or the deadline has passed; with the end of its log.
    """
    started = time.monotonic()
    while not ready():
        for server in servers:
            server.check()
        if time.monotonic() > deadline:
            raise UserError(
                f"{servers[0].name} does not {what} after {time.monotonic() - started:.0f} s: {servers[0].ending()}"
            )
        servers[0].wait(_LOOK_S)
