"""What freshness is worth on a real log: KuaiRand-Pure in time order, learned online, clicks predicted at the request.

    python -m bench.kuairand [--path FOLDER] [--dump DIR]

The log is replayed and `pipelines.train` runs over it once: the first days warm the model up; then every impression is
scored as its request arrives, by the model that goes on learning and by copies of it that are synced hourly, daily or
never. Labels are those known at the attribution window's end; all arms see the same requests; nothing is scored after it
was learned. `auc_scored_at_emission`, for comparison, scores the same examples at the moment they are learned.

The model is trained on clicks alone here, without the long views that schemas/kuairand.toml has beside them. What the
files tell of users is one snapshot, of a day that its authors do not name: it is used as published. Counts over the whole
period, which would leak the future, are not.
"""

import argparse
import contextlib
import itertools
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.progress import track

from bench.output import finish
from bench.processes import run
from schemas import flags
from schemas.config import FeatureConfig, load_config
from schemas.logs import FileLogs
from schemas.process import CommandParser, UserError, run_main, signals_interrupt
from schemas.quiet import quiet_imports

with quiet_imports():
    from pipelines.batches import Kind
    from pipelines.datasets.kuairand import newest_days
    from pipelines.join import Join
    from pipelines.merge import MergedLogs

SHIPPED = Path(__file__).parents[1] / "schemas" / "kuairand.toml"
HEAD = "click"
LAGGED = ("frozen", "daily", "hourly")
DAY_S = 24 * 3600


def train(work: Path, seed: int, warm_days: float, step: int) -> dict[str, Any]:
    """One pass over the logs in `work`: the figures it wrote; predictions lie in `work`/predictions-SEED."""
    metrics = work / f"metrics-{seed}.json"
    run(
        "pipelines.train",
        *("--logs", work / "logs", "--state_dir", work / f"state-{seed}", "--metrics_json", metrics),
        *("--seed", seed, "--step", step, "--arms", ",".join(LAGGED), "--warm_start_s", warm_days * DAY_S),
        *("--predictions_dir", work / f"predictions-{seed}", "--snapshot_interval", 3600),
    )
    figures: dict[str, Any] = json.loads(metrics.read_text())
    return figures


def impressions(logs: Path, config: FeatureConfig) -> pa.Table:
    """Every impression in the features log, once: key, user_id, video_id."""
    merged = MergedLogs(FileLogs(str(logs)), config, Join(config).actions, {})
    parts = []
    while not merged.finished:
        batch = merged.next(False)
        if batch is not None and len(batch):
            features = batch.events.filter(pc.equal(batch.events["kind"], int(Kind.FEATURES)))
            parts.append(features.select(["key", "user_id", "item_id"]))
    table = pa.Table.from_batches(parts).rename_columns(["key", "user_id", "video_id"])
    return table.group_by("key", use_threads=False).aggregate([("user_id", "first"), ("video_id", "first")])


def predictions(work: Path, seed: int, config: FeatureConfig) -> pa.Table:
    """Every prediction of a run: arm, user_id, video_id, time_ms, label, score (a probability)."""
    made = ds.dataset(work / f"predictions-{seed}").to_table(filter=ds.field("head") == HEAD)
    made = made.join(impressions(work / "logs", config), "key").sort_by([("time_ms", "ascending"), ("key", "ascending")])
    return pa.concat_tables(
        pa.table(
            {
                "arm": pa.array([arm] * made.num_rows).dictionary_encode(),
                "user_id": made["user_id_first"].cast(pa.int64()),
                "video_id": made["video_id_first"].cast(pa.int64()),
                "time_ms": made["time_ms"],
                "label": made["label"].cast(pa.int8()),
                "score": 1 / (1 + np.exp(-made[f"logit_{arm}"].to_numpy().astype(np.float64))),
            }
        )
        for arm in ("continuous", *LAGGED)
    )


def measured(runs: list[dict[str, Any]]) -> tuple[list[dict[str, object]], dict[str, Any]]:
    """Rows of the table, and fields of the JSON line: means over the runs, and their deviations (0 for one run)."""

    def over_seeds(arm: str, figure: str) -> np.ndarray:
        return np.array([figures["arms"][arm][figure] for figures in runs], np.float64)

    def deviation(arm: str, figure: str) -> float:
        return float(over_seeds(arm, figure).std(ddof=1)) if len(runs) > 1 else 0.0

    arms = (*LAGGED, "continuous")
    rows: list[dict[str, object]] = [
        {
            "synced": arm,
            "AUC": float(over_seeds(arm, "auc").mean()),
            "deviation": deviation(arm, "auc"),
            "log loss": float(over_seeds(arm, "logloss").mean()),
            "calibration": float(over_seeds(arm, "calibration").mean()),
            "by seed": "  ".join(f"{auc:.4f}" for auc in over_seeds(arm, "auc")),
        }
        for arm in arms
    ]
    fields: dict[str, Any] = {f"auc_{arm}": round(float(over_seeds(arm, "auc").mean()), 6) for arm in arms}
    fields["logloss_continuous"] = round(float(over_seeds("continuous", "logloss").mean()), 6)
    fields |= {f"auc_{arm}_deviation": round(deviation(arm, "auc"), 6) for arm in arms}
    fields["logloss_continuous_deviation"] = round(deviation("continuous", "logloss"), 6)
    fields["ordered_in_every_seed"] = all(
        bool((over_seeds(staler, "auc") < over_seeds(fresher, "auc")).all()) for staler, fresher in itertools.pairwise(arms)
    )
    at_emission = np.array([figures["auc_scored_at_emission"] for figures in runs], np.float64)
    fields["auc_scored_at_emission"] = round(float(at_emission.mean()), 6)
    fields["impressions_scored"] = int(runs[0]["arms"]["continuous"]["count"])
    return rows, fields


def main(argv: list[str] | None = None) -> int:
    """Print the table and the JSON line; 0 then."""
    parser = CommandParser(
        prog="python -m bench.kuairand", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = Path(os.environ.get("KUAIRAND_DIR") or "../shared/data/kuairand_pure")
    add("--path", type=Path, default=default, help="KuaiRand-Pure as unpacked (default: $KUAIRAND_DIR, or %(default)s)")
    add("--config", type=Path, default=SHIPPED, help="feature configuration (default: schemas/kuairand.toml)")
    add("--seeds", type=flags.count, default=3, help="runs, of initial values 0, 1, ... (default: %(default)s)")
    add("--days", type=flags.count, default=14, help="days of the log, its last ones (default: %(default)s)")
    add("--warm_days", type=flags.positive, default=4.0, help="of them, learned before any is evaluated (default: %(default)s)")
    add("--step", type=flags.count, default=128, help="examples a step of the model (default: %(default)s)")
    add("--dump", type=Path, metavar="DIR", help="write every prediction of the first seed to DIR/predictions.parquet")
    add("--rows", type=flags.count, help="stop after this many impressions (for a quick look)")
    args = parser.parse_args(argv)

    shipped = load_config(args.config)
    config = replace(shipped, heads=tuple(head for head in shipped.heads if head.name == HEAD))
    if not config.heads:
        raise UserError(f"{args.config}: no head {HEAD!r} in it: give a --config that has one")
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals_interrupt())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freshet-kuairand-")))
        config.dump(work / "config.toml")
        path = newest_days(args.path, args.days, work / "data")
        rows = ("--rows", args.rows) if args.rows else ()
        run(
            "pipelines.replay",
            *("--dataset", "kuairand", "--path", path, "--out", work / "logs", "--config", work / "config.toml", *rows),
        )
        runs = [train(work, seed, args.warm_days, args.step) for seed in track(range(args.seeds), "seeds")]
        if args.dump:
            args.dump.mkdir(parents=True, exist_ok=True)
            pq.write_table(predictions(work, 0, config), args.dump / "predictions.parquet")

    if not runs[0]["arms"]["continuous"]["count"]:
        raise UserError(f"no impression lies behind the first {args.warm_days:g} days: give more --rows, or fewer --warm_days")
    table, fields = measured(runs)
    fields |= {"attribution_window_s": config.heads[0].window_s, "seeds": args.seeds, "step": args.step}
    finish(table, fields)
    return 0


if __name__ == "__main__":
    run_main(main)
