"""What every process of Freshet shares: structured logging, user errors, how a command is read, runs alone and ends.

A command's module ends in::

    if __name__ == "__main__":
        run_main(main)
"""

import argparse
import contextlib
import difflib
import fcntl
import json
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what shells expect

# What logging puts on every record; anything else was passed by the caller as `extra`.
_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class UserError(Exception):
    """An error whose one-line message (the thing, the place, the remedy) is all its reader needs."""


class CommandParser(argparse.ArgumentParser):
    """The argument parser of every command: what is wrong with a command line is a `UserError`, one line.

    Options are spelt in full, so that one added later changes no command line, and what is no option is named before
    what is missing: a mistyped `--model_dri` is both.

    Args:
        options: those of `argparse.ArgumentParser`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    # The base class's overloads say no more than this.
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Values of the options.

        Raises:
            UserError: a word that is no option, an option that is missing, or a value that cannot be used.
        """
        words = sys.argv[1:] if args is None else list(args)
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        try:
            _, rest = self.parse_known_args(words)
        finally:
            for action in required:
                action.required = True
        if rest:
            self.error(unknown_option(rest[0], self.option_strings))
        return super().parse_args(words, namespace)

    @property
    def option_strings(self) -> list[str]:
        """All spellings of all options."""
        return list(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse has to say as a `UserError`, in place of a usage block and an exit."""
        raise UserError(f"{message}; see {self.prog} --help")


def unknown_option(word: str, known: Iterable[str]) -> str:
    """What is wrong with a word of a command line that none of the `known` options takes, and which is nearest."""
    name = word.split("=", 1)[0]
    if not name.startswith("-"):
        return f"{word!r} belongs to no option"
    known = sorted(known)
    # An abbreviation is nearer to what it begins than anything of its own length.
    begun = [option for option in known if option.startswith(name)] if len(name) > 2 else []
    near = begun or difflib.get_close_matches(name, known, 1)
    return f"{name}: no such option" + (f" (did you mean {near[0]}?)" if near else "")


class JsonLinesFormatter(logging.Formatter):
    """One JSON object a line: `ts` (RFC 3339, UTC, ms), `level`, `logger`, `message`, `exception`, extras.

    Extras are the keys of `extra=` at the call: `log.info("step", extra={"loss": 0.6})`. Values that
    JSON lacks are written as their `str`.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "ts": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _RECORD_FIELDS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def setup_logging(level: str | int = logging.INFO) -> None:
    """Send every log record at or above `level` to stderr as JSON lines, replacing earlier handlers.

    Raises:
        UserError: `level` is not the name of a logging level.
    """
    name = level.upper() if isinstance(level, str) else level
    if isinstance(name, str) and name not in logging.getLevelNamesMapping():
        raise UserError(f"log level {level!r} is unknown: use debug, info, warning or error")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLinesFormatter())
    logging.basicConfig(level=name, handlers=[handler], force=True)


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


@contextlib.contextmanager
def alone(folder: Path, other: str, remedy: str) -> Iterator[None]:
    """`folder` is this process's alone in the block.

    Args:
        folder: that is there.
        other: who else may have it, as in "another demo".
        remedy: what to do then besides waiting, as in "give --out another folder".

    Raises:
        UserError: another process has it.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{other} is at work in {folder}: wait for it, or {remedy}") from None
        yield


def run_main(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Run `main(None)` and end the process with its status.

    A `UserError` prints `error: ...` on stderr and ends with status 2; Ctrl-C ends with 130; any other
    exception prints its traceback and ends with 1.
    """
    try:
        status = main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_USER_ERROR
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except Exception:
        traceback.print_exc()
        status = 1
    sys.exit(status)
