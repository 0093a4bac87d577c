"""The command line of deploy.up, and that it starts all or nothing."""

import sys

import pytest
from rich.console import Console

from deploy import up
from deploy.flink_cluster import FlinkCluster
from deploy.kafka_broker import KafkaBroker
from deploy.model_server import ModelServer
from deploy.server import Server, processes_of, wait_until
from deploy.service import Service
from deploy.state import read, running
from schemas.process import UserError


def test_ports_are_the_usual_ones_any_free_one_or_those_that_are_given():
    usual = up.parse_args([])
    assert {name: getattr(usual, name) for name in up.PORTS} == up.PORTS
    assert len(set(up.PORTS.values())) == len(up.PORTS)
    some = up.parse_args(["--free_ports", "--rest_port", "8081"])
    assert {getattr(some, name) for name in up.PORTS if name != "rest_port"} == {0}
    assert some.rest_port == 8081
    assert up.parse_args(["--job_port", "0"]).job_port == 0


def test_options_reach_the_services(tmp_path):
    args = up.parse_args(
        [
            *("--dir", str(tmp_path), "--host", "localhost", "--timeout_s", "7", "--kafka_heap_mb", "99"),
            *("--task_managers", "3", "--slots", "5", "--kafka_setting", "a=b=c", "--flink_setting", "d="),
        ]
    )
    kafka, flink, serving = up.services(args)
    assert isinstance(kafka, KafkaBroker)
    assert (kafka.options.port, kafka.options.heap_mb, kafka.options.config) == (9092, 99, {"a": "b=c"})
    assert isinstance(flink, FlinkCluster)
    assert (flink.options.task_managers, flink.options.slots, flink.options.config) == (3, 5, {"d": ""})
    assert isinstance(serving, ModelServer)
    assert {(each.folder, each.host, each.timeout_s) for each in (kafka, flink, serving)} == {(tmp_path, "localhost", 7.0)}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--only", "kafka,spark"],
            r"^argument --only: 'spark' is none of kafka,flink,serving; see python -m deploy.up --help$",
        ),
        (["--flink_setting", "x"], r"^argument --flink_setting: 'x' is not NAME=VALUE; "),
        (["--rest_port", "70000"], r"^argument --rest_port: 70000 is not a port: "),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line(argv, message):
    with pytest.raises(UserError, match=message):
        up.parse_args(argv)


class Program(Service):
    """A service of one Python process."""

    def __init__(self, folder, name, program):
        super().__init__(folder, timeout_s=60)
        self.name = name  # type: ignore[misc]
        self._program = program
        self.port = 0

    @property
    def endpoints(self):
        return {"port": f"{self.host}:{self.port}"}

    def prepare(self, ports):
        self.port = ports.take(0, "--port")
        return [Server(self.name, [sys.executable, "-c", self._program], self.folder / "logs" / f"{self.name}.log")]

    def wait_ready(self, deadline):
        wait_until(lambda: "ready" in self.servers[0].log.read_text(), self.servers, deadline, "say so")


GOOD = "print('ready', flush=True); import time; time.sleep(600)"
BAD = "import sys; sys.exit('no disk')"


@pytest.fixture
def console(tmp_path):
    with (tmp_path / "screen").open("w") as file:
        yield Console(file=file, width=200)


def test_all_start_or_none_goes_on(tmp_path, console):
    good, bad = Program(tmp_path, "good", GOOD), Program(tmp_path, "bad", BAD)
    with pytest.raises(UserError, match="bad has ended with status 1: .*\n  | no disk"):
        up.start([good, bad], console)
    for service in (good, bad):
        assert processes_of(service.servers[0].token) == []
        assert read(tmp_path, service.name) is None


def test_what_runs_already_is_left_as_it_is(tmp_path, console):
    first = Program(tmp_path, "good", GOOD)
    with first:
        known = running(tmp_path, "good")
        bad = Program(tmp_path, "bad", BAD)
        with pytest.raises(UserError, match="no disk"):
            up.start([Program(tmp_path, "good", GOOD), bad], console)
        assert running(tmp_path, "good") == known
        with pytest.raises(UserError, match="^good runs already in .*: python -m deploy.down --only good stops it$"):
            Program(tmp_path, "good", GOOD).start()
        assert running(tmp_path, "good") == known
    assert read(tmp_path, "good") is None
    assert f"good     runs already: port {first.host}:{first.port}" in (tmp_path / "screen").read_text()


def test_what_a_killed_one_left_is_ended_before_it_is_started_again(tmp_path):
    started = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); " + GOOD
    first = Program(tmp_path, "good", started)
    first.start()
    token = first.servers[0].token
    first.servers[0].kill()
    assert len(processes_of(token)) == 1
    with Program(tmp_path, "good", GOOD) as again:
        assert processes_of(token) == []
        assert again.servers[0].alive()
