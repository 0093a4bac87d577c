"""The event-sourced shard: exactly once, whatever fails between any two writes."""

import os
import random

import numpy as np
import pyarrow as pa
import pytest

from model.snapshot import Increment, KeyedPart
from pipelines.batches import EVENTS, EventBatch, Final, Kind, Span
from pipelines.shard import LogGapError, Shard, ShardConfig, Version
from pipelines.state_files import Lease, StateError, StateFiles

LOG = "features/p000"


class Tally:
    """A working state that remembers how often it was given each offset, and the order."""

    fingerprint = 7
    readable_fingerprints = frozenset({7})
    newest_event_ms = 0

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

    def rebase(self, version, base):
        self._version, self._base, self._inputs = version, base, []


def batch(first, last, final=Final.NO):
    plain = {"kind": int(Kind.FAULT), "partition": 0, "key": 0, "action": -1}
    rows = [plain | {"offset": o, "time_ms": o, "order_ms": o} for o in range(first, last)]
    events = pa.RecordBatch.from_pylist(rows, schema=EVENTS)
    spans = {LOG: Span(first, last, last)} if last > first else {}
    return EventBatch(0, (LOG,), spans, events, last, final).encode()


def shard(folder, **config):
    return Shard(Tally, StateFiles(folder, 0), ShardConfig(**{"snapshot_interval_s": 1e9, **config}))


def process(one, cells, payload):
    """One batch as the pipeline has it applied: its outputs, then the manifest if one was due."""
    outputs = one.process(cells, payload)
    return outputs, one.settle(cells)


def test_a_run_without_faults_restores_nothing(tmp_path):
    one, cells = shard(tmp_path), Cells()
    for first in range(0, 100, 10):
        assert process(one, cells, batch(first, first + 10))[0] == 10
        cells.commit()
    assert one.counts.restores == 0
    assert one.step.times == dict.fromkeys(range(100), 1)


def test_a_failed_bundle_is_applied_again_once(tmp_path):
    one, cells = shard(tmp_path), Cells()
    process(one, cells, batch(0, 10))
    cells.commit()
    process(one, cells, batch(10, 20))
    cells.rollback()
    process(one, cells, batch(10, 20))
    cells.commit()
    assert one.counts.restores == 1
    assert one.step.times == dict.fromkeys(range(20), 1)


def test_an_exception_in_the_step_leaves_no_half_applied_batch(tmp_path):
    one, cells = shard(tmp_path), Cells()
    process(one, cells, batch(0, 10))
    cells.commit()
    one.step.fail_at = 15
    with pytest.raises(RuntimeError, match="poison"):
        process(one, cells, batch(10, 20))
    cells.rollback()
    process(one, cells, batch(10, 20))
    assert one.step.times == dict.fromkeys(range(20), 1)


def test_a_gap_is_refused_and_an_overlap_dropped(tmp_path):
    one, cells = shard(tmp_path), Cells()
    process(one, cells, batch(0, 10))
    with pytest.raises(LogGapError, match="goes from 10 to 11"):
        process(one, cells, batch(11, 20))
    process(one, cells, batch(5, 15))
    assert one.step.times == dict.fromkeys(range(15), 1)


def test_inputs_are_bounded(tmp_path):
    one, cells = shard(tmp_path, inputs_bytes=3 * len(batch(0, 10))), Cells()
    for first in range(0, 200, 10):
        process(one, cells, batch(first, first + 10))
        cells.commit()
        assert len(cells.inputs()) <= 3
    assert one.counts.snapshots >= 6


def test_a_job_started_anew_goes_on_from_the_newest_manifest(tmp_path):
    first, cells = shard(tmp_path), Cells()
    process(first, cells, batch(0, 10, Final.STOP))
    again = shard(tmp_path)
    cells = Cells()
    process(again, cells, batch(10, 20))
    assert again.step.times == dict.fromkeys(range(20), 1)
    assert StateFiles(tmp_path, 0).positions()[LOG].offset == 10


def test_outputs_that_were_not_handed_on_are_put_out_again(tmp_path):
    """The process dies between a batch's outputs and the manifest that holds it."""
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    process(one, cells, batch(0, 10))
    assert one.process(cells, batch(10, 20, Final.STOP)) == 10
    assert StateFiles(tmp_path, 0).positions()[LOG].offset == 10
    assert shard(tmp_path).process(Cells(), batch(10, 20)) == 10


def test_an_attempt_that_was_overtaken_writes_no_manifest(tmp_path):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    one.process(cells, batch(0, 10))
    other = Cells()
    one.process(other, batch(0, 10))
    assert one.settle(cells) is None
    assert one.settle(other).positions[LOG].offset == 10


def test_an_unreadable_manifest_that_was_replaced_does_no_harm(tmp_path):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    first = process(one, cells, batch(0, 10))[1]
    (tmp_path / "shard-000" / first.name).write_text("{}")
    newest = process(one, cells, batch(10, 20))[1]
    process(one, cells, batch(20, 30))
    assert StateFiles(tmp_path, 0).newest()[0].version > newest.version


def test_a_broken_newest_manifest_is_passed_over(tmp_path):
    one, cells = shard(tmp_path), Cells()
    process(one, cells, batch(0, 10, Final.STOP))
    newest = process(one, cells, batch(10, 20, Final.STOP))[1]
    path = tmp_path / "shard-000" / newest.segments[-1][0].name
    path.write_bytes(path.read_bytes()[:-1])
    manifest, _ = StateFiles(tmp_path, 0).newest()
    assert manifest.positions[LOG].offset == 10


def test_a_directory_without_a_whole_manifest_is_refused(tmp_path):
    one, cells = shard(tmp_path), Cells()
    manifest = process(one, cells, batch(0, 10, Final.STOP))[1]
    (tmp_path / "shard-000" / manifest.segments[0][0].name).unlink()
    with pytest.raises(StateError, match="none of 1 manifests is whole"):
        process(shard(tmp_path), Cells(), batch(0, 10))


def test_a_full_disk_costs_a_snapshot_but_no_example(tmp_path, monkeypatch):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    process(one, cells, batch(0, 10))
    cells.commit()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.state_files.write_increment", full)
        process(one, cells, batch(10, 20))
        cells.commit()
    assert one.counts.snapshot_failures == 1
    process(one, cells, batch(20, 30))
    again = shard(tmp_path)
    process(again, Cells(), batch(30, 40))
    assert again.step.times == dict.fromkeys(range(40), 1)


def test_increments_merge_into_a_base_and_old_files_go(tmp_path):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0, retention_s=0.0), Cells()
    for first in range(0, 400, 10):
        process(one, cells, batch(first, first + 10))
        cells.commit()
        one._bases.wait()
    assert len(one._manifest.segments) < 15
    state = StateFiles(tmp_path, 0).newest()[1]
    assert state.keyed["tally"].rows.num_rows == 400


def test_jobs_that_end_before_their_first_interval_get_bases_too(tmp_path):
    """Each process writes its final manifest alone."""
    for first in range(0, 200, 10):
        one = shard(tmp_path)
        process(one, Cells(), batch(first, first + 10, Final.STOP))
        assert one._bases.stem is None  # nothing is begun that nobody would name
    assert len(one._manifest.segments) < 10
    again = shard(tmp_path)
    process(again, Cells(), batch(200, 210))
    assert again.step.times == dict.fromkeys(range(210), 1)


def in_the_way(one, stem):
    """A directory where the shard's next file of that stem would be: the system refuses, whoever asks."""
    path = one.files.directory / f"{stem}-tally.keyed.arrow"
    path.mkdir()
    return path


def test_a_snapshot_that_is_refused_costs_no_example_and_leaves_nothing(tmp_path):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    process(one, cells, batch(0, 10))
    one.process(cells, batch(10, 20))
    stem = f"{one.version.applied:012d}-{one.version.token}"
    # The second of its two files cannot be written.
    path = one.files.directory / f"{stem}-digest.whole.arrow"
    path.mkdir()
    assert one.settle(cells) is None
    assert one.counts.snapshot_failures == 1
    assert [each.name for each in one.files.directory.glob(f"{stem}*")] == [path.name]
    path.rmdir()
    process(one, cells, batch(20, 30))
    again = shard(tmp_path)
    process(again, Cells(), batch(30, 40))
    assert again.step.times == dict.fromkeys(range(40), 1)


@pytest.mark.parametrize("harm", ["refuse", "remove"])
def test_a_merge_that_fails_costs_no_snapshot_and_comes_again(tmp_path, caplog, harm):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    at = 0
    while one._bases.stem is None:
        one.process(cells, batch(at, at + 10))
        at += 10
        if harm == "refuse":
            path = in_the_way(one, f"{one.version.applied:012d}-{one.version.token}-base")
        elif one._manifest is not None and len(one._manifest.segments) == 2:
            path = one.files.directory / one._manifest.segments[0][0].name
            kept = path.read_bytes()
            path.unlink()
        manifest = one.settle(cells)
    one._bases.wait()
    process(one, cells, batch(at, at + 10))
    assert (one.counts.merge_failures, one.counts.snapshot_failures) == (1, 0)
    assert len(one._manifest.segments) == len(manifest.segments) + 1
    (said,) = [record for record in caplog.records if "merging" in record.message]
    assert path.name in said.reason
    if harm == "refuse":
        for obstacle in one.files.directory.glob("*-base-*"):
            obstacle.rmdir()
    else:
        path.write_bytes(kept)
    at += 10
    while len(one._manifest.segments) > 2:
        process(one, cells, batch(at, at + 10))
        at += 10
        one._bases.wait()
    again = shard(tmp_path)
    process(again, Cells(), batch(at, at + 10))
    assert again.step.times == dict.fromkeys(range(at + 10), 1)


def test_memory_that_runs_out_in_a_merge_costs_no_snapshot(tmp_path, monkeypatch, caplog):
    def out_of_memory(manifest):
        raise MemoryError

    one, cells, at = shard(tmp_path, snapshot_interval_s=0.0), Cells(), 0
    monkeypatch.setattr(one.files, "load", out_of_memory)
    while not one.counts.merge_failures:
        process(one, cells, batch(at, at + 10))
        one._bases.wait()
        at += 10
    assert "MemoryError" in next(record for record in caplog.records if "merging" in record.message).reason
    again = shard(tmp_path)
    process(again, Cells(), batch(at, at + 10))
    assert again.step.times == dict.fromkeys(range(at + 10), 1)


def test_old_files_that_cannot_be_removed_cost_no_snapshot(tmp_path, caplog):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0, retention_s=0.0, inputs_bytes=1), Cells()
    first = process(one, cells, batch(0, 10))[1]
    in_the_way(one, "stranger")
    old = one.files.directory / first.name
    os.utime(one.files.directory / "stranger-tally.keyed.arrow", (0, 0))
    assert process(one, cells, batch(10, 20))[1] is not None
    assert one.counts.snapshot_failures == 0
    assert not cells.inputs()
    (said,) = [record for record in caplog.records if "not removed" in record.message]
    assert "stranger" in said.reason
    process(one, cells, batch(20, 30))
    assert not old.exists()


def test_a_checkpoint_whose_file_is_gone_is_one_line_with_the_command_to_start_anew(tmp_path):
    one, cells = shard(tmp_path), Cells()
    manifest = process(one, cells, batch(0, 10, Final.STOP))[1]
    cells.commit()
    path = one.files.directory / manifest.segments[0][0].name
    path.unlink()
    with pytest.raises(StateError) as said:
        process(shard(tmp_path), cells, batch(10, 20))
    assert str(said.value).startswith(f"{path}: No such file")
    assert f"pipelines.train --state_dir {tmp_path}" in str(said.value)
    assert "\n" not in str(said.value)


def reads_of(monkeypatch):
    """Names of the manifests that are read from now on."""
    names, read = [], StateFiles.read

    def watched(files, name):
        names.append(name)
        return read(files, name)

    monkeypatch.setattr(StateFiles, "read", watched)
    return names


def test_manifests_are_read_once_however_often_old_files_are_collected(tmp_path, monkeypatch):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    manifests = [process(one, cells, batch(first, first + 10))[1] for first in range(0, 100, 10)]
    one._bases.wait()
    merging = one._bases.stem
    files = {path.name for path in one.files.directory.iterdir()}
    names = reads_of(monkeypatch)
    assert one.files.collect(manifests[-1], 3600.0, merging) == 0
    assert names == []
    # Another process knows none of them yet.
    other = StateFiles(tmp_path, 0)
    assert other.collect(manifests[-1], 3600.0, merging) == 0
    assert sorted(names) == [manifest.name for manifest in manifests]
    assert other.collect(manifests[-1], 3600.0, merging) == 0
    assert len(names) == len(manifests)
    assert {path.name for path in one.files.directory.iterdir()} == files
    assert other.newest()[0] == manifests[-1]


def test_what_is_known_of_manifests_goes_with_them(tmp_path):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0, retention_s=0.0), Cells()
    for first in range(0, 100, 10):
        process(one, cells, batch(first, first + 10))
    assert len(one.files._stems) <= 2


@pytest.mark.parametrize("harm", [None, "remove", "truncate", "alter"])
def test_a_source_starts_at_the_positions_of_the_manifest_that_is_restored(tmp_path, monkeypatch, harm):
    """Whatever is wrong with the newest one's files; they are not taken into memory for it."""
    one, cells = shard(tmp_path), Cells()
    process(one, cells, batch(0, 10, Final.STOP))
    newest = process(one, cells, batch(10, 20, Final.STOP))[1]
    path = tmp_path / "shard-000" / newest.segments[-1][0].name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "remove":
        path.unlink()
    elif harm:
        path.write_bytes(data if harm == "alter" else data[:-1])
    expected = StateFiles(tmp_path, 0).newest()[0].positions
    assert expected[LOG].offset == (10 if harm else 20)
    monkeypatch.setattr("pipelines.state_files.read_increment", None)
    assert StateFiles(tmp_path, 0).positions() == expected


def test_a_source_is_told_of_a_directory_without_a_whole_manifest(tmp_path):
    one, cells = shard(tmp_path), Cells()
    assert StateFiles(tmp_path, 0).positions() == {}
    manifest = process(one, cells, batch(0, 10, Final.STOP))[1]
    (tmp_path / "shard-000" / manifest.segments[0][0].name).unlink()
    with pytest.raises(StateError, match="none of 1 manifests is whole"):
        StateFiles(tmp_path, 0).positions()


def test_one_job_at_a_time_owns_a_directory(tmp_path):
    lease = Lease(tmp_path)
    with pytest.raises(StateError, match="in use by process"):
        Lease(tmp_path)
    lease.release()
    Lease(tmp_path).release()


@pytest.mark.parametrize("seed", range(25))
def test_any_sequence_of_faults_applies_each_record_once_and_in_order(tmp_path, seed):
    rng = random.Random(seed)
    config = {"inputs_bytes": rng.choice([1, 5_000, 1 << 20]), "snapshot_interval_s": rng.choice([0.0, 1e9])}
    one, cells = shard(tmp_path, **config), Cells()
    at = 0
    while at < 300:
        end = at + rng.randint(0, 20)
        fault = rng.random()
        if fault < 0.1:
            one = shard(tmp_path, **config)  # a new worker process, the same Beam state
        elif fault < 0.2:
            process(one, cells, batch(at, end))  # a bundle that fails afterwards
            cells.rollback()
            continue
        elif fault < 0.25:
            one.version = Version(one.version.applied, "another attempt's")
        elif fault < 0.3:
            one, cells = shard(tmp_path, **config), Cells()  # a job started anew
            at = StateFiles(tmp_path, 0).positions().get(LOG, (0,))[0]
            end = at + rng.randint(0, 20)
        process(one, cells, batch(at, end))
        cells.commit()
        at = end
    plain = Tally()
    plain.apply(EventBatch.decode(batch(0, at)))
    assert one.step.times == plain.times
    assert one.step.digest == plain.digest
