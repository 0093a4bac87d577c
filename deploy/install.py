"""What the servers are made of: jars from Maven and Flink's Python package, fetched once into .servers/.

Each is made anew when the file that pins it changes: a pom.xml in a folder beside this one, or
requirements-flink.txt.
Where they come from is the business of Maven's and pip's own settings on this machine.

    python -m deploy.install    # ahead of the first start
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.tail import tail
from schemas.process import CommandParser, UserError, run_main

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ROOT / ".servers"

#: Kafka 4's broker needs it, and Flink 1.19 takes it.
JAVA_VERSION = 17


def java() -> Path:
    """The program java: that of JAVA_HOME, else the one on the path.

    Raises:
        UserError: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home, "bin")) if home else None)
    if found is None:
        place = f"in JAVA_HOME, {home}" if home else "on the path"
        raise UserError(f"no java {place}: install a Java runtime, version {JAVA_VERSION} or newer")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None or int(version[1]) < JAVA_VERSION:
        raise UserError(f"{found} is no Java {JAVA_VERSION} or newer, but: {said.splitlines()[0] if said else 'silent'}")
    return Path(found)


def maven() -> Path:
    """The program mvn.

    Raises:
        UserError: there is none.
    """
    found = shutil.which("mvn")
    if found is None:
        raise UserError("no mvn on the path: install Apache Maven, which fetches the servers' jars")
    return Path(found)


def kafka_libraries() -> Path:
    """Folder of the jars of a Kafka broker."""
    pom = ROOT / "deploy" / "kafka" / "pom.xml"
    return _made("kafka", pom, lambda folder: _package(pom, f"-Dkafka.folder={folder}"))


def job_server_jar() -> Path:
    """Beam's job server for Flink."""
    pom = ROOT / "deploy" / "flink" / "pom.xml"
    return _made("flink-job-server", pom, lambda folder: _package(pom, f"-Djob.server.folder={folder}")) / "job-server.jar"


def flink_home() -> Path:
    """Folder with lib/, bin/ and plugins/ of a Flink distribution."""
    pins = ROOT / "requirements-flink.txt"
    return _made("flink", pins, lambda folder: _install(pins, folder)) / "pyflink"


def schema_registry() -> Path:
    """Folder of a registry of schemas, for the tests: its jar, with what that needs beside it."""
    pom = ROOT / "deploy" / "schema_registry" / "pom.xml"
    return _made("schema-registry", pom, lambda folder: _package(pom, f"-Dregistry.folder={folder}"))


def _made(name: str, source: Path, make: Callable[[Path], None]) -> Path:
    """Folder of a thing, made by `make` unless it is there as the file `source` says it should be."""
    folder, stamp = INSTALLED / name, hashlib.sha256(source.read_bytes()).hexdigest()
    INSTALLED.mkdir(exist_ok=True)
    with (INSTALLED / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two that start servers at once: the second takes what the first has made
        mark = folder / "made-from"
        if mark.exists() and mark.read_text() == stamp:
            return folder
        print(f"fetching {name}, once", file=sys.stderr, flush=True)
        draft = folder.with_name(f".{name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        make(draft)
        (draft / "made-from").write_text(stamp)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    return folder


def _package(pom: Path, setting: str) -> None:
    java()
    _run([maven(), "-B", "-ntp", "-q", "-f", pom, setting, "package"], f"mvn -f {pom}")


def _install(pins: Path, folder: Path) -> None:
    # Without what it depends on, which is nothing that a JVM reads.
    uv: list[str | Path] = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps"]
    _run([*uv, "--target", folder, "-r", pins], f"uv pip install -r {pins}")


def _run(command: list[str | Path], name: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{name} failed with status {done.returncode}:{tail(done.stdout + done.stderr)}")


def main(argv: list[str] | None = None) -> int:
    """Fetch all of them; 0 then."""
    parser = CommandParser(
        prog="python -m deploy.install", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    for path in (java(), kafka_libraries(), job_server_jar(), flink_home()):
        print(path)
    return 0


if __name__ == "__main__":
    run_main(main)
