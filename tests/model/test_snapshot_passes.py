"""The passes of a snapshot: whatever is learned between any two chunks of them, it is of the moment at which it is closed."""

import numpy as np
import pytest

from model.table_rows import TableRows
from model.trainer import Trainer
from model.walk import Walk
from tests.model.held_model import bytes_for
from tests.model.model_examples import CONFIG, batch_of, rows_by_number

_CHUNK, _VALUES = 12, 300
_EVERY = 3  # steps from one batch to the next: too few to touch as much as is copied meanwhile, so that passes shrink
_ROOM = 500  # ids of a table that must evict: about half of those that come
_AMID = ("admit", "update", "expire")  # a batch's calls to the table, before any of which a chunk may be copied


class _Disturbed(Walk):
    """A walk whose own thread learns between its steps, or takes one amid a batch, so that every run is the same.

    Ids come anew, come again, outlive their time or are evicted, and come back. Changes are forgotten as soon as the trainer
    allows it.

    Attributes:
        places: (key, row) of all that was copied, pass by pass.
        amid: passes of which a chunk was copied amid a batch.
    """

    def __init__(self, trainer: Trainer, seed: int) -> None:
        super().__init__(trainer.table, _CHUNK)
        self._trainer, self._rng = trainer, np.random.default_rng(seed)
        self._time_ms, self._steps = trainer.newest_event_ms, 0
        self.places: dict[int, set[tuple[int, int]]] = {}
        self.amid: set[int] = set()

    def step(self) -> TableRows | None:
        self._steps += 1
        if self._steps % _EVERY:
            rows = super().step()
        elif self._steps % 2:
            self._learn()
            rows = super().step()
        else:
            rows = self._step_amid_a_batch(str(self._rng.choice(_AMID)))
            self.amid.add(self.reached)
        if rows is None:
            self._learn()  # the snapshot is closed later than that
        else:
            copied = zip(rows.keys.tolist(), rows.numbers.tolist(), strict=True)
            self.places.setdefault(self.reached, set()).update(copied)
        return rows

    def _step_amid_a_batch(self, call: str) -> TableRows | None:
        taken: list[TableRows | None] = []
        called = getattr(self._trainer.table, call)

        def after_a_step(*args):
            taken.append(super(_Disturbed, self).step())
            return called(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._trainer.table, call, after_a_step)
            self._learn()
        return taken[0]

    def _learn(self) -> None:
        self._time_ms += int(self._rng.choice([-5_000, 1_000, 30_000]))
        size, seed = (int(x) for x in self._rng.integers(1, [4, 1 << 30]))
        self._trainer.learn(batch_of(size, seed, _VALUES, self._time_ms))
        self._trainer.trim(self._trainer.version)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("room", [None, _ROOM])
def test_a_snapshot_is_the_table_of_its_last_moment_whatever_is_learned_between_its_chunks(tmp_path, monkeypatch, room, seed):
    trainer = Trainer(CONFIG, capacity=1, table_bytes=room and bytes_for(CONFIG, room))
    trainer.learn(batch_of(600, seed, _VALUES))
    monkeypatch.setattr("model.trainer.Walk", lambda _: walks[0])
    walks = [_Disturbed(trainer, seed)]
    trainer.snapshot(tmp_path / "snapshot")  # nothing is learned after its end: it is to hold what the trainer holds now
    check_that_it_was_disturbed(trainer, walks[0])
    restored = Trainer(CONFIG, capacity=1, table_bytes=room and bytes_for(CONFIG, room))
    restored.restore(tmp_path / "snapshot")
    check_same(restored, trainer)
    for number in range(5):  # and it goes on as the other does, new rows in the same places included
        batch = batch_of(40, 1000 + number, _VALUES, trainer.newest_event_ms + 20_000)
        assert (restored.learn(batch).logits == trainer.learn(batch).logits).all()
    check_same(restored, trainer)


def check_same(restored, trainer):
    assert restored.version == trainer.version and restored.newest_event_ms == trainer.newest_event_ms
    assert rows_by_number(restored) == rows_by_number(trainer)
    for states in ((restored.table.state(), trainer.table.state()), (restored.network.state(), trainer.network.state())):
        assert states[0].keys() == states[1].keys()
        for name, array in states[0].items():
            np.testing.assert_array_equal(array, states[1][name], name)
    since = trainer.table.trimmed
    assert sorted(restored.table.touched_since(since).tolist()) == sorted(trainer.table.touched_since(since).tolist())
    assert sorted(restored.table.removed_since(since).tolist()) == sorted(trainer.table.removed_since(since).tolist())


def check_that_it_was_disturbed(trainer, walk):
    """All that a snapshot could get wrong has happened: otherwise it would prove nothing."""
    assert len(walk.places) >= 3, "too few passes"
    assert len(walk.amid) >= 2, "too few passes that a batch was under way in"
    first, *later = walk.places.values()
    copied = set.union(first, *later)
    removed, last = (set(trainer.table.removed_since(version).tolist()) for version in (walk.since, walk.reached))
    assert (removed - last) & {key for key, _ in copied}, "no row that was copied left before the last pass began"
    rows_of, keys_of = (len({place[column] for place in copied}) for column in (1, 0))
    assert rows_of < len(copied), "no row was taken by another id"
    assert keys_of < len(copied), "no id came back in another row"
    assert trainer.table.touched_since(walk.reached).size, "nothing was left to the end"
    assert all(places - first for places in later), "a pass copied nothing new"
