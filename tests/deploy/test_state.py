"""The state of servers that were started: what is told of those that run, and that a number which came to be another
process's is not taken for a server's."""

import argparse
import os
import sys

import pytest

from deploy import down
from deploy.server import Server, end
from deploy.state import ServerState, ServiceState, chosen, forget, read, running
from schemas.process import UserError

ENDPOINTS = {"rest": "127.0.0.1:8081"}


@pytest.fixture
def alive(tmp_path):
    """State of a server that runs."""
    server = Server("task manager 1", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "logs" / "log")
    server.start()
    yield ServerState(server.name, server.pid, server.token, str(server.log))
    end(server.token, 0.0)
    server.stop()


@pytest.fixture
def stale():
    """State of a server whose number this very process has by now."""
    return ServerState("the job manager", os.getpid(), "long-gone", "logs/job-manager.log")


def test_what_runs_is_told_as_it_was_written(tmp_path, alive):
    state = ServiceState("flink", True, ENDPOINTS, [alive])
    state.write(tmp_path)
    assert running(tmp_path, "flink") == state
    forget(tmp_path, "flink")
    assert read(tmp_path, "flink") is None
    forget(tmp_path, "flink")


@pytest.mark.parametrize("written", [True, False])
def test_what_has_ended_does_not_run(tmp_path, stale, written):
    if written:
        ServiceState("flink", True, ENDPOINTS, [stale]).write(tmp_path)
    with pytest.raises(UserError, match=r"^flink does not run in .*: python -m deploy\.up --only flink starts it$"):
        running(tmp_path, "flink")


def test_a_part_that_has_ended_is_named_with_its_log(tmp_path, alive, stale):
    ServiceState("flink", True, ENDPOINTS, [stale, alive]).write(tmp_path)
    with pytest.raises(UserError, match=r"lacks the job manager, see logs/job-manager\.log: python -m deploy\.down"):
        running(tmp_path, "flink")


def test_what_is_half_started_is_not_handed_out(tmp_path, alive):
    ServiceState("flink", False, ENDPOINTS, [alive]).write(tmp_path)
    with pytest.raises(UserError, match="is not wholly started"):
        running(tmp_path, "flink")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"service": "flink", "ready": true, "endpoints": {}, "servers": [1]}'])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "flink.json").write_text(text)
    with pytest.raises(UserError, match=f"^cannot read {tmp_path / 'flink.json'}: "):
        read(tmp_path, "flink")


def test_down_ends_what_is_left_and_nothing_else(tmp_path, alive, stale, capsys):
    ServiceState("flink", True, ENDPOINTS, [stale, alive]).write(tmp_path)
    ServiceState("kafka", True, ENDPOINTS, [stale]).write(tmp_path)
    assert down.main(["--dir", str(tmp_path)]) == 0
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["serving", "does not run"],
        ["flink", "stopped; had ended already: the job manager"],
        ["kafka", "had ended already"],
    ]
    assert not alive.alive()
    assert [path.name for path in tmp_path.glob("*.json")] == []
    assert down.main(["--dir", str(tmp_path / "none")]) == 0


def test_services_are_chosen_by_name_in_the_order_of_their_start():
    assert chosen("") == ["kafka", "flink", "serving"]
    assert chosen("serving, kafka") == ["kafka", "serving"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"^'flnk' is none of kafka,flink,serving$"):
        chosen("kafka,flnk")
