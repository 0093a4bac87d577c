"""Settings of the servers: they stay on this machine, keep to their folder, and are read as they were meant."""

import ipaddress
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
import yaml

from deploy.flink_config import JAVA_OPTIONS, FlinkOptions, cluster_config
from deploy.flink_config import yaml as as_yaml
from deploy.kafka_broker import broker_config, properties

DEPLOY = Path(__file__).parents[2] / "deploy"
AWKWARD = 'C:\\ "é" : # 😀'


def flink(home, **options):
    return cluster_config(FlinkOptions(**options), "127.0.0.1", 1, 2, home)


def test_flinks_settings_are_read_back_as_they_were():
    home = Path("/a folder/with #é")
    written = flink(home, config={"a.b": AWKWARD, "taskmanager.numberOfTaskSlots": "7"}, slots=3)
    assert yaml.safe_load(as_yaml(written)) == written
    assert written["a.b"] == AWKWARD
    assert written["taskmanager.numberOfTaskSlots"] == "7"  # the last word is the user's
    for name in ("state.checkpoints.dir", "state.savepoints.dir"):
        place = urlparse(written[name])
        assert place.scheme == "file"
        assert Path(url2pathname(place.path)).parent == home


def test_flink_listens_on_this_machine_alone():
    found = flink(Path("/x"))
    hosts = [value for name, value in found.items() if name.endswith(("host", "address"))]
    assert len(hosts) == 6
    assert all(ipaddress.ip_address(host).is_loopback for host in hosts)


def test_kafka_listens_on_this_machine_alone():
    found = broker_config("127.0.0.1", 1, 2, Path("/data"))
    assert found["listeners"] == "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2"
    assert found["controller.quorum.voters"] == "1@127.0.0.1:2"
    assert found["log.dirs"] == "/data"


def test_properties_escape_what_the_format_has_a_meaning_for():
    (line,) = properties({"log.dirs": AWKWARD}).splitlines()
    name, value = line.split("=", 1)
    assert name == "log.dirs"
    # How Java reads it: backslashes escape, \uXXXX is a UTF-16 unit.
    assert value.encode().decode("unicode_escape").encode("utf-16", "surrogatepass").decode("utf-16") == AWKWARD


def test_java_17s_closed_packages_are_opened_once_each():
    assert len(set(JAVA_OPTIONS)) == len(JAVA_OPTIONS)
    assert "--add-opens=java.base/java.util=ALL-UNNAMED" in JAVA_OPTIONS
    # Beam's FlinkRunner starts the job server's jar by itself: it opens them by its manifest.
    (opened,) = [each.text for each in pom("flink").iter(f"{POM}Add-Opens")]
    assert {f"--add-opens={each}=ALL-UNNAMED" for each in opened.split()} <= set(JAVA_OPTIONS)


POM = "{http://maven.apache.org/POM/4.0.0}"


def pom(name):
    return ET.parse(DEPLOY / name / "pom.xml").getroot()


@pytest.mark.parametrize("name", ["flink", "kafka"])
def test_a_pom_pins_all_it_takes_and_names_no_registry(name):
    root = pom(name)
    values = {each.tag.removeprefix(POM): each.text for each in root.find(f"{POM}properties")}
    found = [each.find(f"{POM}version").text for tag in ("dependency", "plugin") for each in root.iter(f"{POM}{tag}")]
    assert len(found) >= 3
    for version in found:
        pinned = values[version[2:-1]] if version.startswith("${") else version
        assert pinned.replace(".", "").isdigit(), pinned
    assert list(root.iter(f"{POM}repository")) == []


def test_the_jars_of_cluster_and_job_server_are_of_one_series():
    (series,) = [each.text for each in pom("flink").iter(f"{POM}flink.series")]
    (pin,) = [line for line in (DEPLOY.parent / "requirements-flink.txt").read_text().splitlines() if "==" in line]
    assert pin.startswith(f"apache-flink-libraries=={series}.")
