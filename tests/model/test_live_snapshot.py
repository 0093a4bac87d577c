"""Snapshots of a trainer: written while it learns, whole or not at all, taken by shards."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import numpy as np
import pytest

from model.table import EmbeddingTable
from model.table_rows import TableRows
from model.trainer import Trainer
from model.walk import Walk
from tests.model.model_examples import CONFIG, learned, rows_by_key, rows_by_number


def test_a_snapshot_taken_while_another_thread_learns_is_of_one_moment(tmp_path, monkeypatch):
    monkeypatch.setattr("model.trainer.Walk", partial(Walk, chunk=50))
    trainer, walked = learned(4, size=512), Walk.step
    turns: SimpleQueue[str] = SimpleQueue()
    go: SimpleQueue[None] = SimpleQueue()

    def step(walk):
        rows = walked(walk)
        turns.put("copied")
        go.get()
        return rows

    monkeypatch.setattr(Walk, "step", step)
    with ThreadPoolExecutor(1) as pool:
        snapshot = pool.submit(trainer.snapshot, tmp_path / "snapshot")
        snapshot.add_done_callback(lambda _: turns.put("done"))
        for _ in iter(turns.get, "done"):  # between any two chunks something is learned
            learned(1, size=64, trainer=trainer, first=trainer.version)
            trainer.trim(trainer.version)
            go.put(None)
    restored = Trainer(CONFIG)
    assert snapshot.result() is None
    restored.restore(tmp_path / "snapshot")
    assert 8 < restored.version <= trainer.version
    undisturbed = learned(4, size=512)
    learned(restored.version - 4, size=64, trainer=undisturbed, first=4)
    assert rows_by_number(restored) == rows_by_number(undisturbed)
    np.testing.assert_array_equal(restored.network.state()["theta"], undisturbed.network.state()["theta"])
    trainer.trim(trainer.version)
    assert trainer.table.trimmed == trainer.version  # nothing is kept for a snapshot that has been written


def test_nothing_is_left_of_a_snapshot_that_the_disk_refuses(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.trainer.write_increment", full)
    with pytest.raises(OSError, match="No space left"):
        learned(1).snapshot(tmp_path / "snapshot")
    assert not list(tmp_path.iterdir())


def test_shards_share_the_rows_of_a_snapshot_and_come_together_again(tmp_path):
    whole = learned(6)
    whole.snapshot(tmp_path / "snapshot")
    shards = []
    for number in range(3):
        shards.append(Trainer(CONFIG, capacity=1))
        shards[-1].restore(tmp_path / "snapshot", shard=(number, 3))
    parts = [rows_by_key(shard) for shard in shards]
    assert sum(map(len, parts)) == len(rows_by_key(whole)) + 2 * CONFIG.num_slots  # each has the default rows
    assert parts[0] | parts[1] | parts[2] == rows_by_key(whole)
    rows = [shard.table.export(shard.table.touched_since(0)) for shard in shards]
    together = EmbeddingTable(CONFIG)
    together.restore(TableRows.union(rows), shards[0].table.state(), whole.version, shard=(0, 1))
    again = together.export(together.touched_since(0))
    assert dict(zip(again.keys.tolist(), again.values.tolist(), strict=True)) == {
        key: list(row[0]) for key, row in rows_by_key(whole).items()
    }
    learned(1, trainer=shards[1], first=6)
    with pytest.raises(ValueError, match="shard 3 of 3: shards count from 0"):
        Trainer(CONFIG).restore(tmp_path / "snapshot", shard=(3, 3))
