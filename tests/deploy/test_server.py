"""A server's process: found by its token alone, ended with all that it has started, told with the end of its log."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from deploy.server import MARK, Server, end, processes_of, wait_until
from schemas.process import UserError

CHILD = "import time; time.sleep(600)"
# Starts another, in a session of its own, and says so.
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def server(tmp_path):
    """A maker of servers that run a Python program; all are ended with the test."""
    made = []

    def make(program):
        made.append(Server("the program", [sys.executable, "-c", program], tmp_path / "logs" / "program.log"))
        return made[-1]

    yield make
    for each in made:
        end(each.token, 0.0)
        each.stop()


def start(server, said="ready"):
    server.start()
    wait_until(lambda: said in server.log.read_text(), [server], time.monotonic() + 60, f"say {said!r}")
    return server


def test_stop_ends_what_the_server_has_started_too(server):
    program = start(server(PARENT))
    assert len(program.members()) == 2
    assert program.alive()
    program.stop()
    assert program.members() == []
    assert not program.alive()
    program.stop()  # nothing left to do


def test_one_that_ignores_sigterm_is_killed(server):
    program = start(server(DEAF))
    started = time.monotonic()
    program.stop(0.5)
    assert 0.5 <= time.monotonic() - started < 30
    assert program.members() == []


def test_one_that_is_paused_is_ended_without_being_killed(server):
    program = start(server("import time; print('ready', flush=True); time.sleep(600)"))
    os.kill(program.pid, signal.SIGSTOP)
    program.stop(30)
    assert program.members() == []
    assert program._process.returncode == -signal.SIGTERM


def test_a_crash_leaves_what_it_had_started_until_stop(server):
    program = start(server(PARENT))
    program.kill()
    assert not program.alive()
    (left,) = program.members()
    assert left.pid != program.pid
    program.stop()
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE


def test_it_can_be_started_again_and_only_when_it_has_ended(server):
    program = start(server("print('ready', flush=True); import time; time.sleep(600)"))
    first = program.pid
    with pytest.raises(UserError, match=f"the program runs already, as process {first}"):
        program.start()
    program.kill()
    start(program, "ready\nready\n")
    assert program.pid != first


def test_only_the_token_makes_a_process_ours():
    """A process of another server, or with a number that was ours once, is none of our processes."""
    other = subprocess.Popen([sys.executable, "-c", CHILD], env=os.environ | {MARK: "other"})
    try:
        assert [process.pid for process in processes_of("other")] == [other.pid]
        end("ours", 0.0)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert processes_of("other") == []


def test_one_that_ends_is_told_at_once_with_what_it_said_since_its_start(server):
    program = server("import sys; print('a reason\\n\\tat some.Frame(File.java:7)'); sys.exit(3)")
    program.log.parent.mkdir()
    program.log.write_text("of an earlier start\n")
    program.start()
    started = time.monotonic()
    with pytest.raises(UserError) as told:
        wait_until(lambda: False, [program], started + 600, "answer")
    assert time.monotonic() - started < 60
    assert str(told.value) == f"the program has ended with status 3: see {program.log}\n  | a reason"


def test_one_that_does_not_become_ready_is_told_with_the_end_of_its_log(server):
    program = start(server("print(*range(100), 'ready', sep='\\n', flush=True); import time; time.sleep(600)"))
    with pytest.raises(UserError) as told:
        wait_until(lambda: False, [program], time.monotonic() + 0.3, "answer on 127.0.0.1:1")
    first, *quoted = str(told.value).splitlines()
    assert first == f"the program does not answer on 127.0.0.1:1 after 0 s: see {program.log}"
    assert quoted == [f"  | {line}" for line in [*range(81, 100), "ready"]]


def test_a_program_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^cannot start it: /no/such: No such file or directory$"):
        Server("it", ["/no/such"], tmp_path / "log").start()
