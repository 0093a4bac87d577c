"""What tests of the training job on Flink share: a job submitted by a process of its own, and what a state holds."""

import json
import subprocess
import sys
import time
import urllib.request

import numpy as np
import psutil

from pipelines import train
from pipelines.state_files import StateFiles
from tests.e2e.forked import ROOT, Forked

WAIT_S = 240


class Job:
    """`pipelines.train` in a process of its own, which submits to the cluster; its state lies in the folder, or elsewhere.

    `runner`: options by which it reaches the cluster, where they are not those of the job server there; `module`: in place
    of `pipelines.train`; `shell`: begun as people begin it, rather than forked.
    """

    def __init__(self, cluster, folder, *options, state=None, runner=None, module="pipelines.train", shell=False):
        self.state, self.figures_file, self.log = state or folder / "state", folder / "figures.json", folder / "log"
        arguments = [*options, "--state_dir", str(self.state), "--metrics_json", str(self.figures_file)]
        arguments += cluster.pipeline_options if runner is None else runner
        self.log.write_bytes(b"")
        if shell:
            with self.log.open("w") as log:
                self.process = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=log, stderr=log)
        else:
            self.process = Forked(module, arguments, self.log)

    def figures(self):
        try:
            return json.loads(self.figures_file.read_text())
        except (FileNotFoundError, ValueError):
            return {"examples": 0}

    @property
    def ended_well(self):
        return self.process.poll() == 0

    def wait_for(self, condition):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.05)


def rows_of(state):
    """Rows of the newest state's table by key: counts, and values."""
    _, found = StateFiles(state, 0).newest()
    rows = found.keyed["table"].rows.sort_by("key")
    return rows["key"].to_numpy(), rows["counts"].to_numpy(), np.stack(rows["values"].to_numpy())


def assert_same(state, figures, undisturbed):
    expected, other = undisturbed
    told = ("examples", "impressions", "actions", "duplicates", "late", "dead_letters", "model_version", "table_rows")
    assert {name: figures[name] for name in told} == {name: expected[name] for name in told}
    for mine, theirs in zip(rows_of(state)[:2], rows_of(other)[:2], strict=True):
        assert (mine == theirs).all()
    np.testing.assert_allclose(rows_of(state)[2], rows_of(other)[2], atol=1e-5)


def workers_of(cluster):
    """Ids of the processes that the pool's own child has forked."""
    return [worker.pid for child in psutil.Process(cluster.pool.pid).children() for worker in child.children()]


def manifests(state):
    return {path.name for path in state.glob("shard-000/manifest-*.json")}


def jobs(cluster, *states):
    with urllib.request.urlopen(f"http://{cluster.rest}/jobs", timeout=10) as answer:
        return [job["id"] for job in json.load(answer)["jobs"] if job["status"] in states]


def learned_locally(world, state):
    """Figures of a run on the local runner to the topics' end, from wherever a state stands."""
    figures = state.parent / "rest.json"
    assert train.main([*world, "--state_dir", str(state), "--metrics_json", str(figures)]) == 0
    return json.loads(figures.read_text())
