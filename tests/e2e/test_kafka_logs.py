"""Both logs in a real broker: read as they are from files, exactly once across restarts, and refused in words."""

import json
import time

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from pipelines import rekey, replay, train
from schemas import kafka_logs
from schemas.kafka_client import client_settings
from schemas.kafka_logs import KafkaTopics
from schemas.log_segments import LogHoleError
from schemas.process import UserError

pytestmark = pytest.mark.usefixtures("needs_servers")
WORLD = ("--dataset", "simulator", "--requests", "600", "--days", "1", "--users", "80", "--seed", "3", "--partitions", "2")


@pytest.fixture(scope="module")
def logs(tmp_path_factory, broker):
    """The same world in files and in topics without a prefix; the folder has the configuration."""
    folder = tmp_path_factory.mktemp("logs")
    assert replay.main([*WORLD, "--out", str(folder / "files")]) == 0
    assert replay.main([*WORLD, "--out", str(folder / "rest"), "--kafka", broker.bootstrap]) == 0
    return folder


def learned(tmp_path, name, *source):
    figures = tmp_path / f"{name}.json"
    assert train.main([*source, "--state_dir", str(tmp_path / name), "--metrics_json", str(figures)]) == 0
    return json.loads(figures.read_text())


def test_topics_are_learned_as_files_are(tmp_path, broker, logs):
    before = kafka_logs.connects
    config = str(logs / "rest" / "feature_config.toml")
    topics = learned(tmp_path, "topics", "--kafka", broker.bootstrap, "--config", config)
    files = learned(tmp_path, "files", "--logs", str(logs / "files"))
    told = ("examples", "impressions", "actions", "duplicates", "late", "table_rows", "model_version")
    assert {name: topics[name] for name in told} == {name: files[name] for name in told}
    assert topics["arms"]["continuous"]["auc"] == pytest.approx(files["arms"]["continuous"]["auc"], abs=1e-6)
    assert topics["dead_letters"] == 0
    assert kafka_logs.connects == before + 1  # one consumer, however often Beam rebuilt the reader
    again = learned(tmp_path, "topics", "--kafka", broker.bootstrap, "--config", config)
    assert again["examples"] == topics["examples"]  # nothing is left in the topics for a second run


def test_a_message_that_is_none_is_a_dead_letter(tmp_path, broker, logs):
    out, config = tmp_path / "rest", str(logs / "rest" / "feature_config.toml")
    assert replay.main([*WORLD, "--out", str(out), "--kafka", broker.bootstrap, "--kafka_prefix", "spoilt-"]) == 0
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for partition, value in ((0, b"no record"), (1, None), (1, b"\xc3\x01")):
        producer.produce("spoilt-actions", value, partition=partition)
    assert producer.flush(30) == 0
    figures = learned(
        tmp_path, "state", "--kafka", broker.bootstrap, "--kafka_prefix", "spoilt-", "--config", config,
    )  # fmt: skip
    assert figures["dead_letters"] == 3
    letters = [json.loads(line) for file in (tmp_path / "state" / "dead_letters").glob("*.jsonl") for line in file.open()]
    assert sorted(letter["reason"].split(" begins ")[0] for letter in letters) == ["a message of actions"] * 3


@pytest.mark.parametrize(
    ("servers", "prefix", "said"),
    [
        ("127.0.0.1:1", "", "--kafka 127.0.0.1:1: no broker answers .*: start it, or give its address"),
        (None, "nowhere-", "topic nowhere-features on .*: create it, or give its --kafka_prefix"),
    ],
)
def test_a_wrong_address_or_topic_is_told_within_seconds(tmp_path, broker, logs, servers, prefix, said):
    config = str(logs / "rest" / "feature_config.toml")
    place = ["--kafka", servers or broker.bootstrap, "--kafka_prefix", prefix, "--config", config]
    began = time.monotonic()
    with pytest.raises(UserError, match=f"^{said}$"):
        train.main([*place, "--state_dir", str(tmp_path / "state")])
    assert time.monotonic() - began < 60


def test_more_partitions_and_lost_messages_are_refused(broker):
    assert replay.main([*WORLD, "--out", str(broker.folder / "r"), "--kafka", broker.bootstrap, "--kafka_prefix", "m-"]) == 0
    logs = KafkaTopics(broker.bootstrap, "m-").open(follow=True)
    try:
        with pytest.raises(LogHoleError, match=r"topic m-actions, partition 0: offset 1000000 is not there, only 0 to \d+"):
            logs.reader("actions", 0, 1_000_000)
        assert list(logs.partitions("actions")) == [0, 1]
        client = AdminClient({"bootstrap.servers": broker.bootstrap})
        client.create_partitions([NewPartitions("m-actions", 3)])["m-actions"].result(30)
        logs._counted -= 60  # as if a minute had passed
        with pytest.raises(UserError, match="topic m-actions has 3 partitions now and had 2"):
            logs.partitions("actions")
    finally:
        logs.close()


def test_topics_that_were_spread_anew_are_refused_by_a_state_and_learned_from_copies(tmp_path, broker, logs, capsys):
    config, place = str(logs / "rest" / "feature_config.toml"), ("--kafka", broker.bootstrap)
    world = (*WORLD, "--out", str(tmp_path / "rest"), *place, "--kafka_prefix", "grown-")
    assert replay.main([*world]) == 0
    before = learned(tmp_path, "state", *place, "--kafka_prefix", "grown-", "--config", config)
    client, names = AdminClient({"bootstrap.servers": broker.bootstrap}), ("grown-features", "grown-actions")
    for future in client.create_partitions([NewPartitions(name, 3) for name in names]).values():
        future.result(30)
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce("grown-actions", b"no record", partition=2)
    assert producer.flush(30) == 0
    said = "topic grown-features has 3 partitions now and had 2: .* run python -m pipelines.rekey --kafka .* --to_prefix NEW"
    with pytest.raises(UserError, match=said):
        learned(tmp_path, "state", *place, "--kafka_prefix", "grown-", "--config", config)

    command = [*place, "--kafka_prefix", "grown-", "--to_prefix", "anew-", "--partitions", "3"]
    assert rekey.main(command) == 0
    assert f"copied: 600 features, {before['actions'] + before['late'] + before['unmatched']:,} actions; unreadable: 1" in (
        capsys.readouterr().out
    )
    after = learned(tmp_path, "anew", *place, "--kafka_prefix", "anew-", "--config", config)
    told = ("examples", "impressions", "actions", "duplicates", "late", "table_rows", "dead_letters")
    assert {name: after[name] for name in told} == {name: before[name] for name in told}
    with pytest.raises(UserError, match=r"topic anew-features on .* cannot be made: .*; give another --kafka_prefix"):
        rekey.main(command)


def test_settings_of_the_clients_come_from_a_file(tmp_path):
    file = tmp_path / "client.properties"
    file.write_text("# where we are\nclient.id = here\n\nschema.registry.url=http://there\nsecurity.protocol=SASL_SSL\n")
    assert client_settings(file).kafka == (("client.id", "here"), ("security.protocol", "SASL_SSL"))
    assert client_settings(file).registry == (("url", "http://there"),)
    assert KafkaTopics.configured("h:1", "p-", file).settings()["client.id"] == "here"
    assert client_settings(None) == ((), ())
    file.write_text("client.id\n")
    with pytest.raises(UserError, match="line 1: 'client.id' is no NAME=VALUE"):
        client_settings(file)
    file.write_text("schema.registry.basic.auth.user.info=me:secret\n")
    with pytest.raises(UserError, match=r"schema.registry.basic.auth.user.info without a schema.registry.url: give that, too"):
        client_settings(file)
    with pytest.raises(UserError, match="cannot be read"):
        client_settings(tmp_path / "none")
