"""A worker's process: a child of one that has imported, once for all workers, what Beam and our jobs need.

TensorFlow and Beam take eight seconds of a core to import: half of what a job needs to start, and to go on after a crash. The
fork server of `multiprocessing` imports them when the pool starts; nothing there has begun a thread that a child would miss.
"""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import connection, forkserver

from apache_beam.runners.worker import sdk_worker_main, statesampler

_FORKS = multiprocessing.get_context("forkserver")
#: Imported by the fork server. Another pipeline's worker imports what else it needs.
_PRELOADED = ["apache_beam.runners.worker.sdk_worker_main", "pipelines.train"]
_SAMPLING_MS = 10
# At each start `multiprocessing` asks after all its children, and how one has ended is told only once.
_ASKING = threading.Lock()


def prepare() -> None:
    """Start the fork server; it imports while others go on."""
    _FORKS.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


class WorkerProcess:
    """A process, from its start.

    Args:
        target: that it runs, of a module that it can import.
        environment: what it has besides ours.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, target: Callable[[], None], environment: Mapping[str, str]) -> None:
        self._process = _FORKS.Process(target=_run, args=(target, dict(environment)))
        self._ended = threading.Event()
        with _ASKING:
            self._process.start()
        threading.Thread(target=self._await_end, daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        pid = self._process.pid
        assert pid is not None  # it has been started
        return pid

    def _await_end(self) -> None:
        connection.wait([self._process.sentinel])
        with _ASKING:
            self._process.join()
        self._ended.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it ends, or so long; whether it has ended."""
        return self._ended.wait(seconds)

    @property
    def status(self) -> int:
        """Of a process that has ended: as it said, or the negative number of the signal that ended it."""
        status = self._process.exitcode
        assert status is not None
        return status

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        with _ASKING:
            if not self._ended.is_set() and self._process.is_alive():
                os.kill(self.pid, number)


def _run(target: Callable[[], None], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    # Beam samples what a bundle is at, and the end of each waits for the next look: up to a fifth of a second.
    statesampler.StateSampler = partial(statesampler.StateSampler, sampling_period_ms=_SAMPLING_MS)
    # What has been imported stays: to look for garbage among a million objects takes most of a second, again and again.
    gc.freeze()
    target()


def work() -> None:
    """What Beam's own program for a worker does: bundles for the runner that the environment names, until it wants no more."""
    sdk_worker_main.main(sys.argv)
