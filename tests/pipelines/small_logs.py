"""Small logs in the real layout, records made by hand, and what the merge makes of them."""

import dataclasses

import fastavro
import numpy as np
import pyarrow as pa

from model.featuriser import Featuriser
from pipelines.batches import Span
from pipelines.join import Join
from pipelines.learn import JoinAndLearn
from pipelines.merge import MergedLogs
from schemas.config import FeatureConfig, Head, ModelConfig, Slot
from schemas.log_files import LogWriter, partition_of
from schemas.logs import FileLogs

START_MS = 1_650_000_000_000  # a day of April 2022
CONFIG = FeatureConfig(
    name="small",
    slots=(
        Slot("user_id", 1, "user_id", "user", "id", "string"),
        Slot("video_id", 2, "video_id", "item", "id", "string"),
        Slot("tags", 3, "tags", "item", "bag", "int", max_length=3, pooling="mean"),
        Slot("age", 4, "age", "item", "bucket", "float", boundaries=(1.0, 10.0)),
    ),
    heads=(Head("click", "click", 60.0), Head("like", "like", 300.0)),
    model=ModelConfig(dim=4, hidden=(8,), dense_learning_rate=1e-2),
)
ACTIONS = Join(CONFIG).actions
_FEATURISER = Featuriser(CONFIG)


def packed(side, **columns):
    """Packed ids of rows, by source."""
    return _FEATURISER.pack(_FEATURISER.featurise(columns, side))


def features(request, time_ms, user="u1", items=("v1", "v2"), **changes):
    """A features record; times are relative to START_MS."""
    numbers = [sum(map(ord, item)) for item in items]
    tags, ages = [[n % 5, n % 7] for n in numbers], [float(n % 20) for n in numbers]
    ids = packed("item", video_id=list(items), tags=tags, age=ages) if items else []
    return {
        "request_id": request,
        "user_id": user,
        "time_ms": START_MS + time_ms,
        "fingerprint": CONFIG.fingerprint,
        "user_ids": packed("user", user_id=[user])[0],
        "items": [{"item_id": item, "ids": own} for item, own in zip(items, ids, strict=True)],
        "scores": None,
        "model_version": None,
        "raw": None,
    } | changes


def action(request, time_ms, item="v1", user="u1", name="click", **changes):
    """An actions record; times are relative to START_MS."""
    return {
        "request_id": request,
        "user_id": user,
        "item_id": item,
        "action": name,
        "time_ms": START_MS + time_ms,
        "value": None,
    } | changes


def write(root, topic, records, partition=0, records_a_block=64):
    """Append records to a partition as one segment."""
    with LogWriter(root, topic, partition) as writer:
        writer._block_records = records_a_block
        writer.append(records)


def write_foreign(root, topic, schema, records):
    """A segment that another program wrote, behind what is there."""
    folder = root / topic / "p000"
    base = max((int(p.stem) + p.stat().st_size for p in folder.glob("*.avro")), default=0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{base:020d}.avro").open("wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), records)


def world(requests, seed=0, users=40, videos=60, items=3, step_ms=1_500):
    """Features and actions records of users who like some videos more than others, each in time order."""
    rng = np.random.default_rng(seed)
    taste = rng.normal(0, 1.5, (users, videos)) + rng.normal(0, 1, videos)
    shown, acted = [], []
    for number in range(requests):
        user = int(rng.integers(users))
        chosen = rng.choice(videos, items, replace=False)
        time_ms = number * step_ms
        shown.append(features(f"r{number}", time_ms, f"u{user}", tuple(f"v{v}" for v in chosen)))
        for video in chosen:
            if rng.random() < 1 / (1 + np.exp(-taste[user, video])):
                acted.append(action(f"r{number}", time_ms + int(rng.integers(500, 50_000)), f"v{video}", f"u{user}"))
                if rng.random() < 0.3:
                    liked = time_ms + int(rng.integers(1_000, 200_000))
                    acted.append(action(f"r{number}", liked, f"v{video}", f"u{user}", "like"))
    return shown, sorted(acted, key=lambda record: record["time_ms"])


def write_world(root, requests, partitions=1, **options):
    """Logs of a world."""
    for topic, records in zip(("features", "actions"), world(requests, **options), strict=True):
        for partition in range(partitions):
            own = [record for record in records if partition_of(record["user_id"], partitions) == partition]
            write(root, topic, own, partition)


def merged(root, positions=None, **options):
    """The logs as they are merged."""
    return MergedLogs(FileLogs(str(root)), CONFIG, ACTIONS, positions or {}, **options)


def batches_of(root, positions=None, **options):
    """All batches of logs that have ended, the final one included."""
    logs = merged(root, positions, **options)
    batches = []
    while not logs.finished:
        batch = logs.next(stop=False)
        if batch is not None:
            batches.append(batch)
    return batches


def as_one(batches):
    """The events of several batches as one batch, with the last one's watermark and end."""
    events = pa.concat_batches([batch.events for batch in batches])
    spans = {}
    for batch in batches:
        for name, span in batch.spans.items():
            spans[name] = Span(spans[name].first if name in spans else span.first, *span[1:])
    watermark_ms = max(batch.watermark_ms for batch in batches)
    return dataclasses.replace(batches[-1], events=events, spans=spans, watermark_ms=watermark_ms)


def rows_of(batches):
    """Events of batches as dicts, in order, each with its partition's name."""
    return [
        row | {"partition": batch.partitions[row["partition"]], "watermark_ms": batch.watermark_ms}
        for batch in batches
        for row in batch.events.to_pylist()
    ]


def applied(batches, learn, step=None):
    """The step, a new one unless it is given, after the batches; and the outputs of each."""
    step = step or JoinAndLearn(CONFIG, learn)
    return step, [step.apply(batch) for batch in batches]
