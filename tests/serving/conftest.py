"""Models written once a session, and servers over copies of them."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import serving_models
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.host import ModelServer, ServerOptions
from serving.tensors import encode

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> dict[int, Path]:
    """SavedModels of steps 1 and 2, to be copied into model directories."""
    root = tmp_path_factory.mktemp("written")
    return {step: serving_models.save(root / str(step), step) for step in (1, 2)}


@pytest.fixture
def model_dir(written, tmp_path) -> Path:
    """A model directory with version 1."""
    directory = tmp_path / "models"
    directory.mkdir()
    serving_models.publish(written[1], directory, 1)
    return directory


@pytest.fixture
def serve() -> Iterator[Callable[..., ModelServer]]:
    """Start servers in this process that stop with the test; port 0 unless told otherwise."""
    servers: list[ModelServer] = []

    def start(model_dir: Path, **options) -> ModelServer:
        server = ModelServer(ServerOptions(model_dir, **{"port": 0, "poll_s": 0.05} | options))
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


class Stubs:
    """The stock stubs on one channel to a server."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(self, signature="", name="freshet", version=None, output_filter=(), as_content=True, **inputs):
        request = predict_pb2.PredictRequest(output_filter=output_filter)
        request.model_spec.name = name
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        for alias, array in inputs.items():
            request.inputs[alias].CopyFrom(encode(array, as_content))
        return self.predictions.Predict(request, timeout=20)


@pytest.fixture
def connect() -> Iterator[Callable[[int], Stubs]]:
    """Connect to ports; the channels close with the test."""
    opened: list[Stubs] = []

    def to(port: int) -> Stubs:
        opened.append(Stubs(port))
        return opened[-1]

    yield to
    for stubs in opened:
        stubs.channel.close()


class Command:
    """A command of serving, run as a user would."""

    def __init__(self, module: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        out, err = self.process.communicate(timeout=START_TIMEOUT_S)
        return self.process.returncode, out, err

    def first_line(self) -> str:
        """The first line on stdout; a command that prints none in time is killed, and the line is empty."""
        killer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        killer.start()
        try:
            return self.process.stdout.readline()
        finally:
            killer.cancel()

    def terminate(self) -> tuple[int, str, str]:
        os.kill(self.process.pid, signal.SIGTERM)
        return self.finish()


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    """Run commands; what still runs at the end of the test is killed."""
    started: list[Command] = []

    def run(module: str, *arguments: object) -> Command:
        started.append(Command(module, *arguments))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()
