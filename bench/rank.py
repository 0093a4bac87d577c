"""How long a ranking takes: 500 candidates of 30 feature ids each, over gRPC on loopback.

    python -m bench.rank [--model_dir DIR]

Starts `serving.server` as its own process and asks it through RankClient, as `serving.rank` does. Without
--model_dir it exports a model of 30 slots, dim 16 and an MLP of 256-128 through model/export; with it, the
model's own catalogue is ranked.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.output import finish
from bench.processes import Child, wait_for_line
from schemas import flags
from schemas.process import CommandParser, UserError, run_main, signals_interrupt
from schemas.quiet import quiet_imports

with quiet_imports():
    from model.catalogue import Entries
    from model.dense import DenseLayout
    from model.export import ExportState, write_version
    from model.feature_ids import pack_ids
    from schemas.config import FeatureConfig, Head, ModelConfig, Side, Slot
    from serving.client import RankClient

USER_SLOTS, ITEM_SLOTS = 10, 20
K = 10
WARM_UP_REQUESTS = 50


@dataclass(frozen=True)
class Workload:
    """Requests to rank `ids`, int64[requests, N, Wi], for `user_ids`, int64[requests, Wu]; used in turn."""

    user_ids: np.ndarray
    ids: np.ndarray


def export_model(model_dir: Path, keys: int, seed: int = 0) -> np.ndarray:
    """Write a version of `keys` rows, as many in each slot; their ids, int64[slots, keys / slots]."""

    def slot(number: int) -> Slot:
        side: Side = "user" if number <= USER_SLOTS else "item"
        return Slot(name=f"s{number}", slot=number, source=f"s{number}", side=side, kind="id", type="int")

    rng = np.random.default_rng(seed)
    config = FeatureConfig(
        name="bench",
        slots=tuple(slot(number) for number in range(1, USER_SLOTS + ITEM_SLOTS + 1)),
        heads=(Head("click", "click", 60), Head("long_view", "long_view", 180)),
        model=ModelConfig(dim=16, hidden=(256, 128)),
    )
    values = np.arange(1, keys // config.num_slots + 1)
    ids = np.stack([pack_ids(each.slot, values) for each in config.slot_order])
    names = np.array([], object)
    state = ExportState(
        keys=ids.ravel(),
        rows=rng.normal(0, 0.05, (ids.size, 1 + config.model.dim)).astype(np.float32),
        dense={name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in DenseLayout.of(config).shapes.items()},
        versions=np.ones(1, np.int64),
        epochs=np.zeros(1, np.int64),
        newest_event_ms=0,
        users=Entries(names, np.zeros((0, config.user_width), np.int64), np.zeros(0, np.int64)),
        items=Entries(names, np.zeros((0, config.item_width), np.int64), np.zeros(0, np.int64)),
    )
    write_version(model_dir, state, config)
    return ids


def random_workload(ids: np.ndarray, candidates: int, seed: int = 1, requests: int = 64) -> Workload:
    """Users and videos drawn evenly from the model's ids, the hardest case for its caches."""
    rng = np.random.default_rng(seed)
    slots = np.arange(len(ids))
    picked = rng.integers(0, ids.shape[1], (requests, candidates, len(ids)))
    rows = ids[slots, picked]
    return Workload(rows[:, 0, :USER_SLOTS].copy(), rows[:, :, USER_SLOTS:].copy())


def catalogue_workload(client: RankClient, candidates: int) -> Workload:
    """The videos in the model's own catalogue, at most `candidates` of them, for a user it does not know.

    Raises:
        UserError: the catalogue is empty.
    """
    found = client.catalogue("")
    if not found.item_ids:
        raise UserError("the model's catalogue is empty: give a --model_dir that was trained on logs with items")
    return Workload(found.user_ids[np.newaxis], found.ids[np.newaxis, :candidates])


@contextlib.contextmanager
def served(model_dir: Path) -> Iterator[RankClient]:
    """A client of a server process over `model_dir`, ready to answer."""
    with tempfile.TemporaryDirectory(prefix="freshet-rank-") as folder:
        port = Path(folder) / "port"
        command = ("--model_dir", model_dir, "--port", 0, "--port_file", port, "--log_level", "warning")
        with (
            Child("serving.server", *command) as server,
            RankClient(f"127.0.0.1:{wait_for_line(port, server)}", timeout_s=30) as client,
        ):
            yield client


def measure(client: RankClient, load: Workload, requests: int, clients: int) -> tuple[np.ndarray, float]:
    """Milliseconds of each of `requests` calls by `clients` threads, and the seconds they took together."""

    def ask(request: int) -> float:
        turn = request % len(load.user_ids)
        started = time.perf_counter()
        client.rank(load.user_ids[turn], load.ids[turn], K)
        return 1000 * (time.perf_counter() - started)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(WARM_UP_REQUESTS)))
        started = time.perf_counter()
        took = np.array(list(pool.map(ask, range(requests))))
        return took, time.perf_counter() - started


def main(argv: list[str] | None = None) -> int:
    """Print the table and the JSON line; 0 then."""
    parser = CommandParser(
        prog="python -m bench.rank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model_dir", type=Path, help="rank this model's catalogue (default: a model made for the purpose)")
    add("--requests", type=flags.count, default=2000, help="rankings measured (default: %(default)s)")
    add("--candidates", type=flags.count, default=500, help="videos a ranking takes (default: %(default)s)")
    add("--keys", type=flags.count, default=300_000, help="rows of the made model (default: %(default)s)")
    args = parser.parse_args(argv)

    with contextlib.ExitStack() as stack:
        stack.enter_context(signals_interrupt())
        model_dir = args.model_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ids = None if args.model_dir else export_model(model_dir, args.keys)
        client = stack.enter_context(served(model_dir))
        load = catalogue_workload(client, args.candidates) if ids is None else random_workload(ids, args.candidates)
        results = {clients: measure(client, load, args.requests, clients) for clients in (1, 4)}

    rows = [
        {
            "clients": clients,
            "p50 ms": float(np.percentile(took, 50)),
            "p99 ms": float(np.percentile(took, 99)),
            "max ms": float(took.max()),
            "rankings/s": len(took) / seconds,
        }
        for clients, (took, seconds) in results.items()
    ]
    alone, _ = results[1]
    finish(
        rows,
        {
            "rank_p50_ms": round(float(np.percentile(alone, 50)), 3),
            "rank_p99_ms": round(float(np.percentile(alone, 99)), 3),
            "candidates": load.ids.shape[1],
            "ids_per_candidate": load.user_ids.shape[1] + load.ids.shape[2],
            "requests": args.requests,
        },
    )
    return 0


if __name__ == "__main__":
    run_main(main)
