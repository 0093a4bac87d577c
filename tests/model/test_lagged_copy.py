"""A copy fed by deltas predicts as the trainer did at that version, whatever came between."""

from dataclasses import replace

import numpy as np
import pytest

from model.delta import Delta
from model.lagged_copy import LaggedCopy
from model.trainer import Trainer
from tests.model.model_examples import CONFIG, batch_of, learned

IDS = batch_of(300, 1234, values=60).ids


def assert_same(copy: LaggedCopy, trainer: Trainer) -> None:
    np.testing.assert_array_equal(copy.predict(IDS), trainer.predict(IDS))
    assert copy.version == trainer.version


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_it_follows_the_trainer(interval):
    trainer, copy = Trainer(CONFIG), LaggedCopy(CONFIG)
    for first in range(0, 20, interval):
        learned(interval, trainer=trainer, first=first)
        copy.apply(trainer.delta(copy.version))
        assert_same(copy, trainer)


@pytest.mark.parametrize("interval", [1, 4])
def test_rows_past_their_time_that_were_not_let_go_are_read_as_the_trainer_reads_them(interval):
    trainer, copy, other = Trainer(CONFIG), LaggedCopy(CONFIG), LaggedCopy(CONFIG)
    ids = batch_of(2_000, 99, values=3_000).ids
    for number in range(12):
        trainer.learn(batch_of(512, number, values=3_000, time_ms=1_000 + 15_000 * number))
        if number % interval == interval - 1:
            copy.apply(trainer.delta(copy.version))
            np.testing.assert_array_equal(copy.predict(ids), trainer.predict(ids))
    keys = trainer.table.export(trainer.table.touched_since(0)).keys
    assert np.count_nonzero(trainer.table.find(keys[keys > 0]) <= CONFIG.num_slots) > 100
    other.load(copy.state())
    np.testing.assert_array_equal(other.predict(ids), trainer.predict(ids))


def test_it_stays_where_it_was_until_the_next_delta():
    trainer, copy = learned(3), LaggedCopy(CONFIG)
    copy.apply(trainer.delta(0))
    before = trainer.predict(IDS)
    learned(4, trainer=trainer, first=3)
    np.testing.assert_array_equal(copy.predict(IDS), before)
    assert not np.array_equal(trainer.predict(IDS), before)


def test_a_delta_costs_what_was_touched():
    trainer = learned(30, size=256)
    few = batch_of(2, 5)
    trainer.learn(few)
    delta = trainer.delta(trainer.version - 1)
    assert 0 < len(delta.keys) <= len(np.unique(few.ids)) + CONFIG.num_slots
    assert len(delta.keys) < len(trainer.table) // 4


def test_a_gap_is_refused_and_a_repetition_changes_nothing():
    trainer, copy = learned(2), LaggedCopy(CONFIG)
    first = trainer.delta(0)
    learned(2, trainer=trainer, first=2)
    second = trainer.delta(2)
    with pytest.raises(ValueError, match="a delta from version 2 for a copy at 0: apply those between first"):
        copy.apply(second)
    for delta in (first, first, second, first, second):
        copy.apply(delta)
    assert_same(copy, trainer)


def test_a_reader_of_before_the_trim_gets_everything():
    trainer, copy = learned(5), LaggedCopy(CONFIG)
    copy.apply(trainer.delta(0))
    learned(10, trainer=trainer, first=5)
    trainer.trim(12)
    delta = trainer.delta(copy.version)
    assert delta.from_version == 0
    copy.apply(delta)
    assert_same(copy, trainer)


def test_deltas_go_on_across_a_restart(tmp_path):
    trainer, copy = learned(12), LaggedCopy(CONFIG)
    copy.apply(trainer.delta(0))
    learned(6, trainer=trainer, first=12)
    restored = Trainer(CONFIG)
    trainer.snapshot(tmp_path / "s")
    restored.restore(tmp_path / "s")
    delta = restored.delta(copy.version)
    assert delta.from_version == copy.version
    copy.apply(delta)
    assert_same(copy, restored)


def test_a_delta_of_another_configuration_is_refused():
    copy = LaggedCopy(replace(CONFIG, slots=CONFIG.slots[:-1]))
    with pytest.raises(ValueError, match=f"a delta of feature configuration {CONFIG.fingerprint} .*: use the configuration"):
        copy.apply(learned(1).delta(0))
    assert copy.version == 0


def test_its_state_and_a_delta_survive_writing():
    trainer, copy, other = learned(8), LaggedCopy(CONFIG), LaggedCopy(CONFIG)
    copy.apply(Delta.from_record(trainer.delta(0).to_record()))
    other.load(copy.state())
    assert_same(copy, trainer)
    assert_same(other, trainer)
