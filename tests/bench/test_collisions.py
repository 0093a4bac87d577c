"""The collisions benchmark: the paper's Table 1 to the id, arms that differ in nothing else, and what it writes."""

import json

import numpy as np
import pytest

from bench import collisions
from bench.collisions import PAPER_MOVIES, PAPER_SPACE, PAPER_USERS, as_full, compare, learn, md5_modulo, meetings, simulated
from schemas.process import UserError


@pytest.mark.parametrize(("ids", "left"), [(PAPER_USERS, 149_970), (PAPER_MOVIES, 57_361)])
def test_the_papers_table_1(ids, left):
    assert np.unique(md5_modulo(ids, PAPER_SPACE)).size == left


@pytest.mark.parametrize(("of_paper", "met"), [(PAPER_USERS, 0.0773), (PAPER_MOVIES, 0.0286)])
@pytest.mark.parametrize("count", [20_000, 300_000])
def test_as_many_ids_meet_in_a_space_that_is_as_full(count, of_paper, met):
    places = md5_modulo(count, as_full(count, of_paper))
    assert 1 - np.unique(places).size / count == pytest.approx(met, abs=0.004)


def test_arms_differ_in_nothing_but_where_ids_go():
    log = simulated(seed=3, rows=6_000)
    own = np.arange(log.user.max() + 1), np.arange(log.video.max() + 1)
    renamed = own[0][::-1].copy() + 7, own[1] + 10_000
    assert learn(log, own, seed=1)[0] == learn(log, own, seed=1)[0]
    assert learn(log, own, seed=1)[0] == pytest.approx(learn(log, renamed, seed=1)[0], abs=0.02)
    met = compare("simulator", log, seed=1)
    assert met["collisionless"] == learn(log, own, seed=1)[0]
    assert met["collisionless_rows"] == met["users"] + met["videos"]
    apart = round(met["users"] * (1 - met["users_met"])) + round(met["videos"] * (1 - met["videos_met"]))
    assert met["hashed_rows"] == apart < met["collisionless_rows"]


def test_strings_that_meet_are_counted(monkeypatch):
    assert meetings(1000)["hash48_pairs"] == 0
    monkeypatch.setattr(collisions, "hash_strings", lambda strings: np.arange(len(strings)) % (len(strings) // 3))
    assert meetings(9)["hash48_pairs"] == 9  # three times three alike
    assert meetings(2**20)["hash48_pairs_expected"] == pytest.approx(2**40 / 2**49, abs=1e-4)


def test_it_writes_figures_and_a_plot(capsys, tmp_path):
    quick = ("--no_kuairand", "--seeds", "2", "--rows", "4000", "--strings", "1000")
    assert collisions.main([*quick, "--out", str(tmp_path)]) == 0
    fields = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0.4 < fields["auc_collisionless"] < 0.8 and 0.4 < fields["auc_hashed"] < 0.8
    assert fields["auc_difference"] == pytest.approx(fields["auc_collisionless"] - fields["auc_hashed"], abs=2e-6)
    assert fields["auc_difference_se"] > 0
    assert (tmp_path / "collisions.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="--seeds 1: a standard error needs 2"):
        collisions.main(["--seeds", "1"])
