"""What it costs to let ids share embeddings: the collisionless table against hashing into a smaller space.

    python -m bench.collisions [--path FOLDER] [--out DIR]

As in Figure 7 of the Monolith paper (Liu et al. 2022), a DeepFM on the ids of user and video alone; in one arm each id has
its own row, in the other ids are first hashed into a smaller space, where some meet. The hash is MD5 modulo a space: with
a space of 1,000,000 it gives the paper's Table 1 (149,970 of 162,541 users and 57,361 of 59,047 movies are left), and the
spaces here are as full as those were, so that as many ids meet. Both arms see the same impressions in the same order, with
the same initial network; each impression is scored before it is learned, and counts once the first fifth has been learned.

The simulator tells the difference from chance: its users and videos have tastes and qualities of their own. On
KuaiRand-Pure it is reported. `hash48_pairs` counts how many of some million strings meet in the 48 bits of a feature id, the
one place where two ids of Freshet can meet at all; n^2 / 2^49 pairs are expected.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from rich.progress import track

from bench.output import finish
from schemas import flags
from schemas.config import FeatureConfig, Head, ModelConfig, OptimizerConfig, Slot
from schemas.process import CommandParser, UserError, run_main, signals_interrupt
from schemas.quiet import quiet_imports

with quiet_imports():
    from model.evaluation import Progressive
    from model.feature_ids import hash_strings, pack_ids
    from model.trainer import ExampleBatch, Trainer
    from pipelines.datasets.kuairand import read_kuairand
    from pipelines.datasets.requests import Events
    from pipelines.datasets.simulator import World

#: Ids and space of the paper's Table 1.
PAPER_USERS, PAPER_MOVIES, PAPER_SPACE = 162_541, 59_047, 1_000_000
ARMS = ("collisionless", "hashed")
_WINDOWS = 20
_WARM = _WINDOWS // 5  # of them, learned before any counts
_STEP = 256


@dataclass(frozen=True)
class Impressions:
    """A log in time order: user int64[N] and video int64[N], numbered from 0 as they appear, and clicked float32[N]."""

    user: np.ndarray
    video: np.ndarray
    clicked: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


def md5_modulo(count: int, space: int) -> np.ndarray:
    """Where ids 0 to `count` - 1 go in a space: int64[count]."""
    digests = (hashlib.md5(b"%d" % i, usedforsecurity=False).digest() for i in range(count))
    return np.fromiter((int.from_bytes(digest, "big") % space for digest in digests), np.int64, count)


def as_full(count: int, of_paper: int) -> int:
    """The space that is as full of `count` ids as the paper's was of `of_paper`."""
    return max(1, round(count * PAPER_SPACE / of_paper))


def impressions(stream: Iterator[Events], rows: int) -> Impressions:
    """The first `rows` of a stream."""
    users, videos, clicked, seen = [], [], [], 0
    for requests, actions, truth in stream:
        shown_by = np.repeat(np.arange(len(requests)), np.diff(requests.item_offsets))
        users.append(requests.user_id[shown_by])
        videos.append(requests.item_id)
        if truth is not None:
            clicked.append(truth.happened[:, truth.heads.index("click")])
        else:
            clicks = actions.take(actions.action == "click")
            pairs = set(zip(clicks.request_id, clicks.item_id, strict=True))
            shown = zip(requests.request_id[shown_by], requests.item_id, strict=True)
            clicked.append(np.fromiter((pair in pairs for pair in shown), np.bool_, requests.impressions))
        seen += requests.impressions
        if seen >= rows:
            break
    user, video = (pd.factorize(np.concatenate(names))[0].astype(np.int64)[:rows] for names in (users, videos))
    return Impressions(user, video, np.concatenate(clicked)[:rows].astype(np.float32))


def simulated(seed: int, rows: int) -> Impressions:
    """A world where each user is shown some fifty videos, and each video to some hundreds of users."""
    world = World(seed=seed, users=max(10, rows // 50), requests_per_day=rows / 5 / 10, videos=max(100, rows // 400))
    return impressions(iter(lambda: world.requests(2_000), None), rows)


def config_of(dim: int) -> FeatureConfig:
    """Users and videos by their ids alone."""
    rows = OptimizerConfig("adagrad", learning_rate=0.05)
    user = Slot("user", 1, "user", "user", "id", "int", optimizer=rows)
    video = Slot("video", 2, "video", "item", "id", "int", optimizer=rows)
    return FeatureConfig("bench.collisions", (user, video), (Head("click", "click", 1.0),), ModelConfig(dim=dim))


def learn(log: Impressions, places: tuple[np.ndarray, np.ndarray], seed: int) -> tuple[float, list[float], int]:
    """AUC of one arm: of all that counts, and by windows; and its rows.

    Args:
        log: what happened.
        places: int64, where each user and each video goes.
        seed: of the initial values.
    """
    trainer = Trainer(config_of(16), seed=seed, capacity=len(log) // 10)
    ids = np.stack(
        [pack_ids(slot, 1 + place[of]) for slot, place, of in zip((1, 2), places, (log.user, log.video), strict=True)], 1
    )
    windows = [Progressive() for _ in range(_WINDOWS)]
    for start in range(0, len(log), _STEP):
        part = slice(start, min(start + _STEP, len(log)))
        labels = log.clicked[part, None]
        logits = trainer.predict(ids[part])
        windows[start * _WINDOWS // len(log)].update(logits[:, 0], labels[:, 0])
        n = len(labels)
        trainer.learn(ExampleBatch(ids[part], labels, np.ones_like(labels), np.ones(n, np.bool_), np.zeros(n, np.int64)))
        trainer.trim(trainer.version)
    counted = Progressive()
    for window in windows[_WARM:]:
        counted.merge(window)
    return counted.auc, [window.auc for window in windows], len(trainer.table)


def compare(name: str, log: Impressions, seed: int) -> dict[str, Any]:
    """Both arms on one log."""
    users, videos = int(log.user.max()) + 1, int(log.video.max()) + 1
    hashed = md5_modulo(users, as_full(users, PAPER_USERS)), md5_modulo(videos, as_full(videos, PAPER_MOVIES))
    met: dict[str, Any] = {"data": name, "impressions": len(log), "users": users, "videos": videos}
    met |= {
        f"{kind}_met": 1 - np.unique(places).size / places.size
        for kind, places in zip(("users", "videos"), hashed, strict=True)
    }
    for arm, places in zip(ARMS, ((np.arange(users), np.arange(videos)), hashed), strict=True):
        met[arm], met[f"{arm}_windows"], met[f"{arm}_rows"] = learn(log, places, seed)
    return met


def measured(runs: list[dict[str, Any]]) -> tuple[dict[str, object], dict[str, Any]]:
    """A row of the table, and fields of the JSON line, of one data set's runs, a seed each."""
    auc = {arm: np.array([run[arm] for run in runs]) for arm in ARMS}
    difference = auc["collisionless"] - auc["hashed"]
    error = float(difference.std(ddof=1) / np.sqrt(len(runs)))
    met = {kind: float(np.mean([run[f"{kind}_met"] for run in runs])) for kind in ("users", "videos")}
    row: dict[str, object] = {"data": runs[0]["data"], "impressions": runs[0]["impressions"]}
    row |= {f"{kind} met": f"{share:.2%}" for kind, share in met.items()}
    row |= {f"AUC {arm}": float(auc[arm].mean()) for arm in ARMS}
    row |= {"difference": float(difference.mean()), "standard error": error, "errors apart": float(difference.mean()) / error}
    fields: dict[str, Any] = {f"auc_{arm}": round(float(auc[arm].mean()), 6) for arm in ARMS}
    fields |= {"auc_difference": round(float(difference.mean()), 6), "auc_difference_se": round(error, 6)}
    fields |= {f"{kind}_met": round(share, 4) for kind, share in met.items()}
    return row, fields


def plot(by_data: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """AUC of both arms, and their difference with three standard errors, over the log."""
    figure, axes = plt.subplots(2, len(by_data), figsize=(5.5 * len(by_data), 6), sharex=True, squeeze=False)
    share = (np.arange(_WINDOWS) + 0.5) / _WINDOWS
    for column, (name, runs) in enumerate(by_data.items()):
        windows = {arm: np.array([run[f"{arm}_windows"] for run in runs]) for arm in ARMS}
        above, below = axes[:, column]
        for arm, colour in zip(ARMS, ("C0", "C1"), strict=True):
            above.plot(share, windows[arm].mean(0), color=colour, label=arm)
        least = min(windows[arm].mean(0)[2:].min() for arm in ARMS)  # the first windows are those of an empty model
        above.set(title=name, ylabel="AUC, scored before it is learned", ylim=(least - 0.01, None))
        above.text(0.01, 0.98, "learned before\nany counts", transform=above.transAxes, va="top", color="0.4")
        above.legend(frameon=False, loc="lower right")
        difference = windows["collisionless"] - windows["hashed"]
        mean, error = difference.mean(0), difference.std(0, ddof=1) / np.sqrt(len(runs))
        below.fill_between(share, mean - 3 * error, mean + 3 * error, color="C0", alpha=0.2, label="three standard errors")
        below.plot(share, mean, color="C0", label="collisionless - hashed")
        below.axhline(0, color="0.4", linewidth=0.8)
        below.set(xlabel="part of the log", ylabel="difference")
        below.legend(frameon=False, loc="upper right")
        for each in (above, below):
            each.axvspan(0, _WARM / _WINDOWS, color="0.93", zorder=0)
            each.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def meetings(count: int) -> dict[str, Any]:
    """How many pairs of `count` strings meet in the 48 bits of a feature id."""
    values = np.sort(np.concatenate([
        hash_strings([f"video-{i}" for i in range(start, min(start + 1_000_000, count))])
        for start in range(0, count, 1_000_000)
    ]))  # fmt: skip
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    alike = np.diff(np.append(starts, values.size))
    pairs = int((alike * (alike - 1) // 2).sum())
    return {"hash48_strings": count, "hash48_pairs": pairs, "hash48_pairs_expected": round(count**2 / 2**49, 4)}


def main(argv: list[str] | None = None) -> int:
    """Print the table and the JSON line; 0 then."""
    parser = CommandParser(
        prog="python -m bench.collisions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = Path(os.environ.get("KUAIRAND_DIR") or "../shared/data/kuairand_pure")
    add("--path", type=Path, default=default, help="KuaiRand-Pure as unpacked (default: $KUAIRAND_DIR, or %(default)s)")
    add("--no_kuairand", action="store_true", help="only the simulator")
    add("--seeds", type=flags.count, default=5, help="runs, of worlds and initial values 0, 1, ... (default: %(default)s)")
    add("--rows", type=flags.count, default=1_000_000, help="impressions of a run, at most (default: 1 M)")
    add("--strings", type=flags.count, default=8_000_000, help="strings that may meet in 48 bits (default: 8 M)")
    add("--out", type=Path, default=Path("out"), help="folder for collisions.png (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.seeds < 2:
        raise UserError("--seeds 1: a standard error needs 2 or more")

    by_data: dict[str, list[dict[str, Any]]] = {"simulator": []}
    with signals_interrupt():
        kuairand = None if args.no_kuairand else impressions(read_kuairand(args.path, args.rows).events, args.rows)
        for seed in track(range(args.seeds), "seeds", disable=not sys.stdout.isatty()):
            by_data["simulator"].append(compare("simulator", simulated(seed, args.rows), seed))
            if kuairand is not None:
                by_data.setdefault("KuaiRand-Pure", []).append(compare("KuaiRand-Pure", kuairand, seed))
        fields = meetings(args.strings)
    rows = []
    for runs, prefix in zip(by_data.values(), ("", "kuairand_"), strict=False):
        row, found = measured(runs)
        rows.append(row)
        fields |= {prefix + field: value for field, value in found.items()}
    plot(by_data, args.out / "collisions.png")
    finish(rows, fields | {"seeds": args.seeds, "plot": str(args.out / "collisions.png")})
    return 0


if __name__ == "__main__":
    run_main(main)
