"""The short form of `make soak`."""

import itertools
import json

import numpy as np
import pytest

from model.threads import threads, use_threads
from schemas.process import UserError
from tests.model import soak_table


@pytest.fixture(autouse=True)
def threads_as_they_were():
    before = threads()
    yield
    use_threads(before)


def test_a_table_lives_through_many_operations(capsys):
    assert soak_table.main(["--operations", "600000", "--seed", "4"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["operations"] >= 600_000 and figures["checks"] > 3
    assert figures["expired"] > 1000 and figures["evicted"] > 1000


def test_a_table_that_is_not_as_it_should_be_is_found(monkeypatch):
    monkeypatch.setattr("model.keyed_rows.Journal.touched_since", lambda *_: np.zeros(0, "int32"))
    with pytest.raises(AssertionError, match="seed 1, operation"):
        soak_table.soak(600_000, seed=1)


def test_a_table_held_to_a_number_of_bytes_that_takes_the_batchs_own_rows_is_found(monkeypatch):
    evict = soak_table.EmbeddingTable._evict

    def of_another_version(table, wanted):
        table.version += 1  # no row is of the batch at work, then
        try:
            return evict(table, wanted)
        finally:
            table.version -= 1

    monkeypatch.setattr(soak_table.EmbeddingTable, "_evict", of_another_version)
    with pytest.raises(AssertionError):
        soak_table.soak(600_000, seed=1)


def test_values_of_a_held_table_that_are_others_are_found(monkeypatch):
    life = soak_table.Soak(values=2_000, seed=2)
    for _ in range(20):
        life.batch()
    life.take()
    life.check()
    row = life.held.touched_since(0)[-1]
    life.held._arena.arrays().floats[row, life.held._arena.layout.values] += 0.5
    with pytest.raises(AssertionError):
        life.check()


def test_memory_that_grows_is_found(monkeypatch):
    growing = itertools.count(10**9, 10**8)
    monkeypatch.setattr(soak_table, "resident_bytes", lambda: next(growing))
    with pytest.raises(UserError, match="memory of the process has grown to 1"):
        soak_table.main(["--operations", "600000", "--seed", "4"])
