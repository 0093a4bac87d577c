"""The short form of `make soak`."""

import json

import pytest

from model.threads import threads, use_threads
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
    monkeypatch.setattr("model.keyed_rows.Journal.touched_since", lambda *_: soak_table.np.zeros(0, "int32"))
    with pytest.raises(AssertionError, match="seed 1, operation"):
        soak_table.soak(600_000, seed=1)
