"""Events made by hand for a join, and what it decides of them."""

from pathlib import Path

import numpy as np

from pipelines.batches import Kind
from schemas.config import load_config

CONFIG = load_config(Path(__file__).parents[2] / "schemas" / "simulator.toml")  # click 60 s, long_view 180 s, like 300 s
CLICK, LONG_VIEW, LIKE = range(3)
DAY = 86_400_000


def features(key, time_ms):
    return (int(Kind.FEATURES), key, -1, time_ms)


def action(key, number, time_ms):
    return (int(Kind.ACTION), key, number, time_ms)


def apply(join, events, watermark=None):
    """The events, whose clock is the running maximum of their times; then time passes up to the watermark, at least theirs."""
    columns = [np.array(c, np.int64) for c in zip(*events, strict=True)] if events else [np.zeros(0, np.int64)] * 4
    kind, key, act, time_ms = columns
    order = np.maximum.accumulate(time_ms) if len(time_ms) else time_ms
    mark = int(order[-1]) if watermark is None and len(order) else (watermark or 0)
    return join.apply(kind.astype(np.int8), key, act.astype(np.int8), time_ms, order, mark)


def decided(join, joined):
    """{(key, head): label} in order; a head decided twice is an error."""
    found = {}
    d = joined.decisions
    keys = join.keys(d.seq)
    for i in range(len(d)):
        for h in range(len(CONFIG.heads)):
            if d.mask[i] >> h & 1:
                assert (int(keys[i]), h) not in found
                found[int(keys[i]), h] = bool(d.label[i] >> h & 1)
    return found
