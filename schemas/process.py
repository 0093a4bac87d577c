"""What every process of Freshet shares: structured logging, user errors, and how a command ends.

A command's module ends in::

    if __name__ == "__main__":
        run_main(main)
"""

import json
import logging
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what shells expect

# What logging puts on every record; anything else was passed by the caller as `extra`.
_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class UserError(Exception):
    """An error whose one-line message (the thing, the place, the remedy) is all its reader needs."""


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
