"""A Kafka broker on this machine, one process that is its own controller (KRaft).

with KafkaBroker(folder, KafkaOptions(port=0)) as broker:
    AdminClient({"bootstrap.servers": broker.bootstrap})
"""

import logging
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy import install
from deploy.ports import Ports
from deploy.server import Server, wait_until
from deploy.service import Service
from deploy.tail import tail
from schemas.process import UserError

_ASK_S = 1.0
_LOG4J = Path(__file__).with_name("log4j2.properties")


@dataclass(frozen=True)
class KafkaOptions:
    """How a broker runs.

    Attributes:
        port: for clients; 0: any free one.
        controller_port: for itself as its controller; 0: any free one.
        heap_mb: most memory for Java objects, in MiB.
        config: further settings of the broker, by Kafka's names.
    """

    port: int = 9092
    controller_port: int = 9093
    heap_mb: int = 512
    config: Mapping[str, str] = field(default_factory=dict)


class KafkaBroker(Service):
    """A broker whose log lies in FOLDER/kafka/data, and outlives it: started there again, it has its topics still.

    Topics are made by who knows how many partitions they should have, never by the first who names them.
    """

    name: ClassVar[str] = "kafka"

    def __init__(
        self,
        folder: Path,
        options: KafkaOptions | None = None,
        host: str = "127.0.0.1",
        timeout_s: float = 120.0,
    ) -> None:
        super().__init__(folder, host, timeout_s)
        self.options = options or KafkaOptions()
        self.bootstrap = ""

    @property
    def endpoints(self) -> dict[str, str]:
        """`bootstrap`: for `bootstrap.servers` of every client."""
        return {"bootstrap": self.bootstrap}

    @property
    def server(self) -> Server:
        """The broker's process."""
        return self.servers[0]

    def prepare(self, ports: Ports) -> Sequence[Server]:
        """Settings, and a formatted folder for the log unless it has one."""
        port = ports.take(self.options.port, "--kafka_port")
        controller_port = ports.take(self.options.controller_port, "--kafka_controller_port")
        self.bootstrap = f"{self.host}:{port}"
        classes = f"{install.kafka_libraries()}/*"
        program = str(install.java())
        data = self.home / "data"
        data.mkdir(parents=True, exist_ok=True)
        settings = self.home / "server.properties"
        settings.write_text(properties(broker_config(self.host, port, controller_port, data) | dict(self.options.config)))
        logging_option = f"-Dlog4j2.configurationFile={_LOG4J.as_uri()}"
        if not (data / "meta.properties").exists():
            format_folder([program, logging_option, "-cp", classes, "kafka.tools.StorageTool"], new_cluster_id(), settings)
        command = [
            *(program, f"-Xmx{self.options.heap_mb}m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-Djava.awt.headless=true"),
            *(logging_option, "-cp", classes, "kafka.Kafka", str(settings)),
        ]
        return [Server("the Kafka broker", command, self.folder / "logs" / "kafka.log")]

    def wait_ready(self, deadline: float) -> None:
        """Wait until a request for the broker's metadata is answered."""
        silent = logging.Logger("unheard")  # the client's complaints while nobody listens yet
        silent.addHandler(logging.NullHandler())
        # How soon the client tries again: ours is the only wait.
        client = AdminClient(
            {"bootstrap.servers": self.bootstrap, "reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 100}, logger=silent
        )

        def answers() -> bool:
            try:
                return bool(client.list_topics(timeout=_ASK_S).brokers)
            except KafkaException:
                return False

        wait_until(answers, self.servers, deadline, f"answer on {self.bootstrap}")


def broker_config(host: str, port: int, controller_port: int, data: Path) -> dict[str, str]:
    """Settings of a broker that is alone: nothing is replicated, for there is nowhere to."""
    alone = dict.fromkeys(
        (
            "offsets.topic.replication.factor",
            "transaction.state.log.replication.factor",
            "transaction.state.log.min.isr",
            "share.coordinator.state.topic.replication.factor",
            "share.coordinator.state.topic.min.isr",
            # One broker has nothing to spread them over, and opens each of their files at its start.
            "offsets.topic.num.partitions",
            "transaction.state.log.num.partitions",
        ),
        "1",
    )
    return alone | {
        "process.roles": "broker,controller",
        "node.id": "1",
        # Not kept in the log, as that of a dynamic quorum is: the ports may be others at the next start.
        "controller.quorum.voters": f"1@{host}:{controller_port}",
        "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        # A broker that was killed is let in again only when the session of its former life has ended.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # A group of one need not wait for others to join.
        "group.initial.rebalance.delay.ms": "0",
    }


def properties(settings: Mapping[str, str]) -> str:
    """Settings as a Java properties file."""

    def quoted(text: str) -> str:
        # The format is Latin-1 with a backslash before what is special; anything else stands as its UTF-16 units in hex.
        units = text.replace("\\", "\\\\").encode("utf-16-be").hex()
        codes = [int(units[at : at + 4], 16) for at in range(0, len(units), 4)]
        return "".join(chr(code) if 32 <= code < 127 else f"\\u{code:04x}" for code in codes)

    return "".join(f"{name}={quoted(value)}\n" for name, value in settings.items())


def new_cluster_id() -> str:
    """A name nobody else has: 22 characters of URL-safe base64, the first of which may be a dash."""
    return urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def format_folder(tool: Sequence[str], cluster_id: str, settings: Path) -> None:
    """Make the folder that `settings` names a broker's, by Kafka's storage tool."""
    done = subprocess.run(
        # In one word with its option: a name that begins with a dash would be taken for an option of its own.
        [*tool, "format", f"--cluster-id={cluster_id}", "-c", str(settings)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise UserError(f"Kafka cannot format its folder with {settings}:{tail(done.stdout + done.stderr)}")
