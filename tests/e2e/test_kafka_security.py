"""A broker that lets in only who has a certificate's trust and a password: both topics written, read, and appended to."""

import json
import subprocess
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from deploy import install
from deploy.kafka_broker import KafkaBroker, KafkaOptions
from deploy.ports import Ports
from pipelines import replay, train
from schemas.kafka_client import client_settings
from schemas.process import UserError

pytestmark = pytest.mark.usefixtures("needs_servers")
WORLD = ("--dataset", "simulator", "--days", "1", "--users", "40", "--seed", "8", "--partitions", "2", "--requests", "200")
LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required user_trainer='secret';"


def certificate(folder, name):
    """A key with a certificate of its own signing, for the broker, and the certificate alone, for its clients."""
    keytool, store, trusted = (
        Path(install.java()).resolve().with_name("keytool"),
        folder / f"{name}.p12",
        folder / f"{name}.pem",
    )
    common = ("-keystore", store, "-storepass", "changeit", "-alias", name)
    made = ("-genkeypair", "-keyalg", "RSA", "-storetype", "PKCS12", "-dname", f"CN={name}", "-ext", "san=ip:127.0.0.1")
    for words in (made, ("-exportcert", "-rfc", "-file", trusted)):
        subprocess.run([keytool, *words, *common], check=True, capture_output=True)
    return store, trusted


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """Address of a broker that listens for strangers by TLS and password alone, and its certificate."""
    folder, ports = tmp_path_factory.mktemp("kafka"), Ports("127.0.0.1")
    store, trusted = certificate(folder, "broker")
    own, controller, strangers = (ports.take(0, "port") for _ in range(3))
    ports.close()
    config = {
        "listeners": f"PLAINTEXT://127.0.0.1:{own},CONTROLLER://127.0.0.1:{controller},SASL_SSL://127.0.0.1:{strangers}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{own},SASL_SSL://127.0.0.1:{strangers}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": LOGIN,
        "ssl.keystore.location": str(store),
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.password": "changeit",
    }
    with KafkaBroker(folder, KafkaOptions(port=own, controller_port=controller, config=config)):
        yield f"127.0.0.1:{strangers}", trusted


def settings_file(folder, trusted, password="secret"):
    file = folder / f"client-{password}-{trusted.stem}.properties"
    lines = ["security.protocol=SASL_SSL", "sasl.mechanism=PLAIN", "sasl.username=trainer", f"sasl.password={password}"]
    file.write_text("\n".join([*lines, f"ssl.ca.location={trusted}"]) + "\n")
    return file


def test_topics_are_written_learned_and_appended_to_by_who_may(tmp_path, secured):
    servers, trusted = secured
    file = settings_file(tmp_path, trusted)
    place = ["--kafka", servers, "--kafka_config", str(file)]
    assert replay.main([*WORLD, "--out", str(tmp_path / "rest"), *place]) == 0
    client = AdminClient({"bootstrap.servers": servers, **dict(client_settings(file).kafka)})
    client.create_topics([NewTopic("archive", 1, 1)])["archive"].result(30)
    words = [*place, "--config", str(tmp_path / "rest" / "feature_config.toml"), "--state_dir", str(tmp_path / "state")]
    assert train.main([*words, "--metrics_json", str(tmp_path / "figures"), "--examples_topic", "archive"]) == 0
    assert json.loads((tmp_path / "figures").read_text())["examples"] == 1_000


@pytest.mark.parametrize(
    ("password", "known", "said"),
    [("wrong", True, r"SASL authentication error"), ("secret", False, r"certificate verify failed")],
)
def test_who_may_not_is_told_why_within_seconds(tmp_path, secured, password, known, said):
    servers, trusted = secured
    file = settings_file(tmp_path, trusted if known else certificate(tmp_path, "stranger")[1], password)
    (tmp_path / "config.toml").write_bytes((Path(replay.__file__).parents[1] / "schemas" / "simulator.toml").read_bytes())
    words = ["--kafka", servers, "--kafka_config", str(file), "--config", str(tmp_path / "config.toml")]
    with pytest.raises(
        UserError, match=rf"--kafka {servers}: no broker answers \(.*{said}.*\): give what it asks for in --kafka_config$"
    ):
        train.main([*words, "--state_dir", str(tmp_path / "state")])
