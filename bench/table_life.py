"""How a table lives, for `bench.table`: filled past its memory budget, and learning while it grows, expires and is copied."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from rich.progress import track

from bench.table_ours import OurTable, config_of
from bench.table_peers import DIM, resident_bytes
from schemas.quiet import quiet_imports

with quiet_imports():
    from model.walk import Walk

_BATCH = 4096
_MILLION = 1_000_000
_SLOT = np.int64(1) << 48
_TTL_S = 60
_IDS_EVERY = 1000  # ms of event time between two batches


def inserts(count: int, table_bytes: int) -> tuple[list[dict[str, object]], dict[str, Any]]:
    """Distinct ids inserted one after the other, from an empty table past its budget: seconds a million, and RSS."""
    ours = OurTable(config_of("sgd", admission=1, ttl_s=10**9), table_bytes)
    ours.put(_SLOT | np.arange(1, _BATCH + 1))
    each = min(_MILLION, count)
    rows: list[dict[str, object]] = []
    for million in track(range(count // each), "inserts", disable=not sys.stdout.isatty()):
        start = time.perf_counter()
        first = 2 * _BATCH + million * each
        for at in range(first, first + each, _BATCH):
            ours.time_ms += 10
            ours.put(_SLOT | np.arange(at, min(at + _BATCH, first + each)))
        took = time.perf_counter() - start
        row: dict[str, object] = {"inserted": (million + 1) * each, "s": round(took, 3), "rows": len(ours.table)}
        rows.append(row | {"bytes": ours.table.nbytes, "RSS": resident_bytes()})
    full = [row for row in rows if row["rows"] == rows[-1]["rows"]]
    seconds = [float(str(row["s"])) for row in rows]
    fields = {
        "inserts": count // each * each,
        "insert_slowdown": round(float(np.median(seconds[-5:])) / seconds[0], 3),
        "insert_slowest_over_first": round(max(seconds) / seconds[0], 3),
        "insert_rss_growth": round(int(str(rows[-1]["RSS"])) / int(str(full[0]["RSS"])), 4),
        "insert_evicted": ours.table.evicted,
    }
    step = max(1, len(rows) // 20)
    return rows[::step], fields


def latency(steps: int) -> tuple[list[dict[str, object]], dict[str, Any]]:
    """Times of learn() of 4,096 ids, a quarter of them new each time, others gone by their age, while the table is copied."""
    ours, rng = OurTable(config_of("sgd", admission=1, ttl_s=_TTL_S)), np.random.default_rng(0)
    gradients = rng.normal(size=(_BATCH, DIM)).astype(np.float32)
    times, fresh, expired_before = [], _BATCH, 0
    walk, copied, walks = Walk(ours.table), 0, 0
    for step in range(steps + 200):
        ours.time_ms += _IDS_EVERY
        new = np.arange(fresh, fresh + _BATCH // 4)
        fresh += new.size
        known = rng.integers(max(1, fresh - 200 * new.size), fresh, _BATCH - new.size)
        ids = _SLOT | np.concatenate([new, known])
        start = time.perf_counter()
        ours.step(ids, gradients)
        if step >= 200:  # the first ones compile, and fill the table
            times.append(time.perf_counter() - start)
        else:
            expired_before = ours.table.expired
        # As in the trainer, readers come between batches; one copies the table over and over.
        ours.visit()
        chunk = walk.step()
        if chunk is None:
            walks += 1
            walk = Walk(ours.table)
        else:
            copied += len(chunk)
    micros = np.array(times) * 1e6
    quantiles = {f"p{q}": float(np.percentile(micros, q)) for q in (50, 90, 99)}
    fields = {f"learn_{name}_us": round(value, 1) for name, value in quantiles.items()}
    fields["learn_p99_over_p50"] = round(quantiles["p99"] / quantiles["p50"], 3)
    counted = {"rows": len(ours.table), "expired": ours.table.expired - expired_before, "copied": copied, "walks": walks}
    shown: dict[str, object] = {"learn() of 4,096": "us", **quantiles, "max": float(micros.max()), **counted}
    return [shown], fields
