"""Logs of a small simulated world for a small model, and what runs made of them."""

import json
import shutil
from dataclasses import replace

import numpy as np

from pipelines.datasets.requests import PendingActions
from pipelines.datasets.simulator import World
from pipelines.request_log import RequestLogWriter
from pipelines.state_files import StateFiles
from schemas.config import FeatureConfig, Head, ModelConfig, Slot
from schemas.log_files import LogWriter, PartitionReader
from schemas.log_segments import list_partitions

TOPICS = ("features", "actions")
ITEMS = 5  # videos a request
USER, REQUEST = 1, 9  # numbers of slots
CONFIG = FeatureConfig(
    name="small world",
    slots=(
        Slot("user_id", USER, "user_id", "user", "id", "string"),
        # Never shared, never forgotten: its rows' counts tell how often each request was learned.
        Slot("request_id", REQUEST, "request_id", "user", "id", "string"),
        Slot("video_id", 2, "video_id", "item", "id", "string"),
        Slot("hashtags", 3, "hashtags", "item", "bag", "string", max_length=4),
        Slot("age_hours", 4, "age_hours", "item", "bucket", "float", boundaries=(1.0, 6.0, 24.0, 96.0)),
    ),
    heads=(Head("click", "click", 60.0), Head("like", "like", 300.0)),
    model=ModelConfig(dim=4, hidden=(8,)),
)


#: The same without request ids, which nothing can be learned from.
SIMPLE = replace(CONFIG, slots=tuple(slot for slot in CONFIG.slots if slot.slot != REQUEST))


def write_world(root, requests, partitions=1, days=2.0, users=300, config=CONFIG):
    """Both logs of a world, and its feature configuration."""
    world = World(seed=3, users=users, requests_per_day=requests / days, videos_per_request=ITEMS)
    pending = PendingActions()
    with RequestLogWriter(root, config, partitions) as writer:
        for at in range(0, requests, 1000):
            batch, actions, _ = world.requests(min(1000, requests - at))
            batch = replace(batch, user_columns=batch.user_columns | {"request_id": batch.request_id})
            pending.push(actions)
            writer.append(batch, pending.pop_before(int(batch.time_ms[-1])))
        writer.append_actions(pending.pop_all())
    config.dump(root / "feature_config.toml")


def records_of(root, topic, partition=0):
    """All records of a partition."""
    reader, found = PartitionReader(root, topic, partition), []
    while len(records := reader.read(10**9).records):
        found += records
    return found


def copy_world(source, target, change):
    """The logs with each topic's records changed by ``change(topic, records)``."""
    for topic in TOPICS:
        for partition in list_partitions(source, topic):
            with LogWriter(target, topic, partition, block_bytes=2 << 10) as writer:
                writer.append(change(topic, records_of(source, topic, partition)))
    shutil.copy(source / "feature_config.toml", target)


def train_arguments(logs, folder, *more):
    """Of a run that keeps all it has in `folder`."""
    return [
        *("--logs", str(logs), "--state_dir", str(folder / "state"), "--metrics_json", str(folder / "metrics.json")),
        *("--step", "32", "--window", "1000", *more),
    ]


def figures(folder):
    return json.loads((folder / "metrics.json").read_text())


def letters(folder):
    """Dead letters, in order."""
    path = folder / "state" / "dead_letters" / "shard-000.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(folder):
    """Rows of the final state, sorted by key: keys int64[R], values float32[R, 1 + dim], counts int32[R]."""
    rows = StateFiles(folder / "state", 0).newest()[1].keyed["table"].rows.sort_by("key").combine_chunks()
    values = np.asarray(rows["values"].combine_chunks().flatten()).reshape(rows.num_rows, -1)
    return rows["key"].to_numpy(), values, rows["counts"].to_numpy()
