"""The table's benchmark, small, without peers: what is promised is there, and counts what happened."""

import json

import numpy as np
import pytest

from bench import table, table_life
from bench.table_peers import draw, ids_of
from schemas.process import UserError


def test_it_measures_every_part(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(table, "_PEERS", tmp_path / "none")
    sizes = ("--keys", "60000", "--batch", "256", "--threads", "2", "--rounds", "1", "--most_keys", "67000")
    assert table.main([*sizes, "--inserts", "60000", "--table_bytes", "4000000", "--steps", "20"]) == 0
    fields = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name.split("/")[0] for name in fields["ours"]} == {"lookup", "sgd", "adam"}
    assert all(rate > 0 for rate in fields["ours"].values())
    assert fields["bytes_per_key"] > 0 and len(fields["bytes_per_key_by_size"]) == 2
    assert fields["inserts"] == 60_000 and fields["insert_evicted"] > 10_000
    assert fields["learn_p99_us"] >= fields["learn_p50_us"] > 0


def test_the_life_that_is_timed_grows_expires_and_is_copied():
    (row,), _ = table_life.latency(60)
    assert row["expired"] > 0 and row["copied"] > row["rows"] and row["walks"] > 0


@pytest.mark.parametrize("distribution", ["uniform", "zipf"])
def test_drawn_ids_are_keys_of_users_and_items_in_turn(distribution):
    numbers = draw(np.random.default_rng(0), distribution, 1000, 20_000)
    assert numbers.min() >= 0 and numbers.max() < 1000
    often = np.bincount(numbers).max() / numbers.size
    assert (often > 0.05) == (distribution == "zipf")
    slots, values = np.divmod(ids_of(numbers, packed=True), 1 << 48)
    assert slots.tolist() == [1, 2] * 10_000
    assert (values == numbers + 1).all()
    plain = ids_of(numbers, packed=False)
    assert np.unique(plain).size == np.unique(ids_of(numbers, packed=True)).size and plain.min() > 0


def test_an_unknown_part_is_named():
    with pytest.raises(UserError, match="--only sped: sped is unknown"):
        table.main(["--only", "sped"])
