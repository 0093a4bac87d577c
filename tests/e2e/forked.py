"""Commands of ours in processes of their own that have imported what they need before they begin: seconds less for each."""

import importlib
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

from schemas.process import run_main

ROOT = Path(__file__).parents[2]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pipelines.train"])


class Forked:
    """What `python -m module arguments` does, its output added to `log`; of `subprocess.Popen`'s verbs those that tests use."""

    def __init__(self, module, arguments, log):
        self._process = _FORKS.Process(target=_run, args=(module, list(map(str, arguments)), log))
        self._process.start()

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode

    def terminate(self):
        self._process.terminate()

    def kill(self):
        self._process.kill()


def _run(module, arguments, log):
    os.chdir(ROOT)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [module, *arguments]
    run_main(importlib.import_module(module).main)
