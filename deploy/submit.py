"""Submits the training job to the servers that `deploy.up` started on this machine.

    python -m deploy.submit --config out/world/feature_config.toml --state_dir out/flink/state --model_dir out/models

All options are those of `python -m pipelines.train`, which it becomes; it adds where Flink is, and where Kafka is unless
--logs names a folder. What is given here comes before what it adds.
"""

import argparse
import os
import sys
from pathlib import Path

from deploy.state import SERVERS, running
from schemas.process import CommandParser, run_main


def words(folder: Path, given: list[str]) -> list[str]:
    """Options of `pipelines.train` for the servers of a folder.

    Raises:
        UserError: they do not run.
    """
    flink = running(folder, "flink").endpoints
    options = {
        "--runner": "PortableRunner",
        "--flink_master": flink["rest"],
        "--job_endpoint": flink["job_endpoint"],
        "--artifact_endpoint": flink["artifact_endpoint"],
        "--environment_type": "EXTERNAL",
        "--environment_config": flink["worker_pool"],
    }
    named = {word.split("=", 1)[0] for word in given}
    if "--logs" not in named and "--kafka" not in named:
        options["--kafka"] = running(folder, "kafka").endpoints["bootstrap"]
    return [*given, *(f"{name}={value}" for name, value in options.items() if name not in named)]


def main(argv: list[str] | None = None) -> int:
    """Becomes `pipelines.train`; returns only if that cannot be."""
    parser = CommandParser(
        prog="python -m deploy.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=SERVERS, help="folder that deploy.up was given (default: %(default)s)")
    args, given = parser.parse_known_args(argv)
    os.execv(sys.executable, [sys.executable, "-m", "pipelines.train", *words(args.dir, given)])


if __name__ == "__main__":
    run_main(main)
