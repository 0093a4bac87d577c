"""A shard of a plain step for tests: it tallies what it was given, and a plain dict stands for a runner's state."""

import numpy as np
import pyarrow as pa

from model.snapshot import Increment, KeyedPart
from pipelines.batches import EVENTS, EventBatch, Final, Kind, Span
from pipelines.shard import Shard, ShardConfig
from pipelines.state_files import StateFiles

LOG = "features/p000"


class Tally:
    """A working state that remembers how often it was given each offset, and the order."""

    fingerprint = 7
    readable_fingerprints = frozenset({7})
    newest_event_ms = 0
    publishable = True

    def __init__(self):
        self.times = {}
        self.digest = 0
        self.fail_at = None
        self._changed = set()
        self._cut = set()

    def apply(self, batch):
        for offset in batch.column("offset").tolist():
            if offset == self.fail_at:
                raise RuntimeError("poison")
            self.times[offset] = self.times.get(offset, 0) + 1
            self.digest = (self.digest * 31 + offset) % 1_000_003
            self._changed.add(offset)
        return len(batch)

    def increment(self):
        self._cut = set(self._changed)
        keys = sorted(self._changed)
        rows = pa.table({"key": pa.array(keys, pa.int64()), "times": pa.array([self.times[k] for k in keys], pa.int64())})
        part = KeyedPart(rows, np.zeros(0, np.int64))
        return Increment({"tally": part}, {"digest": {"digest": np.array([self.digest])}})

    def committed(self):
        self._changed -= self._cut

    def load(self, state):
        rows = state.keyed["tally"].rows
        self.times = dict(zip(rows["key"].to_pylist(), rows["times"].to_pylist(), strict=True))
        self.digest = int(state.whole["digest"]["digest"][0])


class Cells:
    """Beam state in memory: what a bundle wrote counts only once it is committed."""

    def __init__(self):
        self.durable = (None, None, [])
        self.rollback()

    def rollback(self):
        version, base, inputs = self.durable
        self._version, self._base, self._inputs = version, base, list(inputs)

    def commit(self):
        self.durable = (self._version, self._base, list(self._inputs))

    def version(self):
        return self._version

    def base(self):
        return self._base

    def inputs(self):
        return self._inputs

    def append(self, version, payload):
        self._version = version
        self._inputs.append(payload)

    def rebase(self, version, base, later):
        self._version, self._base, self._inputs = version, base, list(later)


def batch(first, last, final=Final.NO, kind=Kind.FAULT):
    plain = {"kind": int(kind), "partition": 0, "key": 0, "action": -1}
    rows = [plain | {"offset": o, "time_ms": o, "order_ms": o} for o in range(first, last)]
    events = pa.RecordBatch.from_pylist(rows, schema=EVENTS)
    spans = {LOG: Span(first, last, last)} if last > first else {}
    return EventBatch(0, (LOG,), spans, events, last, final).encode()


def shard(folder, step=Tally, **config):
    return Shard(step, StateFiles(folder, 0), ShardConfig(**{"snapshot_interval_s": 1e9, **config}))


def process(one, cells, payload):
    """One batch as the pipeline has it applied: its outputs, then the manifest if one was due."""
    outputs = one.process(cells, payload)
    return outputs, settle(one, cells)


def settle(one, cells):
    """The manifest if one was due, once it has been written."""
    manifest = one.settle(cells)
    one.wait()
    return manifest or one.settle(cells)
