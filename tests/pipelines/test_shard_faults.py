"""A shard whose disk, memory or rivals fail it between any two of its writes: what is counted, left behind and gone on from."""

import threading

import pytest
from tally import LOG, Cells, batch, process, settle, shard

from pipelines.batches import Final
from pipelines.state_files import StateError, StateFiles


def full(*_, **__):
    raise OSError(28, "No space left on device")


def names(files, pattern="*"):
    return sorted(path.name for path in files.directory.glob(pattern))


def held(monkeypatch, files):
    """Segments are written only once the event returned is set."""
    write, go = files.write_segment, threading.Event()

    def slow(stem, increment):
        go.wait()
        return write(stem, increment)

    monkeypatch.setattr(files, "write_segment", slow)
    return go


def test_a_manifest_with_a_changed_digit_is_passed_over_by_name(tmp_path, caplog):
    one, cells = shard(tmp_path), Cells()
    process(one, cells, batch(0, 10, Final.STOP))
    newest = process(one, cells, batch(10, 20, Final.STOP))[1]
    path = one.files.directory / newest.name
    path.write_text(path.read_text().replace("[20, 20]", "[21, 20]"))
    assert StateFiles(tmp_path, 0).newest()[0].positions[LOG].offset == 10
    assert StateFiles(tmp_path, 0).positions()[LOG].offset == 10
    reasons = {record.reason for record in caplog.records if "passed over" in record.message}
    assert reasons == {f"{path}: not a manifest (altered since it was written); restore the file or remove it"}


def test_young_files_are_kept_though_no_manifest_names_them(tmp_path):
    """An attempt that was overtaken, and does not know it, is about to name what it has written."""
    one, cells = shard(tmp_path, snapshot_interval_s=0.0, retention_s=0.0), Cells()
    one.process(cells, batch(0, 10))
    one.settle(cells)
    one.wait()  # its segment is there, its manifest is not
    other = shard(tmp_path, snapshot_interval_s=0.0, retention_s=0.0)
    successor = Cells()
    for first in range(0, 50, 10):
        process(other, successor, batch(first, first + 10))
    manifest = one.settle(cells)
    assert one.files.load(one.files.read(manifest.name)).keyed["tally"].rows.num_rows == 10


def test_a_manifest_that_would_name_a_missing_file_is_not_written(tmp_path):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    process(one, cells, batch(0, 10))
    one.process(cells, batch(10, 20))
    one.settle(cells)
    one.wait()
    (written,) = set(names(one.files, "*-tally.keyed.arrow")) - {one._manifest.segments[0][0].name}
    (one.files.directory / written).unlink()
    assert one.settle(cells) is None
    assert one.counts.snapshot_failures == 1 and len(names(one.files, "manifest*")) == 1
    process(one, cells, batch(20, 30))
    again = shard(tmp_path)
    process(again, Cells(), batch(30, 40))
    assert again.step.times == dict.fromkeys(range(40), 1)


def test_a_manifest_that_the_disk_refuses_leaves_nothing_and_costs_no_base(tmp_path, monkeypatch):
    one, cells, at = shard(tmp_path, snapshot_interval_s=0.0), Cells(), 0
    while one._bases.stem is None:
        process(one, cells, batch(at, at + 10))
        at += 10
    one._bases.wait()
    before = names(one.files)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.state_files.replace_file", full)
        assert process(one, cells, batch(at, at + 10))[1] is None
    assert one.counts.snapshot_failures == 1 and names(one.files) == before
    manifest = process(one, cells, batch(at + 10, at + 20))[1]
    assert len(manifest.segments) == 2 and "-base-" in manifest.segments[0][0].name
    assert one.counts.merge_failures == 0
    again = shard(tmp_path)
    process(again, Cells(), batch(at + 20, at + 30))
    assert again.step.times == dict.fromkeys(range(at + 30), 1)


@pytest.mark.parametrize("needed", [False, True])
def test_memory_that_runs_out_while_state_is_written_is_a_snapshot_that_failed(tmp_path, monkeypatch, needed):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    process(one, cells, batch(0, 10))
    before = names(one.files)

    def out_of_memory(_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("model.snapshot._arrays_to_table", out_of_memory)  # of the second of its two files
        if needed:
            with pytest.raises(StateError, match="out of memory; free space and start again: nothing is lost"):
                process(one, cells, batch(10, 20, Final.STOP))
        else:
            assert process(one, cells, batch(10, 20))[1] is None
    assert one.counts.snapshot_failures == 1 and names(one.files) == before
    process(one, cells, batch(20, 30))
    again = shard(tmp_path)
    process(again, Cells(), batch(30, 40))
    assert again.step.times == dict.fromkeys(range(40), 1)


def test_what_beam_keeps_is_counted_again_where_a_bundle_fails_after_its_manifest(tmp_path):
    size = len(batch(0, 10))
    one, cells = shard(tmp_path, inputs_bytes=4 * size), Cells()
    process(one, cells, batch(0, 10))
    cells.commit()
    one.process(cells, batch(10, 20))  # half of what may be kept: state is written
    cells.commit()
    assert settle(one, cells) is not None and not cells.inputs()
    cells.rollback()  # the bundle that held the manifest's name failed
    for first in range(20, 100, 10):
        process(one, cells, batch(first, first + 10))
        cells.commit()
        assert sum(map(len, cells.inputs())) == one._inputs_bytes <= 4 * size
    assert one.counts.restores == 0
    assert one.step.times == dict.fromkeys(range(100), 1)


def test_a_bundle_that_fails_while_state_is_written_is_restored_without_it(tmp_path, monkeypatch):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    process(one, cells, batch(0, 10))
    cells.commit()
    go = held(monkeypatch, one.files)
    one.process(cells, batch(10, 20))
    assert one.settle(cells) is None
    cells.rollback()
    one.process(cells, batch(10, 20))  # restored, though the segment of the state that was is still being written
    assert one.counts.restores == 1
    go.set()
    manifest = settle(one, cells)
    cells.commit()
    assert manifest.positions[LOG].offset == 20
    again = shard(tmp_path)
    process(again, Cells(), batch(20, 30))
    assert one.step.times == dict.fromkeys(range(20), 1)
    assert again.step.times == dict.fromkeys(range(30), 1)


def test_two_attempts_that_live_at_once_leave_states_that_are_whole(tmp_path):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0, retention_s=0.0), Cells()
    process(one, cells, batch(0, 10))
    cells.commit()
    other, successor = shard(tmp_path, snapshot_interval_s=0.0, retention_s=0.0), Cells()
    successor.durable = cells.durable
    successor.rollback()
    for first in range(10, 60, 10):
        for each, its in ((one, cells), (other, successor)):
            manifest = process(each, its, batch(first, first + 10))[1]
            its.commit()
            assert each.files.load(manifest).keyed["tally"].rows.num_rows == first + 10
    again = shard(tmp_path)
    process(again, Cells(), batch(60, 70))
    assert again.step.times == dict.fromkeys(range(70), 1)


def test_a_last_batch_waits_for_the_state_being_written_and_says_that_the_disk_is_full(tmp_path, monkeypatch):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    process(one, cells, batch(0, 10))
    cells.commit()
    go = held(monkeypatch, one.files)
    one.process(cells, batch(10, 20))
    assert one.settle(cells) is None
    one.process(cells, batch(20, 30, Final.STOP))
    go.set()
    with monkeypatch.context() as patch:
        patch.setattr("model.snapshot._write", full)
        with pytest.raises(StateError, match="No space left on device; free space and start again: nothing is lost"):
            one.settle(cells)
    cells.rollback()
    manifest = process(one, cells, batch(10, 30, Final.STOP))[1]
    assert manifest.positions[LOG].offset == 30
    assert shard(tmp_path).files.newest()[1].keyed["tally"].rows.num_rows == 30
