"""Messages in Confluent's wire format, whose schemas a registry knows: read, let go, or waited for."""

import io
import json
from pathlib import Path

import fastavro
import pytest
from confluent_kafka import Producer
from registry_server import RegistryServer

from pipelines import replay, train
from schemas import avro
from schemas.avro import encode_confluent
from schemas.kafka_logs import KafkaTopics
from schemas.kafka_writer import create_topics
from schemas.messages import MessageDecoder
from schemas.process import UserError
from schemas.schema_registry import SchemaRegistry

pytestmark = pytest.mark.usefixtures("needs_servers")
WORLD = ("--dataset", "simulator", "--days", "1", "--users", "40", "--seed", "8", "--partitions", "2", "--requests", "200")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with RegistryServer(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def schema_of(topic):
    return json.loads((Path(avro.__file__).parent / f"{topic}.avsc").read_text())


def test_a_schema_is_known_by_its_number(registry):
    older = schema_of("actions")
    older["fields"] = [field for field in older["fields"] if field["name"] != "value"]
    newer = schema_of("actions")
    newer["fields"].append({"name": "app", "type": "string"})
    decoder = MessageDecoder("actions", registry=SchemaRegistry({"url": registry.url}))
    record = {"request_id": "r", "user_id": "u", "item_id": "v", "action": "click", "time_ms": 5}
    for schema, more in ((older, {}), (newer, {"value": 2.0, "app": "tv"})):
        out = io.BytesIO(b"\0" + registry.register("actions-value", schema).to_bytes(4, "big"))
        out.seek(5)
        fastavro.schemaless_writer(out, schema, record | more)
        assert decoder.decode(out.getvalue()) == record | {"value": more.get("value")}


def test_a_schema_may_refer_to_others(registry):
    registry.register("place", {"type": "record", "name": "Place", "namespace": "n", "fields": [{"name": "x", "type": "int"}]})
    outer = {"type": "record", "name": "Outer", "fields": [{"name": "place", "type": "n.Place"}]}
    number = registry.register("outer", outer, [{"name": "n.Place", "subject": "place", "version": 1}])
    schema, body = SchemaRegistry({"url": registry.url})(number), io.BytesIO()
    fastavro.schemaless_writer(body, schema, {"place": {"x": 3}})
    assert body.getvalue() == b"\x06"


def test_what_it_does_not_know_or_is_not_avros_is_told(registry):
    schemas = SchemaRegistry({"url": registry.url, "max.retries": "0"})
    for _ in range(2):  # asked, and remembered
        with pytest.raises(LookupError, match="^the schema registry has no schema 4711$"):
            schemas(4711)
    itself = {"type": "record", "name": "T", "fields": [{"name": "n", "type": ["null", "T"]}]}
    number = registry.register("itself", itself)
    with pytest.raises(LookupError, match=f"^messages of schema {number} of the schema registry cannot be read: .*itself"):
        schemas(number)
    number = registry.register("json", {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}, kind="JSON")
    with pytest.raises(LookupError, match=f"^schema {number} of the schema registry is not Avro's, but of type JSON$"):
        schemas(number)


def test_one_that_does_not_answer_is_no_reason_to_let_messages_go(registry):
    nobody = SchemaRegistry({"url": "http://127.0.0.1:1", "max.retries": "0"})
    decoder = MessageDecoder("actions", registry=nobody)
    with pytest.raises(
        UserError, match=r"^schema registry http://127.0.0.1:1 does not answer \(.*\): start it, or give its add"
    ):
        decoder.decode(b"\0\0\0\0\1\0")
    # An address that is not the registry's answers 404, too: no reason to let a topic go.
    wrong = MessageDecoder("actions", registry=SchemaRegistry({"url": registry.url.replace("ccompat", "nothing")}))
    with pytest.raises(
        UserError, match="^schema registry http://.*/nothing/v7: .*; put schema.registry. in --kafka_config right$"
    ):
        wrong.decode(b"\0\0\0\0\1\0")
    with pytest.raises(UserError, match="^--kafka_config: schema.registry: Unrecognized properties: bell; put it right"):
        SchemaRegistry({"url": registry.url, "bell": "1"})


def test_topics_in_confluents_format_are_learned_as_others_are(tmp_path, broker, registry):
    """The same messages as the replay wrote, each with a registry's number in place of the fingerprint."""
    plain, marked = ("plain-", KafkaTopics(broker.bootstrap, "plain-")), KafkaTopics(broker.bootstrap, "marked-")
    assert replay.main([*WORLD, "--out", str(tmp_path / "rest"), "--kafka", broker.bootstrap, "--kafka_prefix", plain[0]]) == 0
    create_topics(marked, 2)
    producer, logs = Producer({"bootstrap.servers": broker.bootstrap}), plain[1].open(follow=False)
    try:
        for topic in ("features", "actions"):
            number = registry.register(f"marked-{topic}-value", schema_of(topic))
            for partition in logs.partitions(topic):
                reader = logs.reader(topic, partition, 0)
                while records := reader.read(1_000).records:
                    for record in records:
                        value = encode_confluent(topic, record, number)
                        producer.produce(f"marked-{topic}", value, partition=partition)
        producer.produce("marked-actions", encode_confluent("actions", record, 4711), partition=0)
        assert producer.flush(30) == 0
    finally:
        logs.close()

    def learned(prefix, *more):
        words = ["--kafka", broker.bootstrap, "--kafka_prefix", prefix, "--config", str(tmp_path / "rest/feature_config.toml")]
        words += ["--state_dir", str(tmp_path / prefix), "--metrics_json", str(tmp_path / "figures"), *more]
        assert train.main(words) == 0
        return json.loads((tmp_path / "figures").read_text())

    settings = tmp_path / "settings"
    settings.write_text("schema.registry.url=http://127.0.0.1:1\nschema.registry.max.retries=0\n")
    with pytest.raises(UserError, match="^schema registry http://127.0.0.1:1 does not answer"):
        learned("marked-", "--kafka_config", str(settings))
    settings.write_text(f"schema.registry.url={registry.url}\n")
    found, expected = learned("marked-", "--kafka_config", str(settings)), learned("plain-")
    told = ("examples", "impressions", "actions", "duplicates", "late", "unmatched", "table_rows", "auc")
    assert {name: found[name] for name in told} == {name: expected[name] for name in told}
    assert (found["dead_letters"], expected["dead_letters"]) == (1, 0)
    (letter,) = (json.loads(line) for line in (tmp_path / "marked-" / "dead_letters" / "shard-000.jsonl").open())
    assert letter["reason"] == "a message of actions cannot be decoded: the schema registry has no schema 4711"
