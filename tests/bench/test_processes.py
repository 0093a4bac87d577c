"""The demo's child processes: ended with it, and named with their log when they fail; progress read as it is written."""

import json
import os
import subprocess
import sys
import tempfile

import pytest

from bench.processes import NOTHING, Child, TrainLog, memory_of, run, wait_for_line
from schemas.process import UserError


def test_a_child_that_fails_is_told_with_its_reason_and_log(tmp_path):
    log = tmp_path / "server.log"
    with Child("serving.server", "--model_dir", tmp_path / "none", log=log) as child:
        with pytest.raises(UserError) as told:
            wait_for_line(tmp_path / "port", child, seconds=60)
        assert "serving.server ended with status 2 (cannot read --model_dir" in str(told.value)
        assert str(log) in str(told.value)
        assert "\n" not in str(told.value)


def test_leaving_the_block_ends_the_child(tmp_path):
    with Child("http.server", "0", "--bind", "127.0.0.1", log=tmp_path / "log") as child:
        child.check()
    with pytest.raises(UserError, match="ended with status -15"):
        child.check()


def test_a_line_is_waited_for(tmp_path):
    (tmp_path / "port").write_text("8500\n")
    with Child("http.server", "0", "--bind", "127.0.0.1", log=tmp_path / "log") as child:
        assert wait_for_line(tmp_path / "port", child) == "8500"


def test_a_command_that_ends_well_leaves_its_usage_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usage = run("http.server", "--help")
    assert 0 < usage.seconds < 60
    assert [*tmp_path.iterdir()] == []


def test_the_memory_is_the_commands_own_however_much_its_parent_has():
    held = bytearray(b"x") * (300 << 20)
    usage = run("timeit", "-n", 1, "-r", 1, "import time; time.sleep(0.3)")  # long enough to be looked at
    assert 5 << 20 < usage.peak_rss < len(held) // 3  # a bare Python
    assert max(usage.resident) <= usage.peak_rss


PEAK = """
import sys
held = bytearray(b"x") * (200 << 20)
print("held", flush=True)
sys.stdin.readline()
del held
print("dropped", flush=True)
sys.stdin.readline()
"""


def test_a_peak_is_seen_after_it_is_over_and_nothing_of_what_has_ended():
    with subprocess.Popen([sys.executable, "-c", PEAK], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        resident, peak = memory_of(process.pid)
        assert 200 << 20 < resident <= peak < 300 << 20
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"dropped\n"
        resident, later = memory_of(process.pid)
        assert resident < 100 << 20
        assert 200 << 20 < later < 300 << 20
        process.stdin.close()
        assert process.stdout.read() == b""
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert memory_of(process.pid) is None  # not waited for yet
    assert memory_of(process.pid) is None


def test_a_command_that_fails_is_told_in_its_own_line_or_by_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError) as told:
        run("serving.server", "--model_dir", tmp_path / "none")
    assert str(told.value).startswith(f"serving.server: cannot read --model_dir {tmp_path / 'none'}")
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(UserError, match=r"http.server ended with status 2: see .*\.log") as told:
        run("http.server", "no port")
    (log,) = tmp_path.iterdir()
    assert str(told.value).endswith(f"see {log}")
    assert "invalid int value" in log.read_text()


def line(second, examples):
    figures = {"examples": examples, "auc_last_window": 0.7, "table_rows": 5, "model_version": 9, "newest_learned_ms": 77}
    return json.dumps({"ts": f"2026-01-01T00:00:{second:06.3f}+00:00", "message": "training", **figures}) + "\n"


def test_progress_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "train.log"
    path.write_text('{"ts": "2026-01-01T00:00:00Z", "message": "training"}\nnot JSON\n')
    log = TrainLog(path)
    assert log.newest() is NOTHING
    with path.open("a") as file:
        file.write(line(1, 100) + line(2, 600) + line(3, 1100)[:20])
        file.flush()
        newest = log.newest()
        assert (newest.examples, newest.model_version, newest.newest_learned_ms) == (600, 9, 77)
        assert newest.examples_per_s == pytest.approx(500)
        file.write(line(3, 1100)[20:] + line(9, 2000))
    newest = log.newest()
    assert newest.examples == 2000
    # Nothing in the two seconds before it to compare with.
    assert newest.examples_per_s == 0
    assert log.newest() == newest
