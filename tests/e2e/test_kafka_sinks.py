"""Dead letters and parameter deltas in topics of a real broker: each once, whatever is repeated and whatever dies."""

import json
import os
import secrets
import threading
from dataclasses import replace

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic
from test_servers import eventually

from model.delta import Delta
from pipelines import failures, replay, topic_sinks, train
from pipelines.examples import Examples
from pipelines.outputs import DeadLetter
from schemas.kafka_logs import KafkaTopics
from schemas.messages import MessageDecoder
from schemas.process import UserError
from schemas.shard_topic import OutputTopic

pytestmark = pytest.mark.usefixtures("needs_servers", "afresh")


@pytest.fixture
def afresh():
    """A process that has written nothing."""
    anew()
    yield
    anew()


def anew():
    topic_sinks.reset()
    train.sinks.reset()
    failures.reset()


@pytest.fixture
def topic(broker, request):
    """Makes a topic of the test's own."""

    def make(schema="dead_letters", partitions=1, config=None):
        name = f"{request.node.originalname[:80]}-{secrets.token_hex(4)}"
        client = AdminClient({"bootstrap.servers": broker.bootstrap})
        client.create_topics([NewTopic(name, partitions, 1, config=config or {})])[name].result(30)
        return OutputTopic(KafkaTopics(broker.bootstrap), name, schema, "--some_topic", ", or less")

    return make


def messages_in(output, partition=0):
    """Key and record of each message of a partition."""
    consumer = Consumer({"bootstrap.servers": output.place.servers, "group.id": "test"})
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(output.name, partition), timeout=30)
        consumer.assign([TopicPartition(output.name, partition, low)])
        found = consumer.consume(high - low, timeout=60) if high > low else []
    finally:
        consumer.close()
    assert [message.error() for message in found] == [None] * (high - low)
    decoder = MessageDecoder(output.schema)
    return [(message.key(), decoder.decode(message.value())) for message in found]


def numbers_in(output, partition=0):
    return [record["number"] for _, record in messages_in(output, partition)]


def letter(number, size=80):
    return DeadLetter(number, "features/p000", 100 * number, f"reason {number}", os.urandom(size))


def letters(first, last, size=80):
    return [letter(number, size) for number in range(first, last)]


def delta(first, last, shard=0, rows=5):
    rng = np.random.default_rng(last)
    return Delta(
        shard=shard, fingerprint=7, epoch=0, from_version=first, to_version=last, newest_event_ms=last,
        keys=np.arange(rows), rows=rng.random((rows, 5)).astype(np.float32), removed=np.array([first]),
        dense={"bias": rng.random(2).astype(np.float32)},
    )  # fmt: skip


def examples(first, last, job=0):
    """Rows by their numbers, of a job of their own."""
    number = np.arange(first, last)
    half = np.stack([number, number], axis=1).astype(np.float32)
    ids = np.stack([number, number + 1, number + 2], axis=1)
    return Examples(first, 7, number + 1_000 * job, number * 10, ids, half, half, number % 2 == 0)


def rows_in(output, partition=0):
    """Columns of the rows in a topic, which must follow upon each other."""
    parts = [Examples.from_record(record) for _, record in messages_in(output, partition)]
    assert [part.number for part in parts[1:]] == [part.end for part in parts[:-1]]
    names = ("keys", "time_ms", "ids", "labels", "mask", "first")
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


@pytest.mark.parametrize("forget", [lambda: None, anew])
def test_examples_that_come_again_are_not_written_twice_wherever_they_are_cut(topic, monkeypatch, forget):
    monkeypatch.setattr("pipelines.examples.MESSAGE_BYTES", 500)  # some messages for each
    output = topic("examples")
    sink = topic_sinks.WriteExamplesToTopic(output)
    for parts in ([(0, 30)], [(0, 10), (10, 45)], [(40, 45), (45, 46)], [(20, 30)], [(46, 90)]):
        sink.process((0, [examples(*part) for part in parts]))
        sink.process((1, [examples(*part) for part in parts]))
        forget()
    for shard in (0, 1):
        own = [Examples.from_record(record) for key, record in messages_in(output) if key == b"%d" % shard]
        assert [part.number for part in own[1:]] == [part.end for part in own[:-1]]
        assert np.concatenate([part.keys for part in own]).tolist() == list(range(90))
    with pytest.raises(UserError, match=r"--some_topic .* has another example 8[0-9]: it is of another job"):
        sink.process((0, [examples(80, 95, job=1)]))


def test_a_topic_of_something_else_is_refused_each_time(topic):
    output = topic("examples")
    topic_sinks.WriteDeadLettersToTopic(replace(output, schema="dead_letters")).process((0, letters(0, 2)))
    sink = topic_sinks.WriteExamplesToTopic(output)
    for _ in range(2):
        with pytest.raises(UserError, match="give a topic that is the job's alone"):
            sink.process((0, [examples(0, 5)]))


def test_dead_letters_are_messages_of_their_shard_in_its_partition(topic):
    output = topic(partitions=2)
    sink = topic_sinks.WriteDeadLettersToTopic(output)
    for shard in (0, 3, 2):
        sink.process((shard, [letter(0), letter(1)]))
    for partition, shards in ((0, (0, 2)), (1, (3,))):
        found = messages_in(output, partition)
        assert [(key, r["shard"], r["number"]) for key, r in found] == [(b"%d" % s, s, n) for s in shards for n in (0, 1)]
    one = letter(7)
    sink.process((3, [one]))
    assert messages_in(output, 1)[-1][1] == {"shard": 3, **vars(one)}


@pytest.mark.parametrize("forget", [lambda: None, anew])
def test_dead_letters_that_come_again_are_not_written_twice(topic, forget):
    """Repeated by the runner, by another process, and by one that has another shard's in the same partition."""
    output = topic()
    sink = topic_sinks.WriteDeadLettersToTopic(output)
    parts = [(0, 2), (2, 4), (0, 4), (3, 6), (2, 4), (5, 9)]
    for part in parts:
        sink.process((0, letters(*part)))
        sink.process((1, letters(*part)))
        forget()
    found = messages_in(output)
    assert [[r["number"] for key, r in found if key == b"%d" % shard] for shard in (0, 1)] == [list(range(9))] * 2


def test_what_another_process_has_written_meanwhile_is_seen(topic):
    """A shard that was elsewhere for a while, and comes back."""
    output = topic()
    sink, elsewhere = topic_sinks.WriteDeadLettersToTopic(output), output.open()
    sink.process((0, letters(0, 3)))
    elsewhere.append(0, [each.to_record(0) for each in letters(3, 6)])
    elsewhere.close()
    sink.process((0, letters(2, 8)))
    assert numbers_in(output) == list(range(8))


def test_a_topic_with_letters_of_other_logs_is_refused(topic):
    output = topic()
    sink = topic_sinks.WriteDeadLettersToTopic(output)
    sink.process((0, letters(0, 3)))
    with pytest.raises(UserError, match=r"--some_topic .* has another dead letter 2, of features/p000 at 200: .*own"):
        sink.process((0, [replace(letter(2), offset=5), letter(3)]))


@pytest.mark.parametrize("forget", [lambda: None, anew])
def test_deltas_come_back_whole_and_once(topic, forget):
    output = topic("parameters")
    sink = topic_sinks.WriteDeltasToTopic(output)
    sent = [delta(n, n + 3) for n in range(0, 12, 3)]
    for each in [*sent[:2], *sent[:3], sent[0], *sent]:
        sink.process(each)
        forget()
    found = [Delta.from_record(record) for _, record in messages_in(output)]
    assert [each.to_version for each in found] == [3, 6, 9, 12]
    np.testing.assert_array_equal(found[1].rows, sent[1].rows)
    np.testing.assert_array_equal(found[1].dense["bias"], sent[1].dense["bias"])


def test_a_message_beyond_the_topics_limit_is_told_with_option_and_remedy_and_leaves_no_gap(topic):
    output = topic(config={"max.message.bytes": "50000"})
    sink = topic_sinks.WriteDeadLettersToTopic(output)
    # Many small ones are no large one, though they go to the broker together.
    sink.process((0, letters(0, 60, size=4_000)))
    with pytest.raises(UserError, match=r"^--some_topic \S+: a message of 60,\d+ bytes, and the topic takes 50,000: raise"):
        sink.process((0, [letter(60), letter(61, 60_000), letter(62)]))
    assert str(failures.first()).endswith("raise its max.message.bytes (kafka-configs.sh --alter), or less")
    assert numbers_in(output) == list(range(60))


def test_a_delta_beyond_the_default_limit_is_taken_once_the_topic_takes_it(topic, broker):
    """By the same process, as on a cluster, where the runner tries again and again."""
    output, large = topic("parameters"), delta(1, 2, rows=100_000)
    sink = topic_sinks.WriteDeltasToTopic(output)
    sink.process(delta(0, 1))
    with pytest.raises(UserError, match="the topic takes 1,048,588: raise its max.message.bytes"):
        sink.process(large)
    raised = ConfigEntry("max.message.bytes", "16000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, output.name, incremental_configs=[raised])
    client = AdminClient({"bootstrap.servers": broker.bootstrap})  # lives until it has its answer
    (future,) = client.incremental_alter_configs([resource]).values()
    future.result(30)

    def taken():
        try:
            sink.process(large)
        except UserError as error:
            assert "max.message.bytes" in str(error)
            return False
        return True

    eventually(taken, 30)
    first, second = (Delta.from_record(record) for _, record in messages_in(output))
    assert (first.to_version, second.to_version) == (1, 2)
    np.testing.assert_array_equal(second.rows, large.rows)


def test_a_broker_that_refuses_is_told_and_nothing_is_lost_by_the_next_attempt(topic, monkeypatch):
    """Its limit is lowered while the job runs: what the client has looked up is no longer true."""
    output = topic(config={"max.message.bytes": "200000"})
    sink = topic_sinks.WriteDeadLettersToTopic(output)
    sink.process((0, [letter(0)]))
    opened = topic_sinks._opened(output)
    monkeypatch.setattr(opened, "_limit", None)  # as for a client that may not look it up
    with pytest.raises(UserError, match=r"--some_topic: .* was refused: .*too large.*: raise the topic's max.message.bytes"):
        sink.process((0, [letter(1), letter(2, 300_000), letter(3)]))
    assert numbers_in(output) == [0, 1]
    sink.process((0, [letter(1), letter(2), letter(3)]))
    assert numbers_in(output) == [0, 1, 2, 3]


def test_a_topic_with_foreign_messages_is_refused(topic, broker):
    output = topic()
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(output.name, b"hello", b"0", partition=0)
    assert producer.flush(30) == 0
    with pytest.raises(UserError, match=r"--some_topic \S+, offset 0: .*; give a topic that is the job's alone"):
        topic_sinks.WriteDeadLettersToTopic(output).process((0, [letter(0)]))


def test_a_broker_killed_amid_letters_loses_and_doubles_none(topic, broker):
    output, (server,) = topic(), broker.servers
    sink, failed = topic_sinks.WriteDeadLettersToTopic(output), []
    batches = [(0, letters(first, first + 40, size=2_000)) for first in range(0, 20_000, 40)]
    done = []

    def write():
        try:
            for batch in batches:
                sink.process(batch)
                done.append(batch)
        except BaseException as error:
            failed.append(error)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    for share in (5, 3):
        eventually(lambda share=share: failed or len(done) >= len(batches) // share)
        server.kill()
        broker.restart(server)
    writer.join(240)
    assert not writer.is_alive()
    assert not failed
    assert numbers_in(output) == list(range(20_000))


def test_a_broker_that_stays_away_fails_the_bundle_and_its_repetition_writes_each_once(topic, broker, monkeypatch):
    from schemas import kafka_writer, shard_topic

    output, (server,) = topic(), broker.servers
    sink = topic_sinks.WriteDeadLettersToTopic(output)
    sink.process((0, letters(0, 5)))
    real = topic_sinks._opened(output).append

    def killed(shard, records):
        server.kill()  # between the look at what is there and the first message
        return real(shard, records)

    monkeypatch.setattr(kafka_writer, "FLUSH_S", 3.0)
    monkeypatch.setattr(shard_topic, "FLUSH_S", 3.0)
    monkeypatch.setattr(topic_sinks._opened(output), "append", killed)
    try:
        with pytest.raises(UserError, match="--some_topic: topic .*: 5 messages were not taken within 3 s: is the broker up"):
            sink.process((0, letters(5, 10)))
        monkeypatch.undo()
    finally:
        broker.restart(server)
    sink.process((0, letters(5, 10)))
    sink.process((0, letters(3, 12)))
    assert numbers_in(output) == list(range(12))


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory, broker):
    """Options of a world whose logs have dead letters."""
    rest = tmp_path_factory.mktemp("spoilt")
    world = ["--dataset", "simulator", "--days", "1", "--users", "80", "--seed", "5", "--partitions", "2", "--requests", "600"]
    place = ["--kafka", broker.bootstrap, "--kafka_prefix", "unclean-"]
    assert replay.main([*world, "--out", str(rest / "logs"), *place]) == 0
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for partition in (0, 1, 1, 0, 1):
        producer.produce("unclean-actions", b"no record", partition=partition)
    assert producer.flush(30) == 0
    return [*place, "--config", str(rest / "logs" / "feature_config.toml")]


def test_a_job_writes_its_topics_and_one_started_anew_adds_nothing(tmp_path, topic, spoilt):
    dead, parameters, archive = topic(), topic("parameters", config={"max.message.bytes": "50000000"}), topic("examples")
    words = [*spoilt, "--dead_letters_topic", dead.name, "--parameter_topic", parameters.name, "--sync_interval", "0"]
    words += ["--examples_topic", archive.name]

    def run(state, *more):
        assert (
            train.main([*words, *more, "--state_dir", str(tmp_path / state), "--metrics_json", str(tmp_path / "figures")]) == 0
        )
        return json.loads((tmp_path / "figures").read_text())

    figures = run("state")
    assert figures["dead_letters"] == 5
    found = messages_in(dead)
    assert [record["number"] for _, record in found] == list(range(5))
    assert {record["raw"] for _, record in found} == {b"no record"}
    assert not (tmp_path / "state" / "dead_letters").exists()
    deltas = [Delta.from_record(record) for _, record in messages_in(parameters)]
    assert deltas[0].from_version == 0
    assert [each.from_version for each in deltas[1:]] == [each.to_version for each in deltas[:-1]]
    rows = rows_in(archive)
    assert rows["keys"].size > np.unique(rows["keys"]).size == rows["first"].sum() == figures["examples"]
    run("state")  # goes on behind the topics' end
    run("another", "--step", "100")  # as one that has lost its state: the letters and the examples are the same
    assert messages_in(dead) == found
    again = rows_in(archive)
    for name, column in rows.items():
        np.testing.assert_array_equal(again[name], column)


@pytest.mark.parametrize("option", ["--dead_letters_topic", "--parameter_topic", "--examples_topic"])
def test_a_topic_that_is_not_there_is_told_at_the_start(tmp_path, spoilt, option):
    with pytest.raises(UserError, match=f"^topic nowhere on .*: create it, or give {option} the name of another$"):
        train.main([*spoilt, option, "nowhere", "--state_dir", str(tmp_path / "state")])
