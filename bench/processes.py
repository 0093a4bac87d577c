"""Freshet's commands as processes of their own: started, watched, and ended by their own id, whatever happens."""

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from schemas.process import UserError

_STOP_S = 60.0


class Child:
    """`python -m MODULE ARGUMENTS` in a session of its own, so that Ctrl-C reaches it through us alone; its output goes
    to the file `log`.

    Leaving the `with` block ends it with SIGTERM, and with SIGKILL if that takes more than a minute.
    """

    def __init__(self, module: str, *arguments: object, log: Path) -> None:
        self.module, self.log = module, log
        command = [sys.executable, "-m", module, *map(str, arguments)]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def check(self) -> None:
        """Raises UserError, which names the log file, if the process has ended."""
        if (status := self._process.poll()) is not None:
            raise UserError(f"{self.module} ended with status {status}{self._reason()}: see {self.log}")

    def stop(self) -> None:
        """Ask it to end, and wait.

        Raises:
            UserError: it did not end with status 0.
        """
        if self._end():
            raise UserError(f"{self.module} ended with status {self._process.returncode}{self._reason()}: see {self.log}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> int:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def _reason(self) -> str:
        errors = [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
        return f" ({errors[-1].removeprefix('error: ')})" if errors else ""


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


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as Ctrl-C does: by KeyboardInterrupt, so that children are ended too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # One that is ignored, as nohup leaves it, stays so.
    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """`folder` is this process's alone in the block.

    Raises:
        UserError: another process has it.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another demo is at work in {folder}: wait for it, or give --out another folder") from None
        yield
