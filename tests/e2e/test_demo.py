"""The demo as a person runs it, short: real processes, a guest whose likes reach the model server, a report."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.story import LIKES, Story

ROOT = Path(__file__).parents[2]
REQUESTS = 700


def demo(*arguments):
    command = [sys.executable, "-m", "bench.demo", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = demo("--requests", REQUESTS, "--days", 2, "--users", 60, "--out", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    (folder / "printed").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def metrics(out):
    return json.loads((out / "demo" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def story(out):
    return Story.read(out / "demo" / "guest.json")


def test_the_guests_likes_reach_the_model_server(story):
    visit = story.visit
    assert visit.likes == LIKES
    assert visit.after.version > visit.before.version
    assert visit.after.steps > visit.before.steps
    assert visit.after.ids != visit.before.ids
    assert len(visit.after.videos) == len(visit.before.videos) == 10
    for answer in (visit.before, visit.after):
        scores = [video.score for video in answer.videos]
        assert scores == sorted(scores, reverse=True)
    assert 0 < visit.learned_s < visit.seconds
    for name in ("at_s", "version", "likes"):
        values = [getattr(moment, name) for moment in visit.moments]
        assert values == sorted(values)
    assert visit.moments[-1].likes == LIKES
    assert visit.moments[-1].with_tag == visit.after.with_tag(visit.tag)


def test_the_figures_agree(out, metrics, story):
    # Learned: all of the past, what everyone did while the guest was there, and some of what the guest was shown.
    assert metrics["examples"] > 5 * REQUESTS
    # What is not learned yet waits for its labels, or for its step of 128 to fill.
    assert 0 <= metrics["impressions"] - metrics["examples"] <= metrics["waiting"] + 128
    assert metrics["dead_letters"] == metrics["duplicates"] == metrics["late"] == metrics["bad_steps"] == 0
    assert set(metrics["arms"]) == {"continuous", "hourly", "daily", "frozen"}
    assert metrics["model_version"] >= story.visit.after.steps
    assert metrics["newest_learned_ms"] > story.visit.live_from_ms
    assert story.oracle_auc > metrics["arms"]["continuous"]["auc"]
    printed = (out / "printed").read_text()
    assert f"likes {LIKES} with" in " ".join(printed.split())
    assert f"in {story.visit.seconds:.1f} s" in " ".join(printed.split())


def test_the_report_tells_it(out, metrics, story):
    page = (out / "report.html").read_text()
    assert f"{metrics['arms']['continuous']['auc']:.4f}" in page
    assert f"{story.visit.seconds:.1f} s after the last like" in page
    assert "<svg" in page


def test_nothing_is_left_running(out):
    mine = [process.pid for process in psutil.process_iter(["cmdline"]) if str(out) in " ".join(process.info["cmdline"] or ())]
    assert mine == []


def test_a_folder_without_a_data_set_is_one_line(tmp_path):
    done = demo("--path", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {tmp_path}: holds neither KuaiRand-Pure nor MovieLens: give the folder that one of them unpacks to\n"
    )
