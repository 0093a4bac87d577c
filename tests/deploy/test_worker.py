"""Python workers of a Beam job: what they are told, and that they end with the runner they work for."""

import queue
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import psutil
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from apache_beam.runners.worker.sdk_worker_main import _load_pipeline_options
from google.protobuf import struct_pb2, text_format

from deploy import worker
from deploy.worker_pool import WorkerPool

OPTIONS = {"beam:option:max_cache_memory_usage_mb:v1": 256, "beam:option:experiments:v1": ["a", "b"], "share": 0.5, "on": True}


def struct(values):
    found = struct_pb2.Struct()
    found.update(values)
    return found


def test_options_reach_a_worker_as_they_were_given():
    parsed = _load_pipeline_options(worker.options_json(struct(OPTIONS)))
    assert parsed == {"max_cache_memory_usage_mb": 256, "experiments": ["a", "b"], "share": 0.5, "on": True}
    # A float where Beam has an integer would be refused here.
    assert PipelineOptions.from_dictionary(parsed).view_as(WorkerOptions).max_cache_memory_usage_mb == 256


def test_a_worker_is_told_who_it_is_and_where_its_runner_is():
    request = beam_fn_api_pb2.StartWorkerRequest(worker_id="1-1")
    request.control_endpoint.url = "localhost:1"
    request.logging_endpoint.url = "localhost:2"
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=struct(OPTIONS), runner_capabilities=["x", "y"])
    found = worker.worker_environment(request, info)
    assert (found["WORKER_ID"], found["RUNNER_CAPABILITIES"]) == ("1-1", "x y")
    for name, url in (("CONTROL", "localhost:1"), ("LOGGING", "localhost:2")):
        read = text_format.Parse(found[f"{name}_API_SERVICE_DESCRIPTOR"], endpoints_pb2.ApiServiceDescriptor())
        assert read.url == url
    assert "STATUS_API_SERVICE_DESCRIPTOR" not in found
    info.status_endpoint.url = "localhost:3"
    assert "localhost:3" in worker.worker_environment(request, info)["STATUS_API_SERVICE_DESCRIPTOR"]


class Runner(beam_provision_api_pb2_grpc.ProvisionServiceServicer, beam_fn_api_pb2_grpc.BeamFnControlServicer):
    """The side of a task manager that a worker talks to, over real connections: it gives it nothing to do."""

    def __init__(self):
        self.connected = queue.Queue()
        self._ended = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8))
        beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(self, self._server)
        beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def GetProvisionInfo(self, request, context):  # noqa: N802 (gRPC)
        assert dict(context.invocation_metadata())["worker_id"]
        return beam_provision_api_pb2.GetProvisionInfoResponse(
            info=beam_provision_api_pb2.ProvisionInfo(pipeline_options=struct(OPTIONS))
        )

    def Control(self, responses, context):  # noqa: N802 (gRPC)
        self.connected.put(dict(context.invocation_metadata())["worker_id"])
        self._ended.wait()
        return iter(())

    def request(self, name):
        found = beam_fn_api_pb2.StartWorkerRequest(worker_id=name)
        for endpoint in (found.control_endpoint, found.logging_endpoint, found.provision_endpoint):
            endpoint.url = self.address
        return found

    def end(self):
        """As a task manager that is killed: connections are cut, and nobody listens."""
        self._server.stop(grace=None).wait()
        self._ended.set()


class Asking:
    """The context of a call over one connection."""

    def __init__(self, peer):
        self._peer = peer

    def peer(self):
        return self._peer


@pytest.fixture
def pool():
    found = WorkerPool()
    yield found
    found.close()


def workers():
    """Children of the process that forks them, which is ours."""
    found = [worker for child in psutil.Process().children() for worker in child.children()]
    return {process.pid for process in found if process.status() != psutil.STATUS_ZOMBIE}


def until_ended(pid, seconds=60):
    deadline = time.monotonic() + seconds
    while pid in workers():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_of_two_task_managers_are_told_apart_and_end_with_theirs(pool):
    runners, pids = [Runner(), Runner()], []
    try:
        for number, runner in enumerate(runners):
            before = workers()
            answer = pool.StartWorker(runner.request("1-1"), Asking(f"ipv4:127.0.0.1:{number}"))
            assert answer.error == ""
            (pid,) = workers() - before
            pids.append(pid)
            assert runner.connected.get(timeout=60) == "1-1"
        # Both are called 1-1: the one that asks is meant.
        pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"), Asking("ipv4:127.0.0.1:0"))
        until_ended(pids[0], 0)
        assert pids[1] in workers()
        runners[1].end()
        until_ended(pids[1])
        pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"), Asking("ipv4:127.0.0.1:1"))  # no harm
    finally:
        for runner in runners:
            runner.end()


def test_a_worker_that_does_not_notice_that_its_runner_is_gone_is_ended(pool, monkeypatch, caplog):
    """As Beam's do not, when they are busy or have something to log."""
    monkeypatch.setattr(worker, "_LOST_S", 1.0)
    monkeypatch.setattr(worker, "work", partial(time.sleep, 600))
    caplog.set_level("INFO")
    runner, before = Runner(), workers()
    try:
        assert pool.StartWorker(runner.request("1-1"), Asking("ipv4:127.0.0.1:0")).error == ""
        (pid,) = workers() - before
    finally:
        runner.end()
    until_ended(pid)
    deadline = time.monotonic() + 30
    while not (ended := [each for each in caplog.records if each.message == "worker ended" and each.pid == pid]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ended[0].status == -signal.SIGTERM


def test_a_worker_whose_runner_does_not_answer_is_an_error(pool, monkeypatch):
    monkeypatch.setattr(worker, "_ASK_S", 0.5)
    with socket.socket() as silent:  # bound but not listening: connections are refused
        silent.bind(("127.0.0.1", 0))
        request = beam_fn_api_pb2.StartWorkerRequest(worker_id="7-1")
        request.provision_endpoint.url = f"127.0.0.1:{silent.getsockname()[1]}"
        before = workers()
        answer = pool.StartWorker(request, Asking("ipv4:127.0.0.1:1"))
    assert answer.error.startswith("worker 7-1: ")
    assert workers() == before


def test_a_short_loss_of_the_connection_is_none(monkeypatch):
    monkeypatch.setattr(worker, "_LOST_S", 0.3)
    states = grpc.ChannelConnectivity
    changes = queue.SimpleQueue()
    for state in (states.CONNECTING, states.READY, states.IDLE, states.CONNECTING, states.READY):
        changes.put(state)
    waiting = threading.Thread(target=worker._wait_for_loss, args=(changes,))
    waiting.start()
    waiting.join(1.0)
    assert waiting.is_alive()  # connected
    for _ in range(5):  # that it tries again does not make the loss any newer
        changes.put(states.TRANSIENT_FAILURE)
        waiting.join(0.1)
    waiting.join(10)
    assert not waiting.is_alive()
