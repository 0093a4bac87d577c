"""Settings of a Flink cluster on this machine, and the command lines of its processes."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.tail import tail
from schemas.process import UserError

_LOG4J = Path(__file__).with_name("log4j2.properties")

# What Java 17 keeps closed and Flink reaches into: those of env.java.opts.all in the conf/config.yaml of its distribution.
_EXPORTS = (
    *("java.base/sun.net.util", "java.rmi/sun.rmi.registry", "java.security.jgss/sun.security.krb5"),
    *(f"jdk.compiler/com.sun.tools.javac.{name}" for name in ("api", "file", "parser", "tree", "util")),
)
_OPENS = (
    *("java.lang", "java.lang.reflect", "java.net", "java.io", "java.nio", "sun.nio.ch", "java.text", "java.time"),
    *("java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks"),
)
JAVA_OPTIONS = (
    *(f"--add-exports={each}=ALL-UNNAMED" for each in _EXPORTS),
    *(f"--add-opens=java.base/{each}=ALL-UNNAMED" for each in _OPENS),
)


@dataclass(frozen=True)
class FlinkOptions:
    """How a cluster runs. Ports: 0 is any free one; those not named here are always free ones.

    Attributes:
        rest_port: web interface and REST.
        rpc_port: of the job manager, for task managers.
        job_port: Beam's job server, for who submits.
        artifact_port: the same, for what a job stages.
        expansion_port: the same, for transforms of other languages.
        pool_port: Beam's worker pool, for task managers.
        task_managers: processes.
        slots: of each task manager.
        job_manager_mb: memory of its process in all, in MiB.
        task_manager_mb: memory of one process in all, in MiB; the Python workers' comes on top of it.
        job_server_heap_mb: most memory for Java objects, in MiB.
        config: further settings of job manager and task managers, by Flink's names.
    """

    rest_port: int = 8081
    rpc_port: int = 6123
    job_port: int = 8099
    artifact_port: int = 8098
    expansion_port: int = 8097
    pool_port: int = 50000
    task_managers: int = 1
    slots: int = 2
    job_manager_mb: int = 1024
    task_manager_mb: int = 1536
    job_server_heap_mb: int = 512
    config: Mapping[str, str] = field(default_factory=dict)


def cluster_config(options: FlinkOptions, host: str, rest_port: int, rpc_port: int, home: Path) -> dict[str, str]:
    """Settings of job manager and task managers that keep what they write in the folder `home`."""
    return {
        "jobmanager.rpc.address": host,
        "jobmanager.rpc.port": str(rpc_port),
        "jobmanager.bind-host": host,
        "jobmanager.memory.process.size": f"{options.job_manager_mb}m",
        "rest.address": host,
        "rest.bind-address": host,
        "rest.port": str(rest_port),
        "rest.bind-port": str(rest_port),
        "taskmanager.host": host,
        "taskmanager.bind-host": host,
        "taskmanager.numberOfTaskSlots": str(options.slots),
        "taskmanager.memory.process.size": f"{options.task_manager_mb}m",
        # Only RocksDB would use it; state on the heap, Flink's default, would lack it.
        "taskmanager.memory.managed.fraction": "0.1",
        # Two that fail tell that the other was killed, in seconds; one that is silent has its usual 50 s (heartbeat.timeout).
        "heartbeat.interval": "2000",
        # A task manager that is up before its job manager tries again soon, not after 10 s.
        "cluster.registration.error-delay": "200",
        "io.tmp.dirs": str(home / "tmp"),
        "state.checkpoints.dir": (home / "checkpoints").as_uri(),
        "state.savepoints.dir": (home / "savepoints").as_uri(),
        **options.config,
    }


def yaml(settings: Mapping[str, str]) -> str:
    """Settings as a config.yaml: names and values in quotes, and ASCII, whatever encoding a JVM takes it to be."""

    def quoted(text: str) -> str:
        signs = json.dumps(text, ensure_ascii=False)
        return "".join(sign if sign.isascii() else f"\\U{ord(sign):08x}" for sign in signs)

    return "".join(f"{quoted(name)}: {quoted(value)}\n" for name, value in settings.items())


class FlinkCommands:
    """Command lines of a job manager and its task managers.

    Args:
        java: the program.
        flink: folder with lib/ and bin/.
        home: of the cluster, with conf/config.yaml and tmp/.
    """

    def __init__(self, java: Path, flink: Path, home: Path) -> None:
        self._java, self._flink, self._home = java, flink, home

    def job_manager(self, log: Path) -> list[str]:
        """That of the job manager, which the web interface shows `log` of."""
        return self._command("JM", "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint", log)

    def task_manager(self, log: Path) -> list[str]:
        """That of a task manager."""
        return self._command("TM", "org.apache.flink.runtime.taskexecutor.TaskManagerRunner", log)

    def _command(self, kind: str, main: str, log: Path) -> list[str]:
        jvm, settings = self._resources(kind)
        return [
            *(str(self._java), *jvm, *JAVA_OPTIONS, "-XX:+UseG1GC", f"-Djava.io.tmpdir={self._home / 'tmp'}"),
            *(f"-Dlog4j2.configurationFile={_LOG4J.as_uri()}", f"-Dlog.file={log}"),
            *("-cp", f"{self._flink / 'lib'}/*", main, "--configDir", str(self._home / "conf"), *settings),
        ]

    def _resources(self, kind: str) -> tuple[list[str], list[str]]:
        """Memory options for the JVM, and settings that go with them, as Flink's own scripts ask for them."""
        classes = f"{self._flink / 'bin'}/*:{self._flink / 'lib'}/*"
        program = "org.apache.flink.runtime.util.bash.BashJavaUtils"
        command = [str(self._java), "-cp", classes, program, f"GET_{kind}_RESOURCE_PARAMS"]
        command += ["--configDir", str(self._home / "conf")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        mark = "BASH_JAVA_UTILS_EXEC_RESULT:"
        found = [line.removeprefix(mark).split() for line in done.stdout.splitlines() if line.startswith(mark)]
        if len(found) != 2:
            settings = self._home / "conf" / "config.yaml"
            raise UserError(f"Flink cannot divide its memory by {settings}:{tail(done.stdout + done.stderr)}")
        return found[0], found[1]
