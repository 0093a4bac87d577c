"""The step from events to a model: a function of the logs, however they are cut, and careful with what it publishes."""

import dataclasses
import logging

import numpy as np
import pyarrow as pa
import pytest
from small_logs import (
    CONFIG,
    START_MS,
    action,
    applied,
    as_one,
    batches_of,
    features,
    world,
    write,
)

from model.snapshot import KeyedPart, merge, read_increment, write_increment
from pipelines.arms import Arm
from pipelines.batches import EventBatch, Final, Kind
from pipelines.learn import JoinAndLearn, LearnConfig
from schemas.log_files import partition_of

MINUTE = 60_000
ARMS = (Arm("frozen", None), Arm("minutely", MINUTE))
LEARN = LearnConfig(step=32, window=300, predictions=True, arms=ARMS, warm_start_s=300.0)
REQUESTS = 500


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A world, and what goes wrong in any: repetitions, late and early actions, some without an impression."""
    root = tmp_path_factory.mktemp("world")
    shown, acted = world(REQUESTS)
    for n in range(0, REQUESTS, 10):
        time_ms, user = n * 1500, shown[n]["user_id"]
        item = shown[n]["items"][0]["item_id"]
        acted += [action(f"r{n}", time_ms + delay, item, user, "like") for delay in (-400, 299_000, 400_000, 1_000_000)]
        acted += [action(f"no{n}", time_ms, item, user), action(f"r{n}", time_ms + 900, item, user, "share")]
        shown.append(shown[n] | {"time_ms": shown[n]["time_ms"] + 20_000})
    for topic, records in (("features", shown), ("actions", acted)):
        records = sorted(records, key=lambda record: record["time_ms"])
        for partition in range(2):
            write(root, topic, [r for r in records if partition_of(r["user_id"], 2) == partition], partition)
    return root


def run(batches, learn=LEARN, step=None):
    return applied(batches, learn, step)


@pytest.fixture(scope="module")
def whole(logs):
    """All events as one batch."""
    return run([as_one(batches_of(logs))])


#: Parts of the state that hold what waits, and what was seen and said so far; what comes of them is compared instead.
_OF_THE_STREAM = ("join", "rows", "pending", "arms", "progress", "dead_letters", "learn", "growth")


def model_of(step, earlier=()):
    """Parameters, optimizer state, counts and times of all rows, by name; ``earlier`` are its durable increments."""
    state = merge([*earlier, step.increment()])
    table = state.keyed["table"].rows.sort_by("key").combine_chunks()
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    parts = {part: arrays for part, arrays in state.whole.items() if part not in _OF_THE_STREAM}
    found = columns | {f"{part}/{name}": array.tobytes() for part in parts for name, array in parts[part].items()}
    del found["table/trimmed"]  # how far the journal of changes reaches back, which is a matter of snapshots
    return found


def predictions_of(outputs, head="click"):
    """Columns of all predictions of a head, in the order of their labels."""
    parts = [part for each in outputs for part in each.predictions if part.head == head]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("key", "time_ms", "label")}
    return columns | {arm: np.concatenate([part.logits[arm] for part in parts]) for arm in parts[0].logits}


def catalogue_of(step):
    sides = (step.catalogue.users, step.catalogue.items)
    return [sorted(zip(e.names, e.ids.tolist(), e.last_seen_ms.tolist(), strict=True)) for e in sides]


def figures_of(step):
    # Neither pace nor memory is a function of the logs: how much of the journal is kept is a matter of snapshots.
    figures = {name: value for name, value in step.figures().items() if name not in ("examples_per_s", "table_bytes")}
    kept = ("examples", "event_ms", "table_rows")
    return figures | {"growth": [[point[name] for name in kept] for point in figures["growth"]]}


def assert_same(found, expected, earlier=()):
    """Bit by bit: model, predictions, figures."""
    assert model_of(found[0], earlier) == model_of(expected[0])
    for head in ("click", "like"):
        mine, theirs = predictions_of(found[1], head), predictions_of(expected[1], head)
        assert {name: a.tobytes() for name, a in mine.items()} == {name: a.tobytes() for name, a in theirs.items()}
    assert figures_of(found[0]) == figures_of(expected[0])


@pytest.mark.parametrize("batch_rows", [1, 170])
def test_the_model_does_not_depend_on_how_events_are_cut_into_batches(logs, whole, batch_rows):
    assert_same(run(batches_of(logs, batch_rows=batch_rows)), whole)


def test_the_model_does_depend_on_the_order_of_events(logs, whole):
    batch = as_one(batches_of(logs))
    order = np.lexsort((-batch.column("partition").astype(int), batch.column("order_ms") // 2000))
    disordered = dataclasses.replace(batch, events=batch.events.take(pa.array(order)))
    assert model_of(run([disordered])[0]) != model_of(whole[0])


def test_a_restart_after_any_batch_goes_on_as_if_nothing_had_happened(logs, whole, tmp_path):
    """Increments to files, as the shard writes them, merged and loaded into a new step, again and again."""
    batches = batches_of(logs, batch_rows=150)
    step, outputs, segments = JoinAndLearn(CONFIG, LEARN), [], []
    for number, batch in enumerate(batches):
        outputs.append(step.apply(batch))
        if number % 3 == 1:
            segments.append(write_increment(tmp_path, f"{number:03d}", step.increment()))
            step.committed()
        if number % 6 == 1:
            step = JoinAndLearn(CONFIG, LEARN)
            step.load(merge([read_increment(tmp_path, entries) for entries in segments]))
            step.committed()
    assert len(segments) > 2
    assert_same((step, outputs), whole, [read_increment(tmp_path, entries) for entries in segments])
    assert catalogue_of(step) == catalogue_of(whole[0])


def examples_of(step):
    """Every example batch that the trainer is given from now on."""
    learn, seen = step.trainer.learn, []

    def watched(batch):
        seen.append(batch)
        return learn(batch)

    step.trainer.learn = watched
    return seen


@pytest.mark.parametrize("early", [True, False])
def test_each_head_of_each_impression_is_learned_once_with_its_label(logs, early):
    step = JoinAndLearn(CONFIG, LearnConfig(step=32, early=early))
    seen = examples_of(step)
    run(batches_of(logs, batch_rows=100), step=step)
    labels, mask = np.concatenate([b.labels for b in seen]), np.concatenate([b.mask for b in seen])
    first = np.concatenate([b.first for b in seen])
    rows = 3 * REQUESTS
    assert mask.sum(axis=0).tolist() == [rows, rows]
    assert first.sum() == step.progress.examples == rows
    counts = step.join.counts
    # Each action that counts makes one positive, and a label stands only where its head is decided.
    assert (labels * mask).sum() == labels.sum() == counts.actions > 300
    if early:
        apart = int((mask.sum(axis=1) == 1).sum())
        assert apart == 2 * (rows - int((mask.sum(axis=1) == 2).sum()))
        assert apart > rows
    else:
        assert mask.all()
    assert {len(b.ids) for b in seen[:-1]} == {32}


def test_predictions_are_made_with_the_model_as_it_was_at_the_request(logs):
    """Each row's logits are those of a model that has learned only what was decided before its request came."""
    batches = batches_of(logs, batch_rows=10)
    step, outputs, expected, seen = JoinAndLearn(CONFIG, LearnConfig(step=16, predictions=True)), [], {}, set()
    for batch in batches:
        before = step.trainer.version
        ids = batch.ids(CONFIG.width)
        logits = step.trainer.predict(ids) if len(ids) else []
        outputs.append(step.apply(batch))
        keys = batch.column("key")[batch.column("kind") == 0].tolist()
        if step.trainer.version == before:
            expected |= {key: each for key, each in zip(keys, logits, strict=True) if key not in seen}
        seen.update(keys)
    found = predictions_of(outputs)
    checked = [i for i, key in enumerate(found["key"].tolist()) if key in expected]
    assert len(checked) > 500
    np.testing.assert_allclose(found["continuous"][checked], [expected[k][0] for k in found["key"][checked]], atol=1e-6)


def until(events, time_ms):
    """The events before a moment, with more to come."""
    before = events.keep(events.column("order_ms") < time_ms)
    return dataclasses.replace(before, watermark_ms=int(before.column("order_ms")[-1]), final=Final.NO)


def test_the_warm_start_is_not_evaluated_and_arms_start_at_its_end(logs, whole):
    found = predictions_of(whole[1])
    start_ms = START_MS + 300_000
    assert found["time_ms"].min() >= start_ms
    assert len(found["key"]) == 3 * (REQUESTS - 200)
    assert whole[0].figures()["heads"]["click"]["count"] == len(found["key"])
    assert whole[0].figures()["arms"].keys() == {"continuous", "frozen", "minutely"}
    # A twin that has seen the warm start alone is the frozen arm for good.
    events = as_one(batches_of(logs))
    twin, _ = run([until(events, start_ms)])
    shown = {row["key"]: row["ids"] for row in events.events.to_pylist() if row["kind"] == 0}
    logits = twin.trainer.predict(np.array([shown[key] for key in found["key"].tolist()]))[:, 0]
    np.testing.assert_allclose(found["frozen"], logits, atol=1e-6)
    assert not np.allclose(found["frozen"], found["continuous"], atol=1e-3)


def test_an_arm_is_the_model_as_it_was_at_its_last_sync(logs, whole):
    found = predictions_of(whole[1])
    events = as_one(batches_of(logs))
    sync_ms = START_MS + 300_000 + 2 * MINUTE
    twin, _ = run([until(events, sync_ms)])
    shown = {row["key"]: row["ids"] for row in events.events.to_pylist() if row["kind"] == 0}
    rows = np.flatnonzero((found["time_ms"] >= sync_ms) & (found["time_ms"] < sync_ms + MINUTE))
    logits = twin.trainer.predict(np.array([shown[key] for key in found["key"][rows].tolist()]))[:, 0]
    assert rows.size > 50
    np.testing.assert_allclose(found["minutely"][rows], logits, atol=1e-6)


def test_without_a_warm_start_a_frozen_arm_has_learned_nothing(logs):
    learn = LearnConfig(step=32, predictions=True, arms=ARMS[:1])
    found = predictions_of(run(batches_of(logs, batch_rows=100), learn)[1])
    assert np.ptp(found["continuous"]) > 0.1
    assert np.ptp(found["frozen"]) == 0


def poisoned(state, key, value):
    """The state with one row of the table that no learning could have led to."""
    rows = state.keyed["table"].rows.combine_chunks()
    width = 1 + CONFIG.model.dim
    values = np.array(rows["values"].combine_chunks().flatten()).reshape(-1, width)
    assert (rows["key"].to_numpy() == key).sum() == 1
    values[rows["key"].to_numpy() == key] = value
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), width)
    rows = rows.set_column(rows.column_names.index("values"), "values", column)
    state.keyed["table"] = KeyedPart(rows, state.keyed["table"].removed)
    return state


@pytest.mark.parametrize(("value", "said"), [(np.nan, "not finite"), (300.0, "has exploded")])
def test_a_sick_model_stops_publishing_not_learning_and_publishes_again_when_well(tmp_path, caplog, value, said):
    """One video's row is spoilt; it is shown among the first requests of the day and never again."""
    early = [features(f"e{n}", n * 1000, f"u{n % 9}", ("v1", "v2")) for n in range(300)]
    later = [features(f"l{n}", 1_000_000 + n * 1000, f"u{n % 9}", ("v2", "v3")) for n in range(1500)]
    write(tmp_path, "features", early + later)
    write(tmp_path, "actions", [action(f"l{n}", 1_000_500 + n * 1000, "v2", f"u{n % 9}") for n in range(0, 1500, 3)])
    batches = [dataclasses.replace(batch, sync=True) for batch in batches_of(tmp_path, batch_rows=40)]
    first = next(i for i, batch in enumerate(batches) if batch.watermark_ms > START_MS + 150_000)
    learn = LearnConfig(step=16, window=10**6)
    well, _ = run(batches[:first], learn)
    spoilt = int(batches[0].ids(CONFIG.width)[0][CONFIG.user_width])
    step = JoinAndLearn(CONFIG, learn)
    step.load(poisoned(merge([well.increment()]), spoilt, value))
    published, examples, outputs, healthy = step.trainer.version, [], [], []
    with caplog.at_level(logging.INFO, "pipelines.progress"):
        for batch in batches[first:]:
            outputs.append(step.apply(batch))
            examples.append(step.progress.examples)
            healthy.append(step.publishable)
    sick = range(healthy.index(False), len(healthy) - healthy[::-1].index(False))
    assert len(sick) > 10
    assert not any(healthy[i] for i in sick)
    assert all(healthy[sick.stop :])
    assert len(healthy) - sick.stop > 10
    assert not any(outputs[i].deltas for i in sick)
    # Nothing is missing from the first delta afterwards, and it is not sick.
    before = [delta for i in range(sick.start) for delta in outputs[i].deltas]
    after = [delta for each in outputs[sick.stop :] for delta in each.deltas]
    assert after[0].from_version == (before[-1].to_version if before else published)
    assert all(np.isfinite(array).all() for array in after[0].dense.values())
    # It went on learning all the while.
    assert examples[sick.stop - 1] > examples[sick.start] + 500
    stopped, resumed = outputs[sick.start].metrics, outputs[sick.stop].metrics
    assert (stopped["healthy"], resumed["healthy"]) == (False, True)
    assert resumed["bad_steps"] >= stopped["bad_steps"] > 0
    stopping, resuming = [record for record in caplog.records if record.name == "pipelines.progress"]
    assert (stopping.levelname, resuming.levelname) == ("ERROR", "WARNING")
    assert said in stopping.message
    assert "publishing stopped" in stopping.message
    assert "publishing resumed" in resuming.message


def test_each_record_of_a_batch_given_up_becomes_one_dead_letter_and_the_rest_is_learned(logs, whole):
    batches = batches_of(logs, batch_rows=200)
    given_up = EventBatch.decode(batches[3].as_faults("the step crashed").encode())
    assert given_up.spans == batches[3].spans
    rows = batches[3].events.to_pylist()
    places = {(batches[3].partitions[row["partition"]], row["offset"]) for row in rows}
    assert len(places) < len(rows)  # requests have several videos
    step, outputs = run([*batches[:3], given_up, *batches[4:]])
    letters = [each for each in outputs[3].dead_letters if each.reason == "the step crashed"]
    assert len(letters) == len(places) and {(each.partition, each.offset) for each in letters} == places
    lost = whole[0].join.counts.rows - step.join.counts.rows
    assert 0 < lost <= np.count_nonzero(batches[3].column("kind") == Kind.FEATURES)
    assert step.trainer.version > 10


def test_an_increment_does_not_change_while_it_is_written(logs):
    """Batches are applied meanwhile: nothing in it may be the working state's own memory."""
    batches = batches_of(logs, batch_rows=150)
    step = JoinAndLearn(CONFIG, LEARN)

    def contents(increment):
        whole = {(part, name): array.tobytes() for part, arrays in increment.whole.items() for name, array in arrays.items()}
        return whole | {name: (part.rows.to_pydict(), part.removed.tobytes()) for name, part in increment.keyed.items()}

    half = len(batches) // 2
    for batch in batches[:half]:
        step.apply(batch)
    increment = step.increment()
    before = contents(increment)
    for batch in batches[half:]:
        step.apply(batch)
    assert contents(increment) == before
    assert contents(step.increment()) != before
