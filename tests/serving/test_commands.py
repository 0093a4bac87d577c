"""The commands as processes: start, stop, exit status, and what they print."""

import json
import os
import socket
import time
import urllib.request

import numpy as np
import pytest
from serving_checks import log_lines
from serving_models import ITEMS, WIDTH, publish

from schemas.process import UserError
from serving import rank
from serving.client import RankClient
from serving.host import ModelServer, ServerOptions


def start(command, model_dir, *more):
    server = command("serving.server", "--model_dir", model_dir, "--port", 0, "--poll_s", 0.05, *more)
    line = server.first_line()
    assert line.startswith("serving freshet on 127.0.0.1:"), server.process.communicate()
    return server, int(line.rsplit(":", 1)[1])


def one_line(stderr: str) -> str:
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_serves_ranks_and_stops_on_sigterm(written, model_dir, tmp_path, command):
    port_file = tmp_path / "port"
    server, port = start(command, model_dir, "--port_file", port_file, "--metrics_port", 0)
    assert port_file.read_text() == f"{port}\n"
    with RankClient(f"127.0.0.1:{port}", timeout_s=20) as client:
        assert client.predict(np.zeros((2, WIDTH))).version == 1
        publish(written[2], model_dir, 2)
        deadline = time.monotonic() + 30
        while client.predict(np.zeros((2, WIDTH))).version == 1:
            assert time.monotonic() < deadline

        as_json = command("serving.rank", "--server", client.server, "--user", "u1", "--k", 5, "--head", "1", "--json")
        status, out, err = as_json.finish()
        assert (status, err) == (0, "")
        answer = json.loads(out)
        assert set(answer) == {"user", "known", "version", "head", "items", "latency_ms"}
        assert (answer["user"], answer["known"], answer["head"]) == ("u1", True, "long_view")
        assert answer["version"] == 2
        scores = [item["score"] for item in answer["items"]]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)

    status, out, err = server.terminate()
    assert (status, out) == (0, "")
    messages = [line["message"] for line in log_lines(err)]
    assert messages.count("version loaded") == 2
    assert messages[-1] == "stopped"
    assert "exception" not in err


def test_rank_prints_a_table(model_dir, serve, capsys):
    server = f"127.0.0.1:{serve(model_dir).port}"
    assert rank.main(["--server", server, "--user", "u[1]", "--k", "3", "--timeout_s", "20"]) == 0
    out = capsys.readouterr().out
    assert "Next for u[1] (not seen before)" in out
    assert "P(click)" in out
    assert f"{ITEMS} candidates" in out
    assert sum("vidéo-" in line for line in out.splitlines()) == 3


def test_metrics_are_published(model_dir, serve, connect):
    server = serve(model_dir, metrics_port=0)
    stubs = connect(server.port)
    stubs.predict("predict", ids=np.zeros((1, WIDTH), np.int64))
    with pytest.raises(Exception, match="not found"):
        stubs.predict("no_such", ids=np.zeros((1, WIDTH), np.int64))
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as response:
        text = response.read().decode()
    assert 'freshet_requests_total{code="OK",method="Predict",signature="predict"} 1.0' in text
    assert 'freshet_requests_total{code="FAILED_PRECONDITION",method="Predict",signature=""} 1.0' in text
    assert 'freshet_request_seconds_count{method="Predict",signature="predict"} 1.0' in text
    assert "freshet_model_version 1.0" in text
    assert 'freshet_model_loads_total{result="loaded"} 1.0' in text


def test_a_missing_folder_is_one_line(tmp_path, command):
    status, out, err = command("serving.server", "--model_dir", tmp_path / "none").finish()
    assert (status, out) == (2, "")
    assert "cannot read --model_dir" in one_line(err)


def test_a_port_in_use_is_one_line(model_dir, command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, out, err = command("serving.server", "--model_dir", model_dir, "--port", port).finish()
    assert (status, out) == (2, "")
    assert f"cannot listen on 127.0.0.1:{port}" in one_line(err)


def test_two_servers_do_not_share_a_port(model_dir, serve):
    port = serve(model_dir).port
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
        ModelServer(ServerOptions(model_dir, port=port)).start()


def test_a_folder_without_a_model_is_one_line(tmp_path, command):
    status, out, err = command("serving.server", "--model_dir", tmp_path, "--port", 0).finish()
    assert (status, out) == (2, "")
    assert "--wait" in one_line(err)


def test_a_folder_with_a_broken_model_says_why(tmp_path, command):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "saved_model.pb").write_bytes(b"not a graph")
    status, out, err = command("serving.server", "--model_dir", tmp_path, "--port", 0).finish()
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: no version in {tmp_path} loads: version 3: ")


def test_a_metrics_port_in_use_is_refused(model_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="--metrics_port"):
            ModelServer(ServerOptions(model_dir, port=0, metrics_port=port)).start()


def test_an_unreachable_server_is_one_line(command):
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ask = command("serving.rank", "--server", address, "--user", "u", "--timeout_s", 1)
        status, out, err = ask.finish()
    assert (status, out) == (2, "")
    assert address in one_line(err)


def test_a_user_that_is_not_utf8_is_refused():
    with pytest.raises(UserError, match=r"argument --user: '\\udcff' is not UTF-8"):
        rank.main(["--server", "127.0.0.1:1", "--user", os.fsdecode(b"\xff")])


@pytest.mark.parametrize("module", ["serving.server", "serving.rank"])
def test_help_is_enough(module, command):
    status, out, _ = command(module, "--help").finish()
    assert status == 0
    assert f"python -m {module}" in out
