"""The event-sourced shard: how a stateful step is both fast and exactly-once.

The working state lives in this process's memory; Beam state holds just enough to rebuild it: a version, the name of the
newest manifest, and the input batches applied since. When memory is not what Beam says it is (a new worker, a failed
bundle, a shard that moved), the manifest is restored and the inputs are applied again with their outputs dropped. A job
started anew, without Beam state, goes on from the highest whole manifest and the log positions in it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from model.snapshot import FileEntry, Increment, SnapshotError
from schemas.process import UserError

from .bases import Bases
from .batches import START, EventBatch, Final, Position
from .state_files import Manifest, StateError, StateFiles
from .step import Durable, Step, Version

log = logging.getLogger(__name__)

_ANEW = "python -m pipelines.train --state_dir {}, without the runner's own checkpoint, starts anew from the newest whole one"
#: Snapshot intervals to wait after a merge that failed: it takes time and space that snapshots need.
_MERGE_AGAIN = 10
#: Times that a batch is tried before it becomes dead letters, and batches in a row that may.
_ATTEMPTS = 3
_CRASHES_IN_A_ROW = 3

T = TypeVar("T")


class LogGapError(StateError):
    """A batch that does not follow the one before it."""


@dataclass(frozen=True)
class ShardConfig:
    """When state is written.

    Attributes:
        snapshot_interval_s: seconds between manifests.
        inputs_bytes: hard bound of the batches kept in Beam state: it is what a checkpoint copies. Past half of it state is
            written at once; at the bound batches wait for that.
        retention_s: how long replaced files live on; a savepoint older than this cannot be restored.
    """

    snapshot_interval_s: float = 30.0
    inputs_bytes: int = 64 << 20
    retention_s: float = 24 * 3600.0


@dataclass
class ShardCounts:
    """For metrics: ``restores`` and failures stay 0 in a run without faults."""

    restores: int = 0
    snapshots: int = 0
    snapshot_failures: int = 0
    merge_failures: int = 0
    reapplied: int = 0


class _Cut(NamedTuple):
    """State of one moment on its way to files, and the batches applied since."""

    version: int
    token: str
    positions: dict[str, Position]
    newest_event_ms: int
    publishable: bool
    entries: Future[tuple[FileEntry, ...]]
    later: list[bytes]


@dataclass
class Shard(Generic[T]):
    """One shard's working state with its version, positions, manifests, increments and inputs.

    Args:
        make_step: builds an empty working state.
        files: where manifests and their files are.
        config: when state is written.
        on_snapshot: told the seconds that a snapshot took to copy and to write, and its bytes, once its files are there.

    Thread safe: a runner may leave a dead attempt's thread behind.
    """

    make_step: Callable[[], Step[T]]
    files: StateFiles
    config: ShardConfig = field(default_factory=ShardConfig)
    counts: ShardCounts = field(default_factory=ShardCounts)
    on_snapshot: Callable[[float, int], None] | None = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.step: Step[T] | None = None
        self.version = Version(-1, "")
        self.positions: dict[str, Position] = {}
        self._manifest: Manifest | None = None
        self._crashed_in_a_row = 0
        self._base: str | None = None  # name of the manifest in Beam state
        self._cut: _Cut | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"snapshot-{self.files.shard}")
        self._inputs_bytes = 0
        self._failed = False  # the last state that was begun was not written: the next one waits for its time
        self._final = Final.NO
        self._snapshot_due = time.monotonic() + self.config.snapshot_interval_s
        self._bases = Bases(self.files, _MERGE_AGAIN * self.config.snapshot_interval_s)

    def process(self, durable: Durable, payload: bytes, batch: EventBatch | None = None) -> T:
        """Apply one encoded :class:`EventBatch`, exactly once whatever happened before; returns its outputs.

        Args:
            durable: what the runner keeps.
            payload: the encoded batch, which it shall keep.
            batch: the same decoded, where it is at hand.

        Raises:
            LogGapError: if records are missing between the last batch and this one.
            StateError: if the state to restore is gone.
        """
        with self.lock:
            self._agree(durable)
            applied = self.version.applied
            batch = EventBatch.decode(payload) if batch is None else batch
            outputs, payload = self._outputs_of(durable, batch, payload)
            version = Version(applied + 1, secrets.token_hex(8))
            durable.append(version, payload)
            self._inputs_bytes += len(payload)
            if self._cut is not None:
                self._cut.later.append(payload)
            self._final = batch.final
            self.version = version
            return outputs

    def _outputs_of(self, durable: Durable, batch: EventBatch, payload: bytes) -> tuple[T, bytes]:
        """What a batch comes to, and the batch as it was applied: one that the step crashes on, whatever is tried, becomes
        dead letters, since it would crash every attempt to come. Several in a row are a fault of the step's own."""
        crash: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._recover(durable)
            # Memory is ahead of Beam, or broken, until the batch is recorded: an exception must lead to a restore.
            self.version = Version(-1, "")
            try:
                outputs = self._apply(batch)
                self._crashed_in_a_row = 0
                return outputs, payload
            except (UserError, MemoryError):
                raise
            except Exception as error:
                log.exception("a batch crashes the step", extra={"shard": self.files.shard, "attempt": attempt + 1})
                crash = error
        self._crashed_in_a_row += 1
        if self._crashed_in_a_row == _CRASHES_IN_A_ROW:
            assert crash is not None
            raise crash
        self._recover(durable)
        self.version = Version(-1, "")
        faults = batch.as_faults(f"the step crashed on its batch: {type(crash).__name__}: {crash}")
        return self._apply(faults), faults.encode()

    def _recover(self, durable: Durable) -> None:
        """Memory as Beam has it, after a batch has been applied in part."""
        recorded = durable.version()
        if recorded is None:
            self._start_anew(durable)
        else:
            self._restore(durable, recorded)

    def settle(self, durable: Durable) -> Manifest | None:
        """Begin to write state if it is due, or its manifest if that is done, once the last outputs have been handed on.

        A job started anew goes on behind the manifest, so what it holds is never put out again. State is written in the
        background, as it was when that began; only a final batch, or a full Beam state, waits for it.

        Raises:
            StateError: if it cannot be written and cannot wait.
        """
        with self.lock:
            # Otherwise another attempt has taken over: the manifest is its business.
            return self._settle(durable) if durable.version() == self.version else None

    def wait(self) -> None:
        """Until no state is being written; its manifest is for the next `settle`."""
        with self.lock:
            if self._cut is not None:
                self._cut.entries.exception()

    def _agree(self, durable: Durable) -> None:
        recorded = durable.version()
        if recorded is not None and recorded == self.version:
            if (base := durable.base()) != self._base:  # a bundle failed after its manifest: more is kept than was thought
                self._base, self._inputs_bytes = base, sum(map(len, durable.inputs()))
            return
        self._recover(durable)

    def _start_anew(self, durable: Durable) -> None:
        found = self.files.newest()
        self._reset(found)
        self.version = Version(found[0].version if found else 0, "")
        if found:
            durable.rebase(self.version, found[0].name, ())
        self._base = durable.base()
        if self._manifest is not None:
            # A job that ends before its first interval writes one manifest: a base is due for its increments all the same.
            self._bases.start_if_due(self._manifest)

    def _restore(self, durable: Durable, recorded: Version) -> None:
        self.counts.restores += 1
        self._base = base = durable.base()
        inputs = durable.inputs()
        log.warning("restoring", extra={"shard": self.files.shard, "version": recorded.applied, "inputs": len(inputs)})
        if base is not None:
            manifest = self.files.read(base)
            try:
                state = self.files.load(manifest)
            except SnapshotError as error:
                raise StateError(f"{error}: {_ANEW.format(self.files.directory.parent)}") from error
            self._reset((manifest, state))
        else:
            self._reset(None)
        for payload in inputs:
            self._apply(EventBatch.decode(payload))
            self._inputs_bytes += len(payload)
        self.counts.reapplied += len(inputs)
        self.version = recorded

    def _reset(self, found: tuple[Manifest, Increment] | None) -> None:
        self.step = self.make_step()
        self.positions, self._manifest, self._inputs_bytes = {}, None, 0
        self._cut = None  # of the state that was: its manifest will not be written
        self._bases.forget()
        if found is not None:
            self._manifest, state = found
            grown = self._manifest.fingerprint != self.step.fingerprint
            if grown and self._manifest.fingerprint not in self.step.readable_fingerprints:
                raise StateError(
                    f"{self.files.directory}: written with another feature configuration; use that one, or an empty --state_dir"
                )
            self.step.load(state)
            self.positions = dict(self._manifest.positions)
            if grown:
                # What is in files is of the old width, and merges with nothing to come: the next manifest starts anew.
                self._manifest = None
            else:
                self.step.committed()

    def _apply(self, batch: EventBatch) -> T:
        assert self.step is not None
        keep = np.ones(len(batch), bool)
        # Those that nothing has come from are kept, too: they tell how many there are.
        positions = dict.fromkeys(batch.partitions, START) | self.positions
        for number, name in enumerate(batch.partitions):
            if name not in batch.spans:
                continue
            span = batch.spans[name]
            at = positions.get(name, START).offset
            if span.first > at:
                raise LogGapError(
                    f"shard {self.files.shard}: {name} goes from {at} to {span.first}; records are missing from the log"
                )
            if span.first < at:
                keep &= ~((batch.column("partition") == number) & (batch.column("offset") < at))
            if span.next > at:
                positions[name] = Position(span.next, span.order_ms)
        outputs = self.step.apply(batch if keep.all() else batch.keep(keep))
        self.positions = positions
        return outputs

    def _settle(self, durable: Durable) -> Manifest | None:
        final = self._final is not Final.NO
        if self._cut is not None:
            if not (self._cut.entries.done() or final or self._full):
                return None
            manifest = self._commit(durable, needed=self._full)
            if not (final or self._full):
                return manifest
        due = time.monotonic() >= self._snapshot_due or (
            2 * self._inputs_bytes >= self.config.inputs_bytes and not self._failed
        )
        if not (due or final or self._full):
            return None
        self._begin()
        return self._commit(durable, needed=True) if final or self._full else None

    @property
    def _full(self) -> bool:
        return self._inputs_bytes >= self.config.inputs_bytes

    def _begin(self) -> None:
        """Take what changed, as it is now, and have it written."""
        assert self.step is not None
        # Drawn anew: an attempt that has been replaced may still be writing what Beam state calls the same version.
        token = secrets.token_hex(8)
        version = self.version.applied
        step, started = self.step, time.monotonic()
        entries = self._writer.submit(self._write_segment, f"{version:012d}-{token}", step.increment(), started)
        self._cut = _Cut(version, token, dict(self.positions), step.newest_event_ms, step.publishable, entries, [])

    def _write_segment(self, stem: str, increment: Increment, started: float) -> tuple[FileEntry, ...]:
        entries = self.files.write_segment(stem, increment)
        if self.on_snapshot is not None:
            self.on_snapshot(time.monotonic() - started, sum(entry.bytes for entry in entries))
        return entries

    def _commit(self, durable: Durable, needed: bool) -> Manifest | None:
        """Write the manifest of the state that was begun; None if either could not be written and is not `needed` now."""
        assert self._cut is not None
        cut, self._cut = self._cut, None
        self._snapshot_due = time.monotonic() + self.config.snapshot_interval_s
        try:
            manifest = self._write_manifest(cut)
        except (OSError, MemoryError) as error:
            self._failed = True
            self.counts.snapshot_failures += 1
            if needed:
                reason = getattr(error, "strerror", None) or "out of memory"
                raise StateError(f"{self.files.directory}: {reason}; free space and start again: nothing is lost") from error
            log.error("snapshot failed", extra={"shard": self.files.shard, "reason": str(error)})
            return None
        self._failed = False
        durable.rebase(self.version, manifest.name, cut.later)
        self._base = manifest.name
        self._inputs_bytes = sum(map(len, cut.later))
        if self._final is Final.NO:  # nobody would name it any more, and the process would wait for it at its end
            self._bases.start_if_due(manifest)
        self._collect(manifest)
        return manifest

    def _write_manifest(self, cut: _Cut) -> Manifest:
        assert self.step is not None
        entries = cut.entries.result()
        if self._final is not Final.NO:
            self._bases.wait()  # as the process would at its end
        before = self._bases.merged(self._manifest.segments) if self._manifest else ()
        self.counts.merge_failures = self._bases.failures
        manifest = Manifest(
            shard=self.files.shard,
            version=cut.version,
            token=cut.token,
            fingerprint=self.step.fingerprint,
            positions=cut.positions,
            segments=(*before, entries),
            newest_event_ms=cut.newest_event_ms,
            created_ms=int(time.time() * 1000),
            publishable=cut.publishable,
            ended=self._final is Final.END and cut.version == self.version.applied,
        )
        try:
            self.files.write(manifest)
        except BaseException:
            self.files.discard(entries)
            raise
        self._bases.named(manifest.segments)
        self.step.committed()
        self._manifest = manifest
        self.counts.snapshots += 1
        return manifest

    def _collect(self, manifest: Manifest) -> None:
        try:
            self.files.collect(manifest, self.config.retention_s, merging=self._bases.stem)
        except OSError as error:
            # The manifest is durable all the same; what was left is tried again after the next one.
            log.error("old state files not removed", extra={"shard": self.files.shard, "reason": str(error)})


_registry: dict[tuple[str, str, int], Shard] = {}
_registry_lock = threading.Lock()


def shard_of(job: str, step: str, number: int, make: Callable[[], Shard[T]]) -> Shard[T]:
    """The process's one shard of that name: Beam keeps several DoFn instances of a step and alternates between them."""
    with _registry_lock:
        key = (job, step, number)
        if key not in _registry:
            _registry[key] = make()
        return _registry[key]


def forget(job: str) -> None:
    """Drop a job's shards from memory, once it has ended."""
    with _registry_lock:
        for key in [k for k in _registry if k[0] == job]:
            del _registry[key]
