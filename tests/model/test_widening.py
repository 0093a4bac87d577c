"""Slots appended to a model that has learned: it predicts as before, and goes on learning."""

from dataclasses import replace

import numpy as np
import pytest

from model.catalogue import Catalogue
from model.snapshot import merge, read_increment, write_increment
from model.trainer import ExampleBatch, Trainer
from model.widening import Widening
from schemas.config import Slot
from tests.model.model_examples import CONFIG, batch_of, ids_of, learned, rows_by_key

COUNTRY, LENGTH = 5, 6
WIDER = replace(
    CONFIG,
    slots=(
        *CONFIG.slots,
        Slot("length", LENGTH, "length", "item", "bag", "int", max_length=2),
        Slot("country", COUNTRY, "country", "user", "id", "int"),
    ),
)
WIDENING = Widening(CONFIG, WIDER)


def test_a_configuration_knows_those_it_has_grown_from():
    assert WIDER.grown_from(CONFIG.fingerprint) == CONFIG
    assert WIDER.grown_from(WIDER.fingerprint) == WIDER
    assert CONFIG.grown_from(WIDER.fingerprint) is None
    assert WIDER.readable_fingerprints >= {CONFIG.fingerprint, WIDER.fingerprint}


def test_ids_move_to_their_new_columns():
    ids = ids_of(np.arange(1, 1 + 2 * CONFIG.width).reshape(2, -1))
    wide = WIDENING.ids(ids)
    assert wide.shape == (2, WIDER.width)
    slots = np.array([WIDER.slot_order[s].slot for s in WIDER.column_slot])
    assert ((wide == 0) == np.isin(slots, (COUNTRY, LENGTH))).all()
    assert (wide[wide != 0] >> 48).tolist() == 2 * slots[~np.isin(slots, (COUNTRY, LENGTH))].tolist()
    np.testing.assert_array_equal(wide[wide != 0].reshape(2, -1), ids)
    sides = [
        WIDENING.ids(part, side) for part, side in zip(np.split(ids, [CONFIG.user_width], 1), ("user", "item"), strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(sides, 1), wide)
    assert Widening(CONFIG, CONFIG).ids(ids) is ids


@pytest.mark.parametrize("hidden", [(8, 4), (6,)])
def test_a_model_with_new_slots_predicts_and_learns_on_as_before(hidden):
    old, new = (replace(config, model=replace(config.model, hidden=hidden)) for config in (CONFIG, WIDER))
    before = learned(6, trainer=Trainer(old, capacity=16))
    after = Trainer(new)
    after.load(merge([before.increment(0)]))
    ids = batch_of(200, 70).ids
    np.testing.assert_allclose(after.predict(WIDENING.ids(ids)), before.predict(ids), rtol=0, atol=1e-6)
    for number in range(6, 9):
        batch = batch_of(64, number, time_ms=1_000 + 20_000 * number)
        before.learn(batch)
        after.learn(replace(batch, ids=WIDENING.ids(batch.ids)))
    np.testing.assert_allclose(after.predict(WIDENING.ids(ids)), before.predict(ids), rtol=0, atol=1e-4)
    # The default rows of the new slots apart.
    assert {key for key in rows_by_key(after) if key > 0} == {key for key in rows_by_key(before) if key > 0}


def test_new_slots_learn():
    trainer = Trainer(WIDER)
    trainer.load(merge([learned(3).increment(0)]))
    ids = WIDENING.ids(batch_of(64, 9).ids)
    country = np.flatnonzero([WIDER.slot_order[s].slot == COUNTRY for s in WIDER.column_slot])[0]
    ids[:, country] = (COUNTRY << 48) | np.arange(1, 65) % 2 + 1
    labels = np.repeat((ids[:, country, None] & 1).astype(np.float32), 2, axis=1)
    for number in range(40):
        times = np.full(64, 100_000 + number)
        trainer.learn(ExampleBatch(ids, labels, np.ones((64, 2), np.float32), np.ones(64, bool), times))
    logits = trainer.predict(ids)[:, 0]
    assert logits[labels[:, 0] > 0].min() > logits[labels[:, 0] == 0].max()
    moved = trainer.network.dense["kernel_0"].reshape(8, WIDER.num_slots, -1)
    assert all(moved[:, at].any() for at, slot in enumerate(WIDER.slot_order) if slot.slot != LENGTH)
    assert not moved[:, [slot.slot == LENGTH for slot in WIDER.slot_order]].any()


def test_a_catalogue_is_widened_and_written_whole(tmp_path):
    names, ids = np.array(["a", "b"], object), batch_of(2, 0).ids
    catalogue = Catalogue(CONFIG)
    catalogue.update(names, ids[:, : CONFIG.user_width], names, ids[:, CONFIG.user_width :], np.array([1, 2]))
    entries = write_increment(tmp_path, "old", catalogue.increment())
    wide = Catalogue(WIDER)
    wide.load(WIDENING.catalogue(read_increment(tmp_path, entries)), durable=False)
    assert wide.users.ids.shape == (2, WIDER.user_width)
    items = wide.items.newest(2)
    assert items.names.tolist() == ["b", "a"]
    np.testing.assert_array_equal(items.ids[:, : CONFIG.item_width], ids[::-1, CONFIG.user_width :])
    assert not items.ids[:, CONFIG.item_width :].any()
    whole = Catalogue(WIDER)
    whole.load(wide.increment())
    np.testing.assert_array_equal(whole.users.ids, wide.users.ids)
    wide.committed()
    assert all(len(part.rows) == 0 for part in wide.increment().keyed.values())
