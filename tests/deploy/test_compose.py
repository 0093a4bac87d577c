"""The compose file: its names and ports are those of the commands, and its health check tells a served model from none."""

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from serving.server import parse_args

FILE = Path(__file__).parents[2] / "deploy" / "compose.yaml"


@pytest.fixture(scope="module")
def service():
    (found,) = yaml.safe_load(FILE.read_text())["services"].values()
    return found


def test_it_serves_what_the_clients_ask_for(service):
    ours = parse_args(["--model_dir", "models"])
    name = service["environment"]["MODEL_NAME"]
    assert name == ours.model_name
    (volume,) = service["volumes"]
    assert (volume["target"], volume["read_only"]) == (f"/models/{name}", True)
    assert f"127.0.0.1:{ours.port}:8500" in service["ports"]
    assert service["image"].startswith("tensorflow/serving:2.20.")  # a release, not whatever is newest


def health(service, port):
    """Exit status of the health check against a port of this machine."""
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    # Compose would fill in what stands behind a dollar sign.
    assert not any("$" in part for part in command)
    assert "/8501 " in command[-1]
    command[-1] = command[-1].replace("/8501 ", f"/{port} ")
    return subprocess.run(command, timeout=20, check=False, capture_output=True).returncode


@pytest.mark.parametrize(
    ("state", "error", "healthy"),
    [("AVAILABLE", "OK", True), ("LOADING", "OK", False), ("END", "UNAVAILABLE", False), (None, "", False)],
)
def test_it_is_healthy_once_a_version_is_served(service, state, error, healthy):
    version = {"version": "3", "state": state, "status": {"error_code": error, "error_message": ""}}

    class Status(BaseHTTPRequestHandler):
        """TensorFlow Serving's answer to who asks for the state of its model."""

        def do_GET(self):
            found = self.path == f"/v1/models/{service['environment']['MODEL_NAME']}" and state is not None
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"model_version_status": [version]} if found else {}).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Status) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert (health(service, server.server_port) == 0) is healthy
        finally:
            server.shutdown()
            thread.join()


def test_it_is_not_healthy_where_nothing_listens(service):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    assert health(service, port) != 0
