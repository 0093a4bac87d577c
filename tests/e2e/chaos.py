"""The training job on Flink, fed by Kafka, while one thing after the other dies under it: is each message learned once?

    python -m tests.e2e.chaos --faults 20

Topics with an end are learned by a job whose Python worker, task manager, job manager, broker and model server are killed
(SIGKILL) or paused for 30 s, and whose disk is filled, at moments spread over the topics. At the end each request sent has
been learned once, by its own row; the table is that of an undisturbed run: keys and counts exactly, values to 1e-5; dead
letters are the messages planted, each once; the newest model is served; and no process is left. Exit status 1 says that
something of it is not so.
"""

import argparse
import contextlib
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.flink_cluster import FlinkCluster
from deploy.flink_config import FlinkOptions
from deploy.kafka_broker import KafkaBroker, KafkaOptions
from deploy.model_server import ModelServer
from deploy.server import processes_of
from schemas.process import CommandParser, UserError, run_main, signals_interrupt
from serving.client import RankClient
from tests.e2e.chaos_faults import FILL_DISK, KILLS, PAUSES, Stage
from tests.e2e.chaos_world import Sent
from tests.e2e.flink_jobs import WAIT_S, assert_same, learned_locally, manifests

ANY_FLINK = FlinkOptions(rest_port=0, rpc_port=0, job_port=0, artifact_port=0, expansion_port=0, pool_port=0)
# So slow that there is time for faults: small batches and small steps.
SLOW = ("--step", "4", "--batch_rows", "128", "--window", "500")
FLINK = ("--max_bundle_size=2", "--snapshot_interval", "3", "--progress_interval", "2")
# So short that the snapshots of the whole run need not find room at once, and longer than any checkpoint is the newest.
RETENTION = ("--state_retention", "0.1")
_DISK_MB = 256


def kinds(number: int, small: bool, seed: int) -> list[str]:
    """So many faults, drawn: each kind comes before any comes again."""
    drawn, every = random.Random(seed), [*KILLS, *PAUSES, *([FILL_DISK] if small else [])]
    order: list[str] = []
    while len(order) < number:
        order += drawn.sample(every, len(every))
    return order[:number]


def moments(number: int, examples: int, seed: int) -> list[int]:
    """Examples learned at which faults come: one at a random moment of each of `number` equal stretches.

    The last stretch ends early, so that there is something left to be learned after each.
    """
    drawn, stretch = random.Random(seed), examples / (number + 1)
    return [round((at + drawn.random()) * stretch) for at in range(number)]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of a few MiB in a folder, where the system lets us have one; whether it does."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "freshet-chaos", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def chaos(folder: Path, faults: int | Sequence[str], requests: int, seed: int) -> None:
    """One run.

    Args:
        folder: for all that it writes.
        faults: how many, or which, by the names of methods of `Stage`.
        requests: of one video each.
        seed: of the world, the faults and their moments.

    Raises:
        AssertionError: something was lost, learned twice, or left running.
    """
    with (
        KafkaBroker(folder / "kafka", KafkaOptions(port=0, controller_port=0)) as broker,
        FlinkCluster(folder / "flink", ANY_FLINK) as cluster,
        ModelServer(folder / "serving", folder / "models", port=0) as serving,
        small_disk(folder / "disk") as small,
    ):
        sent = Sent(broker.bootstrap, folder / "logs", requests, seed)
        options = ["--kafka", broker.bootstrap, "--config", str(sent.config), *SLOW]
        undisturbed = folder / "undisturbed"
        expected = learned_locally(options, undisturbed)
        sent.check(undisturbed)
        if not small:
            print("no file system of our own may be mounted here: the disk is not filled", flush=True)
        order = (
            kinds(faults, small, seed) if isinstance(faults, int) else [kind for kind in faults if small or kind != FILL_DISK]
        )
        options += ["--model_dir", str(folder / "models"), *FLINK, *RETENTION]
        stage = Stage(cluster, broker, serving, folder, options)
        try:
            _disturb(stage, order, moments(len(order), expected["examples"], seed))
        finally:
            stage.end()
        assert_same(stage.job.state, stage.job.figures(), (expected, undisturbed))
        sent.check(stage.job.state)
        _check_served(serving, folder / "models", expected["model_version"])
        tokens = [server.token for service in (cluster, broker, serving) for server in service.servers]
    left = [process for token in tokens for process in processes_of(token)]
    if left:
        raise AssertionError(f"left running: {left}")
    print(
        f"{len(order)} faults: {len(sent.requests):,} requests, each learned once; {len(sent.planted)} dead letters, those "
        "planted; the newest model served; nothing left running",
        flush=True,
    )


def _disturb(stage: Stage, order: Sequence[str], at: Sequence[int]) -> None:
    """Faults at so many examples each, and then the job's end."""
    stage.job.wait_for(lambda: bool(manifests(stage.job.state)))
    for number, (fault, moment) in enumerate(zip(order, at, strict=True), 1):
        stage.job.wait_for(lambda moment=moment: stage.job.ended_well or stage.job.figures()["examples"] >= moment)
        if stage.job.ended_well:  # while something was paused
            raise UserError(f"the topics ended after {number - 1} of {len(order)} faults: give --requests more")
        print(f"{number:>3} of {len(order)}: {fault} at {stage.job.figures()['examples']:,} examples", flush=True)
        stage.happen(fault)
    if stage.job.process.wait(10 * WAIT_S) != 0:
        raise AssertionError(f"the job failed: see {stage.job.log}")


def _check_served(serving: ModelServer, models: Path, steps: int) -> None:
    """Whether the model server comes to serve the newest version, and that is of the end of the topics."""
    newest = max(int(path.name) for path in models.iterdir() if path.name.isdigit())
    deadline = time.monotonic() + WAIT_S
    with RankClient(serving.address) as client:
        while (version := client.wait_until_ready(WAIT_S)) != newest:
            if time.monotonic() > deadline:
                raise AssertionError(f"version {version} is served, not {newest}: see {serving.servers[0].log}")
            time.sleep(0.1)
        found = client.catalogue("1")
        ranking = client.rank(found.user_ids, found.ids[:10], 5)
    if (ranking.version, ranking.shard_versions.tolist()) != (newest, [steps]):
        raise AssertionError(
            f"version {ranking.version} of step {ranking.shard_versions.tolist()} ranks, not {newest} of {steps}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it in a folder that stays if it fails."""
    parser = CommandParser(
        prog="python -m tests.e2e.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", metavar="N", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--requests", metavar="N", type=int, default=150_000, help="of one video each (default: %(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the world and the faults (default: %(default)s)")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="freshet-chaos-"))
    print(f"logs and states: {folder}", flush=True)
    with signals_interrupt():
        chaos(folder, args.faults, args.requests, args.seed)
    return 0


if __name__ == "__main__":
    run_main(main)
