"""Freshet's commands as processes of their own: started, watched, and ended by their own id, whatever happens."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.process import UserError

_STOP_S = 60.0
_LOOK_S = 0.05


@dataclass(frozen=True)
class Usage:
    """What a process took.

    Attributes:
        seconds: by the wall clock.
        peak_rss: the most resident memory that it had at a time, in bytes, by the kernel's mark, which is looked at every
            50 ms: what it rises by in the last 50 ms of the process is not seen. 0 where there is no Linux to keep it.
        resident: its resident memory at each of these looks, in bytes.
    """

    seconds: float
    peak_rss: int
    resident: list[int]


def memory_of(pid: int) -> tuple[int, int] | None:
    """Resident memory of a process, and the most since it began its program, in bytes; None if it has ended.

    Not the `ru_maxrss` of `wait4`: that is never less than what the parent had when it forked.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return None
    found = [re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE) for name in ("VmRSS", "VmHWM")]
    resident, peak = (int(each[1]) << 10 if each else 0 for each in found)  # neither, of what waits to be waited for
    return (resident, max(resident, peak)) if peak else None


class Child:
    """`python -m MODULE ARGUMENTS` in a session of its own, so that Ctrl-C reaches it through us alone; its output goes
    to the file `log`, or to one that is kept only if the process fails without a line that says why.

    Leaving the `with` block ends it with SIGTERM, and with SIGKILL if that takes more than a minute.
    """

    def __init__(self, module: str, *arguments: object, log: Path | None = None) -> None:
        self.module = module
        self._passing = log is None
        if log is None:
            number, name = tempfile.mkstemp(prefix=f"freshet-{module}-", suffix=".log")
            os.close(number)
            log = Path(name)
        self.log = log
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self._started = time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def check(self) -> None:
        """Raises UserError, which tells the reason or names the log file, if the process has ended."""
        if self._process.poll() is not None:
            raise self._failure()

    def stop(self) -> None:
        """Ask it to end, and wait.

        Raises:
            UserError: it did not end with status 0.
        """
        if self._end():
            raise self._failure()

    def finish(self) -> Usage:
        """Wait until it has done its work.

        Raises:
            UserError: it did not end with status 0.
        """
        resident, peak = [], 0
        while True:
            if (memory := memory_of(self.pid)) is not None:
                resident.append(memory[0])
                peak = max(peak, memory[1])
            try:
                status = self._process.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                continue
            if status:
                raise self._failure()
            return Usage(time.monotonic() - self._started, peak, resident)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        if self._passing:
            self.log.unlink(missing_ok=True)

    def _end(self) -> int:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def _failure(self) -> UserError:
        lines = self.log.read_text(errors="replace").splitlines()
        reason = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)
        if self._passing and reason:
            return UserError(f"{self.module}: {reason}")
        self._passing = False
        said = f" ({reason})" if reason else ""
        return UserError(f"{self.module} ended with status {self._process.returncode}{said}: see {self.log}")


def run(module: str, *arguments: object) -> Usage:
    """Run one of Freshet's commands to its end.

    Raises:
        UserError: it failed.
    """
    with Child(module, *arguments) as child:
        return child.finish()


@dataclass(frozen=True)
class Learning:
    """How far the training process has come.

    Attributes:
        at: wall clock of this line, seconds since 1970.
        examples: learned so far.
        examples_per_s: of late, over two seconds.
        auc: of the last window; None before the first has closed.
        table_rows: ids that have a row.
        model_version: steps learned.
        newest_learned_ms: newest event time in them.
    """

    at: float
    examples: int
    examples_per_s: float
    auc: float | None
    table_rows: int
    model_version: int
    newest_learned_ms: int


NOTHING = Learning(0.0, 0, 0.0, None, 0, 0, -1)


class TrainLog:
    """Follows the lines of progress in the log of `pipelines.train`."""

    _RATE_S = 2.0

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._lines: list[dict[str, Any]] = []

    def newest(self) -> Learning:
        """The newest line; `NOTHING` before the first example has been learned."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self._offset += whole
        for line in text[:whole].splitlines():
            record: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {}
            if record.get("message") == "training" and record.get("examples"):
                self._lines.append(record | {"at": datetime.fromisoformat(record["ts"]).timestamp()})
        if not self._lines:
            return NOTHING
        newest = self._lines[-1]
        self._lines = [old for old in self._lines if old["at"] >= newest["at"] - self._RATE_S]
        first = self._lines[0]
        seconds = newest["at"] - first["at"]
        return Learning(
            at=newest["at"],
            examples=newest["examples"],
            examples_per_s=(newest["examples"] - first["examples"]) / seconds if seconds > 0 else 0.0,
            auc=newest["auc_last_window"],
            table_rows=newest["table_rows"],
            model_version=newest["model_version"],
            newest_learned_ms=newest["newest_learned_ms"],
        )


def wait_for_line(path: Path, child: Child, seconds: float = 120.0) -> str:
    """The text of a file that a child writes once it is ready.

    Raises:
        UserError: the child ended before, or took longer.
    """
    deadline = time.monotonic() + seconds
    while not path.exists():
        child.check()
        if time.monotonic() > deadline:
            raise UserError(f"{child.module} was not ready within {seconds:.0f} s: see {child.log}")
        time.sleep(0.05)  # another process's file: there is nothing here to wait on
    return path.read_text().strip()
