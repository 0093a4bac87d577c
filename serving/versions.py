"""Which versions of the model there are, which one answers, and how one replaces another.

A model directory holds one SavedModel per integer-named folder, complete from the moment it has that
name. The newest that loads answers. It loads while the older one still answers, and the older one is
unloaded when the last request that began on it has ended. A folder that does not load is reported once, and
tried again at once when something in it changes, and now and then if not: what was in the way, a full memory
or a disk that did not answer, may have passed.
"""

import gc
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import grpc

from serving.errors import ModelLoadError, RequestError
from serving.folders import Fingerprint, fingerprint, version_folders
from serving.metrics import Metrics
from serving.session import LoadedModel

log = logging.getLogger(__name__)

# Seconds until a version that did not load is tried again: doubled each time, from the first to the last.
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
# Unloaded or broken versions that GetModelStatus still tells of; a trainer makes new ones for ever.
ENDED_VERSIONS_KEPT = 16


class VersionState(IntEnum):
    """A version's state, numbered as `tensorflow.serving.ModelVersionStatus.State`."""

    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """A version, its state, and why it did not load (empty if it did)."""

    version: int
    state: VersionState
    error: str = ""


@dataclass
class _Held:
    """A loaded model and the requests that are using it."""

    model: LoadedModel
    in_flight: int = 0


@dataclass(frozen=True)
class _Failure:
    """A folder that did not load, as it was then, and from when on it is tried again (by the monotonic clock)."""

    folder: Fingerprint
    wait_s: float
    retry_at: float


class VersionManager:
    """Serves the newest version in `model_dir` that loads, and follows the directory.

    `poll` looks at the directory once; `start` does so every `poll_s` seconds in the background.
    """

    def __init__(self, model_dir: Path, model_name: str, poll_s: float, metrics: Metrics) -> None:
        self._model_dir = model_dir
        self._model_name = model_name
        self._poll_s = poll_s
        self._metrics = metrics
        self._lock = threading.Lock()  # guards the four below; never held while loading
        self._current: _Held | None = None
        self._retired: list[_Held] = []
        self._statuses: dict[int, VersionStatus] = {}
        self._changed = threading.Condition(self._lock)
        self._polling = threading.Lock()
        self._broken: dict[int, _Failure] = {}
        self._unreadable = False
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def acquire(self, version: int | None = None) -> Iterator[LoadedModel]:
        """The model that answers now, kept in memory for as long as the block lasts.

        Raises:
            RequestError: NOT_FOUND if there is none, or if it is not the `version` asked for.
        """
        with self._lock:
            held = self._current
            if held is None or version not in (None, held.model.version):
                name = self._model_name
                asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
            held.in_flight += 1
        try:
            yield held.model
        finally:
            with self._lock:
                held.in_flight -= 1
                if held.in_flight == 0 and held is not self._current:
                    self._wake.set()

    def statuses(self) -> list[VersionStatus]:
        """Every version that was seen, newest first; of those that ended, the last 16."""
        with self._lock:
            return sorted(self._statuses.values(), key=lambda status: -status.version)

    def await_status(self, version: int, state: VersionState, timeout_s: float) -> bool:
        """Wait until `version` is in `state`; whether it came to that within `timeout_s`."""

        def reached() -> bool:
            status = self._statuses.get(version)
            return status is not None and status.state is state

        with self._changed:
            return self._changed.wait_for(reached, timeout_s)

    def poll(self) -> None:
        """Look at the directory once: load the newest version that loads, unload what nobody uses."""
        with self._polling:
            self._unload_unused()
            directories = self._list()
            self._broken = {version: failure for version, failure in self._broken.items() if version in directories}
            for version in sorted(directories, reverse=True):
                # An older version is loaded only when the current one was taken away: a rollback.
                if self._current is not None and version == self._current.model.version:
                    break
                if self._load(version, directories[version]):
                    break
            self._unload_unused()

    def start(self) -> None:
        """Follow the directory from a background thread."""
        self._thread = threading.Thread(target=self._follow, name="model versions", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following, and unload everything. Requests must have ended."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            held = self._current
            self._current = None
            if held is not None:
                self._retire(held)
        with self._polling:
            self._unload_unused()

    def _follow(self) -> None:
        while not self._stopping:
            self._wake.wait(self._poll_s)
            self._wake.clear()
            try:
                self.poll()
            except Exception:
                log.exception("looking for new versions failed; trying again", extra={"poll_s": self._poll_s})

    def _list(self) -> dict[int, Path]:
        try:
            found = version_folders(self._model_dir)
        except OSError as error:
            if not self._unreadable:
                log.warning(
                    "cannot read the model directory",
                    extra={"model_dir": str(self._model_dir), "reason": str(error)},
                )
            self._unreadable = True
            return {}
        self._unreadable = False
        return found

    def _load(self, version: int, path: Path) -> bool:
        seen = fingerprint(path)
        failure = self._broken.get(version)
        again = failure is not None and failure.folder == seen
        if failure is not None and again and time.monotonic() < failure.retry_at:
            return False
        started = time.perf_counter()
        if not again:  # while it is tried again, its status goes on to say why it did not load
            with self._lock:
                self._set(VersionStatus(version, VersionState.LOADING))
        try:
            model = LoadedModel.load(path, version)
        except ModelLoadError as error:
            wait_s = min(2 * failure.wait_s, LAST_RETRY_S) if failure is not None and again else FIRST_RETRY_S
            self._broken[version] = _Failure(seen, wait_s, time.monotonic() + wait_s)
            serving = self._current.model.version if self._current else None
            if not again:
                log.error(
                    "version does not load",
                    extra={"version": version, "reason": str(error), "still_serving": serving},
                )
            self._metrics.load_failed()
            with self._lock:
                self._set(VersionStatus(version, VersionState.END, str(error)))
            return False
        self._broken.pop(version, None)
        with self._lock:
            replaced = self._current
            self._current = _Held(model)
            self._set(VersionStatus(version, VersionState.AVAILABLE))
            if replaced is not None:
                self._retire(replaced)
        self._metrics.loaded(version)
        log.info(
            "version loaded",
            extra={"version": version, "path": str(path), "seconds": round(time.perf_counter() - started, 3)},
        )
        return True

    def _retire(self, held: _Held) -> None:
        self._retired.append(held)
        self._set(VersionStatus(held.model.version, VersionState.UNLOADING))

    def _unload_unused(self) -> None:
        with self._lock:
            unused = [held for held in self._retired if held.in_flight == 0]
            self._retired = [held for held in self._retired if held.in_flight > 0]
        for held in unused:
            held.model.close()
            gc.collect()  # a graph's objects refer to each other, and keep its memory until they are swept
            with self._lock:
                if self._statuses[held.model.version].state is VersionState.UNLOADING:
                    self._set(VersionStatus(held.model.version, VersionState.END))
            log.info("version unloaded", extra={"version": held.model.version})

    def _set(self, status: VersionStatus) -> None:
        self._statuses.pop(status.version, None)
        self._statuses[status.version] = status
        ended = [version for version, kept in self._statuses.items() if kept.state is VersionState.END]
        for version in ended[:-ENDED_VERSIONS_KEPT]:
            del self._statuses[version]
        self._changed.notify_all()
