"""A state goes on with appended slots and another step, and is refused in one line with anything else."""

import dataclasses
import json

import numpy as np
import pytest
from small_logs import ACTIONS, CONFIG, START_MS, batches_of, world, write, write_world

from model.delta import Delta
from model.lagged_copy import LaggedCopy
from model.snapshot import merge, read_increment, write_increment
from model.trainer import Trainer
from model.widening import Widening
from pipelines import train
from pipelines.arms import ARMS
from pipelines.batches import Final, Kind, Position
from pipelines.learn import JoinAndLearn
from pipelines.learn_config import LearnConfig
from pipelines.merge import MergedLogs
from pipelines.state_files import StateFiles
from schemas.config import Slot, load_config
from schemas.log_files import PartitionReader
from schemas.logs import FileLogs
from schemas.process import UserError

REQUESTS = 300
WIDER = dataclasses.replace(
    CONFIG,
    slots=(
        *CONFIG.slots,
        Slot("country", 5, "country", "user", "id", "string"),
        Slot("words", 6, "words", "item", "bag", "string", max_length=2),
    ),
)
LEARN = LearnConfig(step=16, window=200, arms=(ARMS["frozen"], ARMS["hourly"]), warm_start_s=120.0)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    root = tmp_path_factory.mktemp("logs")
    write_world(root, REQUESTS, partitions=2)
    CONFIG.dump(root / "feature_config.toml")
    return root


def arguments(logs, folder, *more):
    return [
        *("--logs", str(logs), "--state_dir", str(folder / "state"), "--metrics_json", str(folder / "metrics.json")),
        *("--step", "16", "--batch_rows", "64", "--window", "200", "--snapshot_interval", "0", *more),
    ]


def with_config(config, folder):
    path = folder / "config.toml"
    config.dump(path)
    return ("--config", str(path))


def table_of(state):
    """Keys, counts and values of ids' own rows, by key."""
    rows = state.keyed["table"].rows.sort_by("key").combine_chunks()
    keys = rows["key"].to_numpy()
    values = np.asarray(rows["values"].combine_chunks().flatten()).reshape(rows.num_rows, -1)
    return keys[keys > 0], rows["counts"].to_numpy()[keys > 0], values[keys > 0]


def assert_same_table(found, expected):
    for mine, theirs in zip(table_of(found)[:2], table_of(expected)[:2], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # The first layer sums over more columns, all zero: in another order.
    np.testing.assert_allclose(table_of(found)[2], table_of(expected)[2], rtol=0, atol=1e-4)


def test_slots_are_appended_while_rows_wait_and_examples_are_pending(logs, tmp_path):
    batches = batches_of(logs, batch_rows=100)
    half = len(batches) // 2
    undisturbed, stopped = JoinAndLearn(CONFIG, LEARN), JoinAndLearn(CONFIG, LEARN)
    for batch in batches:
        undisturbed.apply(batch)
    for batch in batches[:half]:
        stopped.apply(batch)
    assert stopped.join.waiting
    assert len(stopped._pending)
    state = merge([read_increment(tmp_path, write_increment(tmp_path, "old", stopped.increment()))])
    wider = JoinAndLearn(WIDER, LEARN)
    wider.load(state)

    ids = stopped.rows.ids[stopped.rows.at(np.arange(stopped.join.first, stopped.join.next))]
    wide = Widening(CONFIG, WIDER).ids(ids)
    current = stopped.trainer.predict(ids)
    np.testing.assert_allclose(wider.trainer.predict(wide), current, rtol=0, atol=1e-6)
    for number in range(len(LEARN.arms)):
        mine, theirs = wider.arms.predict(number, wide, current), stopped.arms.predict(number, ids, current)
        assert not np.array_equal(theirs, current)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)

    at = {}
    for batch in batches[:half]:
        at |= {name: (span.next, span.order_ms) for name, span in batch.spans.items()}
    rest = MergedLogs(FileLogs(str(logs)), WIDER, ACTIONS, {name: Position(*each) for name, each in at.items()}, batch_rows=70)
    while not rest.finished:
        batch = rest.next(stop=False)
        if batch is not None:
            wider.apply(batch)
    assert wider.progress.examples == undisturbed.progress.examples == 3 * REQUESTS
    assert_same_table(merge([wider.increment()]), merge([undisturbed.increment()]))


def test_a_job_goes_on_with_slots_appended(logs, tmp_path):
    """A log in two parts: learned in one run, and in two with slots appended between them; a third finds it all there."""
    shown, acted = world(REQUESTS)
    cut_ms = START_MS + REQUESTS // 2 * 1500
    parts = [
        [[r for r in records if (r["time_ms"] < cut_ms) == early] for records in (shown, acted)] for early in (True, False)
    ]
    more = ("--arms", "frozen", "--model_dir", str(tmp_path / "models"), "--parameter_log", str(tmp_path / "parameters"))
    for config, part in zip((CONFIG, WIDER), parts, strict=True):
        for topic, records in zip(("features", "actions"), part, strict=True):
            write(tmp_path / "logs", topic, records)
            write(tmp_path / "plain", topic, records)
        CONFIG.dump(tmp_path / "logs" / "feature_config.toml")
        assert train.run([*arguments(tmp_path / "logs", tmp_path, *more), *with_config(config, tmp_path)]) == 0
        assert (
            train.run([*arguments(tmp_path / "plain", tmp_path / "other", "--arms", "frozen"), *with_config(CONFIG, tmp_path)])
            == 0
        )
        assert load_config(tmp_path / "state" / "feature_config.toml") == config
    assert train.run([*arguments(tmp_path / "logs", tmp_path, *more), *with_config(WIDER, tmp_path)]) == 0
    manifest, state = StateFiles(tmp_path / "state", 0).newest()
    assert manifest.fingerprint == WIDER.fingerprint
    assert_same_table(state, StateFiles(tmp_path / "other" / "state", 0).newest()[1])
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert (figures["examples"], figures["dead_letters"]) == (3 * REQUESTS, 0)
    # A copy of the new configuration can follow from its first delta on.
    deltas = list(map(Delta.from_record, PartitionReader(tmp_path / "parameters", "parameters", 0).read(100).records))
    copy, trainer = LaggedCopy(WIDER), Trainer(WIDER)
    for delta in deltas:
        if delta.fingerprint == WIDER.fingerprint:
            copy.apply(delta)
    trainer.load(state)
    ids = Widening(CONFIG, WIDER).ids(np.concatenate([batch.ids(CONFIG.width) for batch in batches_of(logs)]))
    assert copy.version == trainer.version > 0
    np.testing.assert_array_equal(copy.predict(ids), trainer.predict(ids))
    # Back to fewer slots is another configuration.
    with pytest.raises(UserError, match=r"state/feature_config.toml: .*slot 'country' is gone.*; slot 'words' is gone"):
        train.run([*arguments(tmp_path / "logs", tmp_path), *with_config(CONFIG, tmp_path)])


def test_a_batch_that_a_runner_kept_from_before_is_refused(logs):
    """An even number of rows divides into rows of twice the width as well: the rows are counted."""
    wider = dataclasses.replace(CONFIG, slots=(*CONFIG.slots, Slot("words", 6, "words", "item", "bag", "string", max_length=6)))
    assert wider.width == 2 * CONFIG.width
    batch = next(b for b in batches_of(logs, batch_rows=100) if np.count_nonzero(b.column("kind") == Kind.FEATURES) % 2 == 0)
    with pytest.raises(UserError, match="it is of another feature configuration; start anew with the same --state_dir"):
        batch.ids(wider.width)
    assert batch.ids(CONFIG.width).shape[1] == CONFIG.width


@pytest.fixture(scope="module")
def learned(logs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    assert train.run(arguments(logs, folder, "--arms", "frozen")) == 0
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": dataclasses.replace(CONFIG.model, hidden=(16,))}, r"model: hidden was \(8,\), is \(16,\)"),
        ({"heads": CONFIG.heads[:1]}, "heads were click, like, are click"),
        (
            {"slots": (*CONFIG.slots[:3], dataclasses.replace(CONFIG.slots[3], ttl_s=60))},
            "slot 'age': ttl_s was None, is 60",
        ),
    ],
)
def test_a_changed_configuration_is_refused_with_the_difference(logs, learned, tmp_path, change, said):
    changed = with_config(dataclasses.replace(CONFIG, **change), tmp_path)
    others = tmp_path / "logs"
    write_world(others, 5)
    with pytest.raises(UserError, match=rf"state/feature_config.toml: .*{said}.*start anew$"):
        train.run([*arguments(others, learned, "--arms", "frozen"), *changed])
    if "model" not in change:
        with pytest.raises(UserError, match=rf"{logs}/feature_config.toml: .*{said}.*start anew$"):
            train.run([*arguments(logs, tmp_path), *changed])


def test_a_state_without_a_manifest_binds_nobody(logs, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, hidden=(16,))).dump(state / "feature_config.toml")
    assert train.run(arguments(logs, tmp_path)) == 0
    assert load_config(state / "feature_config.toml") == CONFIG


def test_logs_do_not_mind_another_model(logs, tmp_path):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, hidden=(4, 4), dense_learning_rate=1e-3))
    assert train.run([*arguments(logs, tmp_path), *with_config(config, tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["examples"] == 3 * REQUESTS


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--arms", "daily"), "--arms daily: this --state_dir was made with frozen; give --arms frozen again, or"),
        (("--arms", ""), "--arms none: this --state_dir was made with frozen; give --arms frozen again, or"),
        (("--emit", "complete"), "--emit complete: this --state_dir was made with early; give --emit early again, or"),
        (("--window", "100"), "--window 100: this --state_dir was made with 200; give --window 200 again, or"),
        (("--warm_start_s", "5"), "--warm_start_s 5.0: this --state_dir was made with 0.0; give --warm_start_s 0.0 again, or"),
        (("--seed", "1"), "--seed 1: this --state_dir was made with 0; give --seed 0 again, or"),
    ],
)
def test_a_state_stays_with_its_options(logs, learned, option, said):
    with pytest.raises(UserError, match=f"^{said} take an empty --state_dir$"):
        train.run(arguments(logs, learned, "--arms", "frozen", *option))


def test_a_zero_is_an_option_too():
    with pytest.raises(UserError, match="^--seed 0: this --state_dir was made with 3; give --seed 3 again"):
        LearnConfig(seed=0).check(LearnConfig(seed=3).lasting)
    with pytest.raises(UserError, match="^--arms hourly: this --state_dir was made with none; leave out --arms"):
        LearnConfig(arms=(ARMS["hourly"],)).check(LearnConfig().lasting)


@pytest.mark.parametrize("step", [4, 100])
def test_another_step_goes_on_in_the_order_of_decisions(logs, tmp_path, step):
    batches = batches_of(logs, batch_rows=100)
    half = len(batches) // 2
    stopped = JoinAndLearn(CONFIG, dataclasses.replace(LEARN, step=64))
    for batch in batches[:half]:
        stopped.apply(batch)
    assert len(stopped._pending) > 4
    state = merge([read_increment(tmp_path, write_increment(tmp_path, "part", stopped.increment()))])
    waiting = stopped._pending.seq
    other = JoinAndLearn(CONFIG, dataclasses.replace(LEARN, step=step))
    other.load(state)
    seen = []
    learn = other._learn

    def noted(examples):
        seen.append(examples.seq)
        learn(examples)

    other._learn = noted
    for batch in batches[half:]:
        other.apply(batch)
    assert batches[-1].final is Final.END
    assert {each.size for each in seen[:-1]} == {step}
    np.testing.assert_array_equal(np.concatenate(seen)[: len(waiting)], waiting)
    assert other.progress.examples == 3 * REQUESTS
