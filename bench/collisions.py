"""What collisions cost: every id on its own, against ids hashed into a smaller space, as in the Monolith paper's Figure 7.

    python -m bench.collisions [--kuairand_dir FOLDER] [--plot FILE]

Two arms learn clicks from the same examples in the same order, from the same initial values. One's table holds every id; the
other's ids of users and videos are re-indexed and hashed by md5 into spaces so small that as many are lost as in the paper's
Table 1: 7.73 % of the users, 2.86 % of the videos. Ids that do not meet keep their initial values, so that nothing but the
meetings parts the arms; who meets whom is drawn anew for each seed. AUC is progressive: each step of examples is predicted,
as a server would, and then learned, once, in time order, from the first on.

The simulator makes a world for each seed, with users and videos that have tastes and qualities of their own, as they have in
the paper's MovieLens. The aim is a difference of more than three of its standard errors over the seeds. KuaiRand-Pure, where
there is one, is reported beside it. Raw strings may still meet as they become ids, in a hash of 48 bits: that is counted, too.

Reference:
    Liu et al.: Monolith: Real Time Recommendation System With Collisionless Embedding Table. 2022, section 4.2.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.collisions_arms import RATES, Comparison, Examples, Learned, examples_of, hashed_arm, learn, paper_space
from bench.collisions_chart import draw, need_place
from bench.collisions_hashing import PAPER_SPACE, Hashing, digests, left, string_meetings
from bench.output import finish, show
from pipelines.datasets import SimulatorOptions, read_kuairand, simulate
from schemas import flags
from schemas.config import load_config
from schemas.process import CommandParser, UserError, run_main, signals_interrupt

SIMULATOR, KUAIRAND = "simulator", "KuaiRand-Pure"
PAPER_IDS = {"user_id": 162_541, "video_id": 59_047}
_SHARED = Path("../shared/data/kuairand_pure")
_SCHEMAS = Path(__file__).parents[1] / "schemas"
_WINDOWS = 10


def compare(data: Callable[[int], Examples], seeds: int, step: int, learned: Callable[[int, int], None]) -> Comparison:
    """Both arms on `data(seed)` for seeds from 0 on; `learned` is told how many examples there are in all, and each step's."""
    own: list[Learned] = []
    other: list[Learned] = []
    hashings: list[Mapping[str, Hashing]] = []
    for seed in range(seeds):
        examples = data(seed)
        told = partial(learned, 2 * seeds * len(examples))
        hashed, how = hashed_arm(examples, paper_space, seed)
        own.append(learn(examples, seed, step, _WINDOWS, told))
        other.append(learn(hashed, seed, step, _WINDOWS, told))
        hashings.append(how)
    return Comparison(own, other, hashings)


def measured(comparisons: Mapping[str, Comparison]) -> tuple[list[dict[str, object]], dict[str, Any]]:
    """Rows of the table, and fields of the JSON line: means over the seeds."""
    rows: list[dict[str, object]] = []
    fields: dict[str, Any] = {}
    for name, found in comparisons.items():
        prefix = "" if name == SIMULATOR else "kuairand_"
        for arm, runs in (("collisionless", found.own), ("hashed", found.hashed)):
            aucs = [run.auc for run in runs]
            rows_held = float(np.mean([run.rows for run in runs]))
            by_seed = "  ".join(f"{auc:.4f}" for auc in aucs)
            rows.append({"data": name, "arm": arm, "AUC": f"{np.mean(aucs):.5f}", "rows": round(rows_held), "by seed": by_seed})
            fields |= {f"{prefix}auc_{arm}": round(float(np.mean(aucs)), 6), f"{prefix}rows_{arm}": round(rows_held)}
        difference, error = float(found.differences.mean()), found.standard_error
        by_seed = "  ".join(f"{each:+.4f}" for each in found.differences)
        rows.append({"data": name, "arm": "difference", "AUC": f"{difference:+.5f}", "rows": None, "by seed": by_seed})
        fields |= {
            f"{prefix}auc_difference": round(difference, 6),
            f"{prefix}auc_difference_se": round(error, 6),
            f"{prefix}auc_difference_by_seed": [round(float(each), 6) for each in found.differences],
            f"{prefix}exceeds_three_se": found.exceeds_aim,
        }
        for slot in RATES:
            kind = slot.removesuffix("_id") + "s"
            fields[f"{prefix}{kind}"] = round(_mean(found, slot, "ids"))
            fields[f"{prefix}collision_rate_{kind}"] = round(_mean(found, slot, "rate"), 5)
    return rows, fields


def spaces(comparisons: Mapping[str, Comparison]) -> list[dict[str, object]]:
    """Table 1: the paper's numbers by the same hashing, and those of the comparisons."""

    def row(name: str, slot: str, ids: float, space: float, kept: float, rate: float) -> dict[str, object]:
        sizes: dict[str, object] = {"ids": round(ids), "space": round(space), "left": round(kept)}
        return {"data": name, "slot": slot, **sizes, "collision rate": f"{rate:.3%}", "paper's": f"{RATES[slot]:.3%}"}

    rows = []
    for slot, ids in PAPER_IDS.items():
        paper = Hashing(ids, PAPER_SPACE, left(digests(ids), PAPER_SPACE))
        rows.append(row("MovieLens' numbers", slot, paper.ids, paper.space, paper.left, paper.rate))
    rows += [
        row(name, slot, *(_mean(found, slot, what) for what in ("ids", "space", "left", "rate")))
        for name, found in comparisons.items()
        for slot in RATES
    ]
    return rows


def verdict(name: str, found: Comparison) -> str:
    """Whether the difference is beyond chance."""
    difference, error = found.differences.mean(), found.standard_error
    holds = "exceeds" if found.exceeds_aim else "does NOT exceed"
    return (
        f"{name}: collisionless above hashed by {difference:+.5f} AUC, standard error {error:.5f} over {len(found.own)} "
        f"seeds: it {holds} three of them"
    )


def main(argv: list[str] | None = None) -> int:
    """Print the tables and the JSON line, draw the picture; 0 then."""
    parser = CommandParser(
        prog="python -m bench.collisions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kuairand_dir", type=Path, metavar="FOLDER",
        help=f"KuaiRand-Pure as unpacked (default: $KUAIRAND_DIR, or {_SHARED}; left out where there is none)")  # fmt: skip
    add("--rows", type=flags.count, help="impressions of KuaiRand-Pure, its first ones (default: all)")
    add("--users", type=flags.count, default=10_000, help="users of the simulated world (default: %(default)s)")
    add("--days", type=flags.positive, default=10.0, help="simulated days (default: %(default)s)")
    add("--requests", type=flags.count, default=160_000, help="in them, of five impressions each (default: %(default)s)")
    add("--seeds", type=flags.count, default=5, help="worlds, initial values and meetings, at least 2 (default: %(default)s)")
    add("--step", type=flags.count, default=256, help="examples a step of the model (default: %(default)s)")
    add("--strings", type=flags.count, default=40_000_000, help="distinct strings to hash to 48 bits (default: %(default)s)")
    add("--plot", type=Path, default=Path("out/collisions.png"), help="picture, .png or .svg (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.seeds < 2:
        raise UserError(f"--seeds {args.seeds}: a standard error needs at least 2")
    need_place(args.plot)

    def world(seed: int) -> Examples:
        options = SimulatorOptions(users=args.users, days=args.days, requests=args.requests, seed=seed)
        return examples_of(load_config(_SCHEMAS / "simulator.toml"), simulate(options).events)

    data = {SIMULATOR: world}
    log = _kuairand(args.kuairand_dir, args.rows)
    if log is not None:
        data[KUAIRAND] = lambda seed: log
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    comparisons = {}
    with signals_interrupt():
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

            def learned(task: TaskID, total: int, count: int) -> None:
                progress.update(task, total=total, advance=count)

            for name, of_seed in data.items():
                told = partial(learned, progress.add_task(name, total=None))
                comparisons[name] = compare(of_seed, args.seeds, args.step, told)
        draw(args.plot, comparisons)
        with console.status("hashing strings"):
            meetings = string_meetings(args.strings)
    rows, fields = measured(comparisons)
    show(rows)
    show(spaces(comparisons))
    for name, found in comparisons.items():
        print(verdict(name, found))
    if log is None:
        print(f"{KUAIRAND}: left out, as there is no {_SHARED}: give --kuairand_dir, or set KUAIRAND_DIR")
    print(f"picture: {args.plot}")
    for met in meetings:
        fields[f"hash{met.bits}_pairs_expected"], fields[f"hash{met.bits}_pairs"] = round(met.expected, 4), met.pairs
    fields |= {"hash48_strings": args.strings, "seeds": args.seeds, "step": args.step}
    finish([{"bits of the hash": met.bits, "strings": met.strings, "pairs expected": met.expected, "pairs": met.pairs}
            for met in meetings], fields)  # fmt: skip
    return 0


def _kuairand(folder: Path | None, rows: int | None) -> Examples | None:
    """The log, or None where no folder was given and there is none in the usual place."""
    given = folder or (Path(os.environ["KUAIRAND_DIR"]) if os.environ.get("KUAIRAND_DIR") else None)
    if given is None and not _SHARED.is_dir():
        return None
    try:
        stream = read_kuairand(given or _SHARED, rows)
    except UserError as error:
        # The remedies are those of commands that read one data set, whose folder is their --path.
        raise UserError(str(error).replace("--path", "--kuairand_dir")) from error
    return examples_of(load_config(_SCHEMAS / "kuairand.toml"), stream.events)


def _mean(found: Comparison, slot: str, what: str) -> float:
    return float(np.mean([getattr(how[slot], what) for how in found.hashings]))


if __name__ == "__main__":
    run_main(main)
