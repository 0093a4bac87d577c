"""A configuration with every kind and type, raw values for it, and their `tf.Example` form."""

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from schemas.config import FeatureConfig, Head, ModelConfig, Slot

Row = Mapping[str, Any]

CONFIG = FeatureConfig(
    "every kind",
    (
        Slot("user", 1, "user_id", "user", "id", "int"),
        Slot("country", 2, "country", "user", "category", "string"),
        Slot("age", 3, "age", "user", "bucket", "float", boundaries=(-1.0, 0.0, 0.1, 18.0, 1e9)),
        Slot("groups", 4, "groups", "user", "bag", "int", max_length=2),
        Slot("video", 300, "video_id", "item", "id", "string"),
        Slot("clicks", 301, "clicks", "item", "log_count", "int"),
        Slot("weight", 302, "weight", "item", "log_count", "float"),
        Slot("tags", 303, "tags", "item", "bag", "string", max_length=3, pooling="mean"),
        Slot("title", 304, "title", "item", "text", "string", max_length=4),
        Slot("rank", 32767, "rank", "item", "category", "int"),
        Slot("rank_band", 6, "rank", "item", "bucket", "int", boundaries=(0.0, 16777217.5, 1e12)),
    ),
    (Head("click", "click", 60.0),),
    ModelConfig(dim=4, hidden=(8,)),
)


def columns_of(rows: list[Row], config: FeatureConfig = CONFIG) -> dict[str, list[Any]]:
    """Columns by source, None where a row lacks it."""
    return {slot.source: [row.get(slot.source) for row in rows] for slot in config.slots}


def example_of(row: Row, config: FeatureConfig = CONFIG) -> bytes:
    """A row as a client would send it: what is None is left out, elements of bags included."""
    features: dict[str, tf.train.Feature] = {}
    for slot in config.slots:
        value = row.get(slot.source)
        if value is None:
            continue
        values = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
        if slot.type == "int":
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        elif slot.type == "float":
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=map(_float32, values)))
        else:
            encoded = [v if isinstance(v, bytes) else v.encode() for v in values]
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))
        features[slot.source] = feature
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _float32(number: float) -> float:
    # Protocol buffers refuse what float32 cannot hold; a client has infinity there.
    return math.copysign(math.inf, number) if abs(number) > 3.4028235e38 else number
