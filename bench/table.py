"""The embedding table beside its peers: ids a second, and bytes a key.

    python -m bench.table [--only speed,memory,inserts,latency]

Tables of dim 16 hold 1 M and 5 M keys; batches are of 4,096 and 65,536 ids, uniform or Zipf, as they come: with duplicates.
A lookup gives the embedding of each; a learn also adds the gradients of each id and updates its row by SGD or Adam, and on
Freshet's side does all else that a step does to the table (see bench/table_ours.py). Every contender is a process of its
own; their rounds alternate, so that a noisy machine disturbs them alike, and medians of the rounds are reported; the least
ratio to TFRA's is that on most threads, which it names. At the end it says of each aim whether it is met (see
bench/table_aims.py).

Peers need an environment of their own, which `make bench-peers` makes: TFRA's cuckoo table with its own optimizers,
TensorFlow's DenseHashTable and MutableHashTable, and a Python dict over a NumPy matrix. Without it Freshet is measured alone.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from bench.output import finish, show
from bench.table_aims import RATIOS, verdicts
from schemas import flags
from schemas.process import CommandParser, UserError, run_main, signals_interrupt

_ROOT = Path(__file__).parents[1]
_PEERS = Path(".venv-peers/bin/python")
PARTS = ("speed", "memory", "inserts", "latency")
OURS, TFRA = "freshet", "tfra"
_BATCHES = {4096: 40, 65536: 8}  # a round
_OPERATIONS = (("lookup", "sgd"), ("learn", "sgd"), ("learn", "adam"))


class Contender:
    """A process that answers lines of JSON."""

    def __init__(self, table: str, optimizer: str, keys: int, threads: int) -> None:
        command = [sys.executable, "-m", "bench.table_ours"] if table == OURS else [str(_PEERS), "bench/table_peers.py"]
        self.name = table
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        self._send({"table": table, "optimizer": optimizer, "keys": keys, "threads": threads, "seed": 0})

    def ask(self, **question: object) -> dict[str, Any]:
        """Its answer.

        Raises:
            UserError: it has ended.
        """
        self._send(question)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print lines of their own
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise UserError(f"{self.name}: ended with exit code {self._process.wait()}: try it alone, see bench/table_peers.py")

    def _send(self, line: dict[str, object]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it has ended is told where its answer is missing
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def contenders(tables: list[str], optimizer: str, keys: int, threads: int) -> Iterator[list[Contender]]:
    """Processes, ended at the end."""
    with contextlib.ExitStack() as stack:
        made = []
        for table in tables:
            made.append(Contender(table, optimizer, keys, threads))
            stack.callback(made[-1].close)
        yield made


def speed(args: argparse.Namespace, tables: list[str]) -> tuple[list[dict[str, object]], dict[str, Any]]:
    """Rows of the table, and by operation and setting each contender's million ids a second."""
    rows: list[dict[str, object]] = []
    rates: dict[str, dict[str, float]] = {table: {} for table in tables}
    settings = list(itertools.product(args.keys, args.threads, ("sgd", "adam")))
    for keys, threads, optimizer in track(settings, "speed", disable=not sys.stdout.isatty()):
        able = [table for table in tables if optimizer == "sgd" or table in (OURS, TFRA)]
        with contenders(able, optimizer, keys, threads) as made:
            for batch, ids in itertools.product(args.batch, ("uniform", "zipf")):
                for operation in (operation for operation, by in _OPERATIONS if by == optimizer):
                    seconds: dict[str, list[float]] = {table: [] for table in able}
                    for _, contender in itertools.product(range(args.rounds), made):
                        batches = _BATCHES.get(batch, 8)
                        answer = contender.ask(batch=batch, ids=ids, operation=operation, batches=batches)
                        seconds[contender.name].append(answer["seconds"])
                    what = operation if operation == "lookup" else optimizer
                    setting = f"{what}/{keys}/{batch}/{ids}/{threads}"
                    found = {table: round(batch / float(np.median(taken)) / 1e6, 3) for table, taken in seconds.items()}
                    for table, rate in found.items():
                        rates[table][setting] = rate
                    shown = {"operation": what, "keys": keys, "batch": batch, "ids": ids, "threads": threads}
                    rows.append(shown | {table: found.get(table) for table in tables})
    fields: dict[str, Any] = {"ours": rates[OURS], "peers": {table: rates[table] for table in tables if table != OURS}}
    if TFRA in tables:
        fields[RATIOS] = least_ratios(rates[OURS], rates[TFRA], max(args.threads))
    return rows, fields


def least_ratios(ours: Mapping[str, float], peer: Mapping[str, float], threads: int) -> dict[str, float]:
    """By operation, the least ratio of our rate to a peer's over all settings on so many threads; and `threads`."""
    return {"threads": threads} | {
        what: round(
            min(rate / peer[s] for s, rate in ours.items() if s.startswith(f"{what}/") and s.endswith(f"/{threads}")), 3
        )
        for what in ("lookup", "sgd", "adam")
    }


def memory(args: argparse.Namespace, tables: list[str]) -> tuple[list[dict[str, object]], dict[str, Any]]:
    """Bytes a live key, by the growth of a process since it held a few, at every size from 1 M on in steps of 10 %."""
    sizes = [min(args.keys)]
    while sizes[-1] * 1.1 <= args.most_keys:
        sizes.append(int(sizes[-1] * 1.1))
    few = 20_000
    found: dict[str, list[float]] = {}
    with contenders(tables, "sgd", few, 1) as made:
        for contender in made:
            start = contender.ask(fill=few)["bytes"]
            grown = [(contender.ask(fill=size)["bytes"] - start) / (size - few) for size in track(
                sizes, f"memory: {contender.name}", disable=not sys.stdout.isatty())]  # fmt: skip
            found[contender.name] = [round(each, 1) for each in grown]
    rows = [{"keys": size} | {f"bytes a key: {name}": values[i] for name, values in found.items()}
            for i, size in enumerate(sizes)]  # fmt: skip
    by_size = dict(zip(sizes, found[OURS], strict=True))
    fields: dict[str, Any] = {"bytes_per_key": max(found[OURS]), "bytes_per_key_by_size": by_size}
    if TFRA in found:
        fields["tfra_bytes_per_key"] = max(found[TFRA])
    return rows, fields


def main(argv: list[str] | None = None) -> int:
    """Print the tables and the JSON line; 0 then."""
    parser = CommandParser(
        prog="python -m bench.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", default=",".join(PARTS), help="parts to measure (default: %(default)s)")
    add("--keys", type=flags.count, nargs="+", default=[1_000_000, 5_000_000], help="keys of a table (default: 1 M and 5 M)")
    add("--batch", type=flags.count, nargs="+", default=[4096, 65536], help="ids of a batch (default: 4096 and 65536)")
    add("--threads", type=flags.count, nargs="+", default=[1, 2], help="threads (default: 1 and 2)")
    add("--rounds", type=flags.count, default=5, help="rounds of each measurement (default: %(default)s)")
    add("--most_keys", type=flags.count, default=8_000_000, help="keys up to which memory is measured (default: 8 M)")
    add("--inserts", type=flags.count, default=100_000_000, help="distinct ids to insert under a budget (default: 100 M)")
    add("--table_bytes", type=flags.count, default=512 << 20, help="that budget (default: 512 MiB)")
    add("--steps", type=flags.count, default=2000, help="learn() calls whose times are taken (default: %(default)s)")
    args = parser.parse_args(argv)
    parts = args.only.split(",")
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise UserError(f"--only {args.only}: {', '.join(sorted(unknown))} is unknown: use some of {', '.join(PARTS)}")

    peers = (_ROOT / _PEERS).exists()
    rows: dict[str, list[dict[str, object]]] = {}
    fields: dict[str, Any] = {}
    with signals_interrupt():
        for part in parts:
            started = time.monotonic()
            if part == "speed":
                rows[part], found = speed(args, [OURS, *((TFRA, "dense", "mutable", "dict") if peers else ())])
            elif part == "memory":
                rows[part], found = memory(args, [OURS, *((TFRA,) if peers else ())])
            elif part == "inserts":
                from bench.table_life import inserts  # it compiles kernels: not for --help

                rows[part], found = inserts(args.inserts, args.table_bytes)
            else:
                from bench.table_latency import latency  # and here the network, too

                rows[part], found = latency(args.steps)
            fields |= found | {f"{part}_s": round(time.monotonic() - started, 1)}
    for part in parts:
        show(rows[part])
    said, aims = verdicts(fields)
    finish(said, fields | {"aims": aims})
    return 0


if __name__ == "__main__":
    run_main(main)
