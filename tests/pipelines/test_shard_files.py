"""A shard's files: bases, what is refused or removed, and which manifest is gone on from."""

import os

import numpy as np
import pytest
from tally import LOG, Cells, batch, process, settle, shard

from model.snapshot import Increment, verify
from pipelines.bases import Bases
from pipelines.batches import Final
from pipelines.state_files import StateError, StateFiles


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


def in_the_way(files, name):
    """A directory where a file would be: the system refuses, whoever asks."""
    path = files.directory / name
    path.mkdir()
    return path


def refuse(monkeypatch, files, part, base):
    """The next segment, or base, finds a directory in the way of one of its files; its name is put into the list returned."""
    obstacles, write = [], files.write_segment

    def refused(stem, increment):
        if stem.endswith("-base") == base and not obstacles:
            obstacles.append(in_the_way(files, f"{stem}-{part}"))
        return write(stem, increment)

    monkeypatch.setattr(files, "write_segment", refused)
    return obstacles


def test_a_snapshot_that_is_refused_costs_no_example_and_leaves_nothing(tmp_path, monkeypatch):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    process(one, cells, batch(0, 10))
    one.process(cells, batch(10, 20))
    # The second of its two files cannot be written.
    obstacles = refuse(monkeypatch, one.files, "digest.whole.arrow", base=False)
    assert settle(one, cells) is None
    assert one.counts.snapshot_failures == 1
    (path,) = obstacles
    stem = path.name.removesuffix("-digest.whole.arrow")
    assert [each.name for each in one.files.directory.glob(f"{stem}*")] == [path.name]
    path.rmdir()
    process(one, cells, batch(20, 30))
    again = shard(tmp_path)
    process(again, Cells(), batch(30, 40))
    assert again.step.times == dict.fromkeys(range(40), 1)


def remove(monkeypatch, files):
    """The next merge misses a file, and finds it again the time after; its name is put into the list returned."""
    removed, load = [], files.load

    def missed(manifest):
        if removed:
            return load(manifest)
        path = files.directory / manifest.segments[0][0].name
        removed.append(path)
        kept = path.rename(path.with_suffix(".kept"))
        try:
            return load(manifest)
        finally:
            kept.rename(path)

    monkeypatch.setattr(files, "load", missed)
    return removed


@pytest.mark.parametrize("harm", ["refuse", "remove"])
def test_a_merge_that_fails_costs_no_snapshot_and_comes_again(tmp_path, caplog, monkeypatch, harm):
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    harmed, at = [], 0
    if harm == "refuse":
        harmed = refuse(monkeypatch, one.files, "tally.keyed.arrow", base=True)
    else:
        harmed = remove(monkeypatch, one.files)
    while one._bases.stem is None:
        one.process(cells, batch(at, at + 10))
        at += 10
        manifest = settle(one, cells)
    one._bases.wait()
    process(one, cells, batch(at, at + 10))
    assert (one.counts.merge_failures, one.counts.snapshot_failures) == (1, 0)
    assert len(one._manifest.segments) == len(manifest.segments) + 1
    (said,) = [record for record in caplog.records if "merging" in record.message]
    (path,) = harmed
    assert path.name in said.reason
    if harm == "refuse":
        path.rmdir()
    at += 10
    while len(one._manifest.segments) > 2:
        process(one, cells, batch(at, at + 10))
        at += 10
        one._bases.wait()
    again = shard(tmp_path)
    process(again, Cells(), batch(at, at + 10))
    assert again.step.times == dict.fromkeys(range(at + 10), 1)


def test_two_merges_of_one_manifest_do_not_meet(tmp_path):
    """A worker that has been replaced may still be merging what its successor merges, too."""
    one, cells = shard(tmp_path, snapshot_interval_s=0.0), Cells()
    at = 0
    while one._bases.stem is None:
        _, manifest = process(one, cells, batch(at, at + 10))
        at += 10
    stems = {one._bases.stem}
    one._bases.wait()
    attempts = [Bases(StateFiles(tmp_path, 0), again_s=0.0) for _ in range(4)]
    for bases in attempts:
        bases.start_if_due(manifest)
        stems.add(bases.stem)
    assert len(stems) == 5
    for bases in attempts:
        bases.wait()
        (merged,) = bases.merged(manifest.segments)
        verify(one.files.directory, merged)
        assert bases.failures == 0


def test_no_segment_overwrites_another(tmp_path):
    files, segment = StateFiles(tmp_path, 0), Increment({}, {"digest": {"digest": np.arange(3)}})
    entries = files.write_segment("one", segment)
    with pytest.raises(FileExistsError):
        files.write_segment("one", segment)
    verify(files.directory, entries)


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


def test_old_files_that_cannot_be_removed_cost_no_snapshot(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("pipelines.state_files._YOUNG_S", 0.0)
    one, cells = shard(tmp_path, snapshot_interval_s=0.0, retention_s=0.0, inputs_bytes=1), Cells()
    first = process(one, cells, batch(0, 10))[1]
    in_the_way(one.files, "stranger-tally.keyed.arrow")
    old = one.files.directory / first.name
    os.utime(one.files.directory / "stranger-tally.keyed.arrow", (0, 0))
    assert process(one, cells, batch(10, 20))[1] is not None
    assert one.counts.snapshot_failures == 0
    assert not cells.inputs()
    (said,) = [record for record in caplog.records if "not removed" in record.message]
    assert "stranger" in said.reason
    process(one, cells, batch(20, 30))
    assert not old.exists()


def test_a_pinned_manifest_is_kept_with_its_files_until_its_pin_goes(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.state_files._YOUNG_S", 0.0)
    one, cells = shard(tmp_path, snapshot_interval_s=0.0, retention_s=0.0), Cells()
    pinned = process(one, cells, batch(0, 10))[1]
    one.files.pin([pinned.name])
    for first in range(10, 300, 10):
        process(one, cells, batch(first, first + 10))
        one._bases.wait()
    assert one.files.manifests() == [pinned.name, one._manifest.name]
    assert one.files.load(one.files.read(pinned.name)).keyed["tally"].rows.num_rows == 10
    (one.files.directory / f"{pinned.name}.pin").unlink()
    process(one, cells, batch(300, 310))
    assert one.files.manifests() == [one._manifest.name]


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
