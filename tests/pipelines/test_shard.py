"""The event-sourced shard: exactly once, whatever fails between any two writes."""

import dataclasses
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tally import LOG, Cells, Tally, batch, process, settle, shard

from pipelines.batches import EventBatch, Final, Kind, Span
from pipelines.shard import LogGapError
from pipelines.state_files import Lease, StateError, StateFiles
from pipelines.step import Version


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
    one.step.fail_at = 15  # this once: the step that is made anew does not
    process(one, cells, batch(10, 20))
    assert one.counts.restores == 1
    assert one.step.times == dict.fromkeys(range(20), 1)


class Poisoned(Tally):
    """A step that some records always crash, in the middle of their batch."""

    poison = frozenset()
    reasons = ()

    def apply(self, batch):
        usable = batch.keep(batch.column("kind") != Kind.FAULT)
        self.fail_at = next(iter(self.poison.intersection(usable.column("offset").tolist())), None)
        Poisoned.reasons += tuple(batch.keep(batch.column("kind") == Kind.FAULT).events["reason"].to_pylist())
        return super().apply(usable)


@pytest.mark.parametrize("bad", [5, 15])
def test_a_batch_that_always_crashes_the_step_becomes_dead_letters_and_the_others_go_on(tmp_path, monkeypatch, bad):
    monkeypatch.setattr(Poisoned, "poison", frozenset({bad}))
    monkeypatch.setattr(Poisoned, "reasons", ())
    one, cells = shard(tmp_path, Poisoned), Cells()
    for first in range(0, 40, 10):
        process(one, cells, batch(first, first + 10, kind=Kind.ACTION))
        cells.commit()
    learned = [offset for offset in range(40) if offset // 10 != bad // 10]
    assert one.step.times == dict.fromkeys(learned, 1)
    assert Poisoned.reasons == ("the step crashed on its batch: RuntimeError: poison",) * 10
    again = shard(tmp_path, Poisoned)  # from Beam's state: what is applied again crashes nothing
    process(again, cells, batch(40, 50, kind=Kind.ACTION))
    assert again.step.times == dict.fromkeys([*learned, *range(40, 50)], 1)
    assert again.counts.restores == 1


def test_a_step_that_crashes_on_batch_after_batch_is_no_matter_of_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(Poisoned, "poison", frozenset(range(10, 100)))
    one, cells = shard(tmp_path, Poisoned), Cells()
    for first in range(0, 30, 10):
        process(one, cells, batch(first, first + 10, kind=Kind.ACTION))
        cells.commit()
    with pytest.raises(RuntimeError, match="poison"):
        process(one, cells, batch(30, 40, kind=Kind.ACTION))
    cells.rollback()
    monkeypatch.setattr(Poisoned, "poison", frozenset())
    process(one, cells, batch(30, 40, kind=Kind.ACTION))
    assert one.step.times == dict.fromkeys([*range(10), *range(30, 40)], 1)


def test_a_gap_is_refused_and_an_overlap_dropped(tmp_path):
    one, cells = shard(tmp_path), Cells()
    process(one, cells, batch(0, 10))
    with pytest.raises(LogGapError, match="goes from 10 to 11"):
        process(one, cells, batch(11, 20))
    process(one, cells, batch(5, 15))
    assert one.step.times == dict.fromkeys(range(15), 1)


def test_a_last_batch_that_stands_behind_lost_ones_is_refused(tmp_path):
    """A runner that drops outputs must not end a job as if the logs had held nothing more."""
    one, cells = shard(tmp_path), Cells()
    process(one, cells, batch(0, 10))
    last = dataclasses.replace(EventBatch.decode(batch(20, 20, Final.END)), spans={LOG: Span(20, 20, 20)})
    with pytest.raises(LogGapError, match="goes from 10 to 20; records are missing"):
        process(one, cells, last.encode())
    process(one, cells, batch(10, 20))
    assert process(one, cells, last.encode())[1].ended


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
    assert settle(one, cells) is None
    assert settle(one, other).positions[LOG].offset == 10


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


def test_batches_are_applied_while_state_is_written_and_kept_until_it_is(tmp_path, monkeypatch):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    write, go = one.files.write_segment, threading.Event()

    def slow(stem, increment):
        go.wait()
        return write(stem, increment)

    monkeypatch.setattr(one.files, "write_segment", slow)
    for first in range(0, 30, 10):
        one.process(cells, batch(first, first + 10))
        assert one.settle(cells) is None
        cells.commit()
    assert len(cells.inputs()) == 3
    assert not StateFiles(tmp_path, 0).positions()
    go.set()
    one.wait()
    manifest = one.settle(cells)
    cells.commit()
    assert manifest.positions[LOG].offset == 10  # as it was when the writing began
    assert cells.inputs() == [batch(10, 20), batch(20, 30)]
    again = shard(tmp_path)  # a new worker process, the same Beam state
    process(again, cells, batch(30, 40))
    assert again.counts.reapplied == 2
    assert again.step.times == dict.fromkeys(range(40), 1)


def test_a_full_state_waits_for_what_is_being_written(tmp_path, monkeypatch):
    one, cells = shard(tmp_path, inputs_bytes=2 * len(batch(0, 10))), Cells()
    write, go = one.files.write_segment, threading.Event()

    def slow(stem, increment):
        go.wait()
        return write(stem, increment)

    monkeypatch.setattr(one.files, "write_segment", slow)
    one.process(cells, batch(0, 10))
    assert one.settle(cells) is None  # half of it is full: it is being written
    one.process(cells, batch(10, 20))
    with ThreadPoolExecutor(1) as pool:
        settled = pool.submit(one.settle, cells)
        with pytest.raises(TimeoutError):
            settled.result(timeout=0.05)
        go.set()
        assert settled.result().positions[LOG].offset == 10
    assert cells.inputs() == [batch(10, 20)]
