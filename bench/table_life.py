"""How a table lives, for `bench.table`: filled far past its memory budget."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from rich.progress import track

from bench.table_ours import OurTable, config_of
from bench.table_peers import resident_bytes

_BATCH = 4096
_MILLION = 1_000_000
_SHOWN = 20  # rows of the table for people
_SLOT = np.int64(1) << 48


def inserts(count: int, table_bytes: int) -> tuple[list[dict[str, object]], dict[str, Any]]:
    """Distinct ids inserted one after the other, from an empty table to far past its budget.

    `insert_slowdown` is the time of the last million inserts over that of the first million. The first one begins with an
    empty table: it evicts nothing, and its rows lie largely in the processor's cache, but it has to grow index and arena
    from nothing, and the kernel has to map their pages. It is taken as it is, without a million before it that would warm
    memory up: kernels alone are compiled before. The last one evicts a row for each that it inserts, at random places of a
    table that fills its budget. With fewer than two millions to insert, halves stand in their place (`insert_part` ids).

    `insert_rss_growth` is the most resident memory from the batch at which the budget was reached, and rows were evicted
    for the first time, to the end, over the memory at that batch: 1 is flat.

    Args:
        count: ids; at least 2.
        table_bytes: the budget.

    Returns:
        Rows of a table, and fields of the JSON line; the growth is None if the budget was not reached.
    """
    ours = OurTable(config_of("sgd", admission=1, ttl_s=10**9), table_bytes)
    part = min(_MILLION, count // 2)
    parts = count // part
    rows: list[dict[str, object]] = []
    full_rss: int | None = None
    most_rss = 0
    seconds: list[float] = []
    for number in track(range(parts), "inserts", disable=not sys.stdout.isatty()):
        took = 0.0
        for first in range(part * number, part * (number + 1), _BATCH):
            ids = _SLOT | np.arange(1 + first, 1 + min(first + _BATCH, part * (number + 1)))
            ours.time_ms += 10
            start = time.perf_counter()
            ours.put(ids)
            took += time.perf_counter() - start
            if ours.table.evicted:  # the budget is reached
                resident = resident_bytes()
                full_rss = full_rss or resident
                most_rss = max(most_rss, resident)
        seconds.append(took)
        row: dict[str, object] = {"inserted": part * (number + 1), "s": round(took, 6), "rows": len(ours.table)}
        rows.append(row | {"evicted": ours.table.evicted, "bytes": ours.table.nbytes, "RSS": resident_bytes()})
    fields = {
        "inserts": part * parts,
        "insert_part": part,
        "insert_slowdown": round(seconds[-1] / seconds[0], 3),
        "insert_slowest_over_first": round(max(seconds) / seconds[0], 3),
        "insert_rss_growth": None if full_rss is None else round(most_rss / full_rss, 4),
        "insert_evicted": ours.table.evicted,
    }
    shown = np.unique(np.linspace(0, parts - 1, min(_SHOWN, parts)).round().astype(int))
    return [rows[number] for number in shown], fields
