"""The trainer's verbs: it learns, repeats itself bit by bit, and goes on from any snapshot as if nothing had happened."""

import os
from dataclasses import replace

import numpy as np
import pytest

from model import slices
from model.snapshot import SnapshotError, merge, read_increment, write_increment
from model.trainer import ExampleBatch, Trainer
from schemas.config import Head, OptimizerConfig
from tests.model.model_examples import CONFIG, batch_of, ids_of, learned, rows_by_key, rows_by_number


def test_it_learns():
    trainer = Trainer(CONFIG)
    losses = [trainer.learn(batch_of(256, number, values=12)).loss for number in range(150)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    fresh = batch_of(1000, 999, values=12)
    logits = trainer.predict(fresh.ids)[:, 0]
    positive = fresh.labels[:, 0] > 0
    assert logits[positive].mean() > logits[~positive].mean() + 1


def test_the_same_batches_give_the_same_model():
    one, other = learned(5), learned(5)
    assert rows_by_key(one) == rows_by_key(other)
    np.testing.assert_array_equal(one.network.state()["theta"], other.network.state()["theta"])
    assert rows_by_key(one) != rows_by_key(learned(5, seed=1))


@pytest.mark.parametrize("size", [1, slices.SLICE, slices.SLICE + 1, 2 * slices.SLICE + 3])
def test_threads_change_nothing(size, monkeypatch):
    def two_steps() -> Trainer:
        return learned(2, size=size)

    threaded = two_steps()
    ids = batch_of(size, 7).ids
    predicted = threaded.predict(ids)
    for module in ("trainer", "predictor"):
        monkeypatch.setattr(f"model.{module}.run", lambda function, parts: [function(part) for part in parts])
    alone = two_steps()
    assert rows_by_key(threaded) == rows_by_key(alone)
    np.testing.assert_array_equal(threaded.network.state()["theta"], alone.network.state()["theta"])
    assert predicted.shape == (size, 2)
    np.testing.assert_array_equal(predicted, alone.predict(ids))


def test_a_large_prediction_keeps_no_more_memory_than_its_threads_need(monkeypatch):
    made, aligned = [], slices.aligned
    monkeypatch.setattr("model.slices.aligned", lambda shape: made.append(shape) or aligned(shape))
    trainer = learned(1)
    made.clear()
    assert trainer.predict(batch_of(40 * slices.PREDICTED_SLICE, 3).ids).shape == (40 * slices.PREDICTED_SLICE, 2)
    assert 0 < len(made) <= 2 * (1 + len(os.sched_getaffinity(0)))


def test_predicting_changes_nothing_and_does_not_depend_on_company():
    trainer = learned(6)
    before, ids = rows_by_key(trainer), batch_of(300, 50, values=60).ids
    together = trainer.predict(ids)
    alone = np.concatenate([trainer.predict(ids[at : at + 1]) for at in range(0, 300, 30)])
    np.testing.assert_allclose(alone, together[::30], atol=1e-6)
    assert rows_by_key(trainer) == before
    assert trainer.predict(ids[:0]).shape == (0, 2)


def test_an_example_counts_its_ids_once():
    trainer = Trainer(CONFIG)
    batch = batch_of(1, 0)
    for first in (True, False, False):
        mask = np.array([[first, not first]], np.float32)
        trainer.learn(ExampleBatch(batch.ids, batch.labels, mask, np.array([first]), batch.time_ms))
    rows = trainer.table.export(trainer.table.find(batch.ids[0, :1]))
    assert rows.counts.tolist() == [1]


def test_an_empty_step_and_a_strange_slot_are_refused_before_anything_changes():
    trainer = learned(2)
    before, version = rows_by_key(trainer), trainer.version
    batch = batch_of(4, 0)
    with pytest.raises(ValueError, match="a step without examples"):
        trainer.learn(batch_of(0, 0))
    batch.ids[2, 0] = 77 << 48 | 1
    with pytest.raises(ValueError, match="slot 77, which the feature configuration lacks"):
        trainer.learn(batch)
    assert rows_by_key(trainer) == before
    assert trainer.version == version


def test_a_step_that_is_not_finite_is_told_and_leaves_the_dense_part_alone():
    trainer = learned(3)
    dense = trainer.network.state()["theta"]
    batch = batch_of(32, 3)
    batch.labels[5, 1] = np.nan
    batch.mask[5, 1] = 1
    step = trainer.learn(batch)
    assert not step.finite
    np.testing.assert_array_equal(trainer.network.state()["theta"], dense)
    assert all(np.isfinite(row[0]).all() for row in rows_by_key(trainer).values())
    assert trainer.learn(batch_of(32, 4)).finite


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_it_goes_on_from_a_snapshot_as_if_nothing_had_happened(tmp_path, steps):
    whole, stopped = learned(steps + 6), learned(steps)
    stopped.snapshot(tmp_path / "snapshot")
    restored = Trainer(CONFIG)
    restored.restore(tmp_path / "snapshot")
    assert rows_by_key(restored) == rows_by_key(stopped)
    learned(6, trainer=restored, first=steps)
    assert rows_by_key(restored) == rows_by_key(whole)
    np.testing.assert_array_equal(restored.network.state()["theta"], whole.network.state()["theta"])
    assert (restored.version, restored.newest_event_ms) == (whole.version, whole.newest_event_ms)


def test_rows_without_optimizer_state_are_written_too(tmp_path):
    plain = replace(CONFIG, slots=tuple(replace(slot, optimizer=OptimizerConfig("sgd")) for slot in CONFIG.slots))
    trainer = learned(3, trainer=Trainer(plain))
    assert trainer.table.optimizer_width == 0
    trainer.snapshot(tmp_path / "snapshot")
    restored = Trainer(plain)
    restored.restore(tmp_path / "snapshot")
    assert rows_by_key(restored) == rows_by_key(trainer)


def test_a_snapshot_without_its_list_of_files_is_refused(tmp_path):
    learned(1).snapshot(tmp_path / "snapshot")
    named = tmp_path / "snapshot" / "snapshot.json"
    named.write_text(named.read_text().replace('"bytes": ', '"bytes": 1'))
    with pytest.raises(SnapshotError, match=r"snapshot.json: no list of a snapshot's files \(altered since it was written\)"):
        Trainer(CONFIG).restore(tmp_path / "snapshot")
    named.unlink()
    with pytest.raises(SnapshotError, match=r"snapshot.json: No such file or directory; give the folder of a snapshot"):
        Trainer(CONFIG).restore(tmp_path / "snapshot")


def test_increments_come_to_the_whole(tmp_path):
    trainer, parts, since = Trainer(CONFIG), [], 0
    for number in range(4):
        learned(3, size=64 if number < 3 else 1, trainer=trainer, first=3 * number)
        folder = tmp_path / str(number)
        folder.mkdir()
        parts.append(read_increment(folder, write_increment(folder, "part", trainer.increment(since))))
        since = trainer.version
        trainer.trim(since)
    restored = Trainer(CONFIG)
    restored.load(merge(parts))
    assert rows_by_key(restored) == rows_by_key(trainer)
    ids = batch_of(200, 77).ids
    np.testing.assert_array_equal(restored.predict(ids), trainer.predict(ids))
    assert 0 < len(parts[-1].keyed["table"].rows) < len(rows_by_key(trainer)) // 2


@pytest.mark.parametrize("cuts", [(12,), (3, 6, 12)])
def test_what_has_expired_and_what_is_let_go_next_are_the_same_after_a_restore(tmp_path, cuts):
    def go_on(trainer: Trainer, first: int, end: int) -> Trainer:
        for number in range(first, end):
            trainer.learn(batch_of(512, number, values=3_000, time_ms=1_000 + 15_000 * number))
        return trainer

    whole, stopped, parts, since = go_on(Trainer(CONFIG), 0, 24), Trainer(CONFIG), [], 0
    for cut in cuts:
        entries = write_increment(tmp_path, f"{cut}", go_on(stopped, since, cut).increment(since))
        parts.append(read_increment(tmp_path, entries))
        since = cut
    restored = Trainer(CONFIG)
    restored.load(merge(parts))
    assert rows_by_number(restored) == rows_by_number(stopped)
    go_on(restored, 12, 24)
    assert len(whole.table) > 4_000
    assert whole.table.removed_since(12).size > 100  # the hand has come by
    rows = whole.table.export(whole.table.touched_since(0))
    assert np.count_nonzero(whole.table.find(rows.keys[rows.keys > 0]) <= CONFIG.num_slots) > 100  # and has yet to, here
    assert rows_by_number(restored) == rows_by_number(whole)
    np.testing.assert_array_equal(restored.table.removed_since(12), whole.table.removed_since(12))
    for name, array in whole.increment(0).whole["table"].items():
        np.testing.assert_array_equal(restored.increment(0).whole["table"][name], array, name)


def test_a_snapshot_of_another_model_or_a_cut_file_is_refused(tmp_path):
    learned(2).snapshot(tmp_path / "snapshot")
    deeper = replace(CONFIG, model=replace(CONFIG.model, hidden=(*CONFIG.model.hidden, 8)))
    with pytest.raises(SnapshotError, match="dense parameters instead of .*use the configuration they were made with"):
        Trainer(deeper).restore(tmp_path / "snapshot")
    more_heads = replace(CONFIG, heads=(*CONFIG.heads, Head("share", "share", 60.0)))
    rarer = replace(CONFIG, slots=tuple(replace(slot, admission=slot.admission + 1) for slot in CONFIG.slots))
    for other in (more_heads, rarer):
        with pytest.raises(SnapshotError, match="has not grown from: use the configuration it was made with"):
            Trainer(other).restore(tmp_path / "snapshot")
    file = max((tmp_path / "snapshot").iterdir(), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(SnapshotError, match=file.name):
        Trainer(CONFIG).restore(tmp_path / "snapshot")
    with pytest.raises(FileExistsError):
        learned(1).snapshot(tmp_path / "snapshot")


def test_warming_up_learns_nothing():
    trainer = learned(2)
    before, dense = rows_by_key(trainer), trainer.network.state()
    trainer.warm_up((64, slices.SLICE + 1))
    assert rows_by_key(trainer) == before
    for name, array in trainer.network.state().items():
        np.testing.assert_array_equal(array, dense[name])


def test_ids_below_admission_share_a_row_that_learns():
    trainer = Trainer(CONFIG)
    video = ids_of(np.array([[1, 0, 0, 0, 5, 0, 0]]))
    default = trainer.table.find(video[0, 4:5])
    batch = ExampleBatch(video, np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), np.ones(1, bool), np.array([10]))
    trainer.learn(batch)
    assert trainer.table.find(video[0, 4:5]).tolist() == default.tolist()
    assert trainer.table.export(default).values.any()
    trainer.learn(batch)
    assert trainer.table.find(video[0, 4:5]).tolist() != default.tolist()
