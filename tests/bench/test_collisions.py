"""The collisions benchmark: the paper's own numbers, arms that nothing but collisions part, and all that is promised."""

import json
from collections import Counter
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
from test_benchmarks import write_kuairand

from bench import collisions
from bench.collisions_arms import RATES, Comparison, Learned, examples_of, hashed_arm, learn, paper_space
from bench.collisions_chart import need_place
from bench.collisions_hashing import PAPER_SPACE, digests, hashed, left, merged, space_for, string_meetings
from model.feature_ids import hash_strings
from pipelines.datasets import SimulatorOptions, simulate
from schemas.process import UserError

APART = 1 << 31  # so large a space that some hundreds of ids do not meet in it


WORLD = SimulatorOptions(users=400, days=0.5, requests=600, seed=1)


@pytest.fixture(scope="module")
def examples(simulator_config):
    return examples_of(simulator_config, simulate(WORLD).events)


def test_the_hashing_gives_table_1_exactly():
    numbers = digests(162_541)
    assert left(numbers, PAPER_SPACE) == 149_970
    assert left(numbers[:59_047], PAPER_SPACE) == 57_361


@pytest.mark.parametrize("space", [1, 7, PAPER_SPACE, (1 << 31) - 1, 1 << 31])
def test_the_hashing_is_md5_modulo_the_space(space):
    assert hashed(digests(300), space).tolist() == [int(md5(str(i).encode()).hexdigest(), 16) % space for i in range(300)]


@pytest.mark.parametrize("space", [0, (1 << 31) + 1])
def test_a_space_that_no_product_fits_is_refused(space):
    with pytest.raises(ValueError, match="use 1 to"):
        hashed(digests(3), space)


@pytest.mark.parametrize("rate", [*RATES.values(), 0.3])
@pytest.mark.parametrize("ids", [40, 777, 8_250, 25_156])
def test_the_space_loses_the_wanted_share(ids, rate):
    numbers = digests(ids)
    assert ids - left(numbers, space_for(numbers, rate)) == round(ids * rate)


@pytest.mark.parametrize("rate", [0.0, 0.51])
def test_a_rate_that_no_space_has_is_refused(rate):
    with pytest.raises(ValueError, match="collision rate"):
        space_for(digests(10), rate)


def test_ids_that_meet_are_one_and_others_stay_as_they_are():
    ids = np.random.default_rng(0).integers(0, 1 << 60, 500).repeat(3)
    new, how = merged(ids, lambda numbers: 900, np.random.default_rng(5))
    assert (how.ids, how.space, how.left) == (500, 900, left(digests(500), 900))
    assert how.left < 450
    assert np.unique(new).size == how.left
    # One id is always the same id afterwards; what several became is one of them, and has stayed as it was.
    pairs = Counter(zip(ids.tolist(), new.tolist(), strict=True))
    assert len(pairs) == 500 and set(pairs.values()) == {3}
    assert all((name, name) in pairs for name in new.tolist())
    # Who meets whom is another draw's to say.
    other, _ = merged(ids, lambda numbers: 900, np.random.default_rng(6))
    assert (other != new).any()


def test_labels_are_the_clicks_that_happened(examples):
    (events,) = simulate(WORLD).events
    assert events.truth.heads[0] == "click"
    assert examples.labels[:, 0].tolist() == events.truth.happened[:, 0].tolist()
    assert examples.time_ms.tolist() == events.truth.time_ms.tolist() == sorted(events.truth.time_ms)
    assert 0 < examples.labels.sum() < len(examples) == 3000


def test_where_nothing_meets_the_arms_are_equal(examples):
    other, how = hashed_arm(examples, lambda slot, numbers: APART, seed=2)
    assert [found.rate for found in how.values()] == [0, 0]
    own = learn(examples, seed=2, step=64, windows=4)
    assert learn(other, seed=2, step=64, windows=4) == own
    # Which is not so because everything is: with another start, or with meetings, it is another run.
    assert learn(examples, seed=3, step=64, windows=4).auc != own.auc
    met, _ = hashed_arm(examples, paper_space, seed=2)
    assert learn(met, seed=2, step=64, windows=4).auc != own.auc


def test_ids_that_meet_share_a_row(examples):
    other, how = hashed_arm(examples, paper_space, seed=0)
    lost = sum(found.ids - found.left for found in how.values())
    assert lost > 20
    assert learn(examples, 0, 128, 2).rows - learn(other, 0, 128, 2).rows == lost
    # Only the columns of users and videos differ.
    changed = (other.ids != examples.ids).any(axis=0)
    names = [examples.config.slot_order[at].name for at in examples.config.column_slot[changed]]
    assert names == ["user_id", "video_id"]


def test_nothing_is_scored_after_it_was_learned(examples):
    # Outcomes by lot, and a user for each: to know one is to have learned it.
    n = len(examples)
    ids = examples.ids.copy()
    ids[:, 0] = (np.int64(1) << 48) | np.arange(1, n + 1)
    lot = np.random.default_rng(0).integers(0, 2, (n, 1)).astype(np.float32)
    assert abs(learn(replace(examples, ids=ids, labels=lot), 0, 64, 3).auc - 0.5) < 0.05


@pytest.mark.parametrize("last, exceeds", [(0.712, True), (0.7025, False)])
def test_the_standard_error_is_of_the_paired_differences(last, exceeds):
    own = [Learned(auc, [auc], 10) for auc in (0.710, 0.812, last)]
    other = [Learned(auc, [auc], 8) for auc in (0.700, 0.800, 0.701)]
    found = Comparison(own, other, [])
    differences = np.array([0.010, 0.012, last - 0.701])
    assert found.standard_error == pytest.approx(np.sqrt(((differences - differences.mean()) ** 2).sum() / 2 / 3))
    assert ("it exceeds three" in collisions.verdict("simulator", found)) == exceeds
    assert found.window_differences[:, 0] == pytest.approx(differences)


def test_strings_that_meet_are_counted():
    meetings = {met.bits: met for met in string_meetings(300_000)}
    counts = Counter(hash_strings(list(map(str, range(300_000))), bits=32).tolist())
    pairs = sum(count * (count - 1) // 2 for count in counts.values())
    assert meetings[32].pairs == pairs > 0
    assert meetings[32].expected == pytest.approx(300_000**2 / 2**33, rel=1e-4)
    assert meetings[48].pairs == 0 and meetings[48].expected == pytest.approx(300_000**2 / 2**49, rel=1e-4)


def run(tmp_path, capsys, *more):
    """A short run's last line, as JSON, and all that stands before it."""
    small = ("--users", 150, "--days", 0.3, "--requests", 300, "--seeds", 2, "--step", 64, "--strings", 70_000)
    assert collisions.main([*map(str, (*small, *more))]) == 0
    *before, last = capsys.readouterr().out.splitlines()
    return json.loads(last), "\n".join(before)


def test_it_compares_both_data_sets_and_draws_them(tmp_path, capsys):
    write_kuairand(tmp_path)
    plot = tmp_path / "pictures" / "collisions.svg"
    fields, before = run(tmp_path, capsys, "--kuairand_dir", tmp_path, "--rows", 700, "--plot", plot)
    for prefix in ("", "kuairand_"):
        own, other = fields[f"{prefix}auc_collisionless"], fields[f"{prefix}auc_hashed"]
        assert 0 < own < 1 and 0 < other < 1
        by_seed = fields[f"{prefix}auc_difference_by_seed"]
        assert (
            fields[f"{prefix}auc_difference"]
            == pytest.approx(own - other, abs=2e-6)
            == pytest.approx(np.mean(by_seed), abs=2e-6)
        )
        assert fields[f"{prefix}auc_difference_se"] == pytest.approx(abs(by_seed[0] - by_seed[1]) / 2, abs=2e-6)
        assert fields[f"{prefix}rows_collisionless"] > fields[f"{prefix}rows_hashed"]
        assert isinstance(fields[f"{prefix}exceeds_three_se"], bool)
        for kind, rate in zip(("users", "videos"), RATES.values(), strict=True):
            assert fields[f"{prefix}collision_rate_{kind}"] == pytest.approx(rate, abs=0.5 / fields[f"{prefix}{kind}"] + 1e-5)
    assert (fields["seeds"], fields["hash48_strings"], fields["hash48_pairs"]) == (2, 70_000, 0)
    assert fields["hash48_pairs_expected"] == pytest.approx(70_000**2 / 2**49, abs=1e-4)
    assert "149,970" in before and "57,361" in before
    drawn = plot.read_text()
    assert all(word in drawn for word in ("collisionless", "hashed", "simulator", "KuaiRand-Pure"))


def test_without_kuairand_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KUAIRAND_DIR", raising=False)
    fields, before = run(tmp_path, capsys)
    assert "KuaiRand-Pure: left out" in before
    assert not [name for name in fields if name.startswith("kuairand")]
    assert (tmp_path / "out" / "collisions.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_done_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--seeds 1: a standard error needs at least 2"):
        collisions.main(["--seeds", "1"])
    with pytest.raises(UserError, match=r"end it in \.png or \.svg"):
        collisions.main(["--plot", "picture.gif"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="its folder cannot be made"):
        need_place(tmp_path / "file" / "picture.png")
    monkeypatch.setenv("KUAIRAND_DIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match="none: no such folder: give --kuairand_dir"):
        collisions.main(["--plot", str(tmp_path / "picture.png")])
