"""Stop a training job on Flink with a savepoint, from which it can go on.

    python -m pipelines.stop --flink_master localhost:8081 --state_dir STATE

It prints the savepoint's place; the job goes on from there with the options it was submitted with and --savepoint_path. A
savepoint names a snapshot in STATE, which is kept from now on, however old, by a file *.pin beside it: remove that with the
savepoint. Without a savepoint a job can always be cancelled, and submitted again with the same --state_dir: it goes on from
its newest snapshot then.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from schemas.process import CommandParser, UserError, run_main, setup_logging

from . import flink
from .state_files import StateFiles


def the_job(rest: str, wanted: str | None) -> flink.Job:
    """The job to stop: that of a name or id, or the only one.

    Raises:
        UserError: there is none, or more than one.
    """
    jobs = [job for job in flink.alive(rest) if job.name.startswith(flink.JOB_PREFIX) or wanted in job]
    found = [job for job in jobs if wanted is None or wanted in job]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(job.name for job in jobs)) or "none"
    if wanted is None:
        raise UserError(f"--flink_master {rest}: {len(jobs)} training jobs run there ({names}): name one by --job")
    raise UserError(f"--job {wanted}: no such job runs on {rest} ({names} do)")


def main(argv: Sequence[str] | None = None) -> int:
    """Stops the job and prints where its savepoint lies."""
    parser = CommandParser(
        prog="python -m pipelines.stop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--flink_master", metavar="HOST:PORT", required=True, help="Flink's job manager: its web interface and REST"
    )
    parser.add_argument("--state_dir", metavar="STATE", type=Path, required=True, help="folder that the job keeps its state in")
    parser.add_argument("--job", metavar="NAME", help="its name or id (default: the only training job there)")
    parser.add_argument(
        "--savepoint_dir", metavar="URI", help="folder for savepoints (default: the cluster's state.savepoints.dir)"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=120.0, help="to wait for the savepoint (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    setup_logging()
    rest = args.flink_master.removeprefix("http://")
    shards = [int(path.name.rpartition("-")[2]) for path in args.state_dir.glob("shard-[0-9][0-9][0-9]")]
    if not shards:
        raise UserError(f"--state_dir {args.state_dir}: no job keeps its state there: give the job's own")
    files = [StateFiles(args.state_dir, shard) for shard in sorted(shards)]
    try:
        job = the_job(rest, args.job)
        # The savepoint may name the newest snapshot of now, or any that comes while it is written.
        before = [each.manifests()[-1:] for each in files]
        place = flink.stop_with_savepoint(rest, job.id, args.savepoint_dir, args.timeout)
    except OSError as error:
        raise UserError(f"--flink_master {rest}: {error}: is it the address of Flink's web interface?") from error
    for each, oldest in zip(files, before, strict=True):
        each.pin([name for name in each.manifests() if not oldest or name >= oldest[0]])
    print(place)
    return 0


if __name__ == "__main__":
    run_main(main)
