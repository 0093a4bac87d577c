"""How commands end, and what they log."""

import json
import logging
import os
import signal
import subprocess
import sys

import pytest

from schemas.process import JsonLinesFormatter, UserError, alone, run_main, setup_logging, signals_interrupt

PROGRAM = """
import logging
from schemas.process import UserError, run_main, setup_logging

def main(argv):
    setup_logging("info")
    logging.getLogger("freshet.test").info("hello %s", "you", extra={"rows": 3, "path": __import__("pathlib").Path("x")})
    logging.getLogger("freshet.test").debug("not this")
    {end}

run_main(main)
"""


def run(end: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.replace("{end}", end)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


def test_log_lines_are_json_with_extras():
    done = run("return 0")
    assert done.returncode == 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    fields = json.loads(line)
    assert fields.pop("ts").endswith("Z")
    assert fields == {
        "level": "INFO",
        "logger": "freshet.test",
        "message": "hello you",
        "rows": 3,
        "path": "x",
    }


@pytest.mark.parametrize(
    ("end", "status", "last_line"),
    [
        ("return 3", 3, None),
        ("raise UserError('LOGS: no such folder: give --logs')", 2, "error: LOGS: no such folder: give --logs"),
        ("raise KeyboardInterrupt", 130, None),
        ("return 1 // 0", 1, "ZeroDivisionError: integer division or modulo by zero"),
    ],
)
def test_how_a_command_ends(end: str, status: int, last_line: str | None):
    done = run(end)
    lines = done.stderr.splitlines()[1:]
    assert done.returncode == status
    assert lines[-1:] == ([last_line] if last_line else [])
    assert ("Traceback (most recent call last):" in lines) == (status == 1)


def test_an_exception_is_logged_with_its_traceback():
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", None, sys.exc_info())
    fields = json.loads(JsonLinesFormatter().format(record))
    assert fields["message"] == "failed"
    assert fields["exception"].endswith("ValueError: broken")


def test_an_unknown_level_is_refused():
    with pytest.raises(UserError, match="log level 'loud' is unknown: use debug, info"):
        setup_logging("loud")


def test_run_main_gives_the_status_of_main():
    with pytest.raises(SystemExit) as end:
        run_main(lambda argv: 7 if argv is None else 0)
    assert end.value.code == 7


def test_a_folder_is_one_process_s_alone(tmp_path):
    refused = pytest.raises(UserError, match=f"^another demo is at work in {tmp_path}: wait for it, or take another$")
    with alone(tmp_path, "another demo", "take another"), refused, alone(tmp_path, "another demo", "take another"):
        pass
    with alone(tmp_path, "another demo", "take another"):
        pass


def test_sigterm_interrupts_so_that_children_are_ended():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
