"""Full model versions: a parameter snapshot becomes an integer version directory with a SavedModel.

A directory appears under its final name only when it is whole, as model servers that watch the folder expect.
"""

from __future__ import annotations

import gc
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from schemas.config import FeatureConfig

from .catalogue import ITEMS, USERS, Entries, entries_of
from .deepfm import DenseLayout
from .feature_ids import default_key
from .serving_graph import ServingArrays, ServingModel
from .snapshot import Increment

#: Videos that the exported catalogue offers as candidates.
CANDIDATES = 500


@dataclass(frozen=True)
class ExportState:
    """What a full version is made of.

    Attributes:
        keys: int64[R], live rows and default rows (negative keys).
        rows: float32[R, 1 + dim].
        dense: dense parameters by name.
        versions, epochs: int64[shards].
        newest_event_ms: newest event time learned from.
        users, items: the catalogue.
    """

    keys: np.ndarray
    rows: np.ndarray
    dense: dict[str, np.ndarray]
    versions: np.ndarray
    epochs: np.ndarray
    newest_event_ms: int
    users: Entries
    items: Entries


def export_state(state: Increment, config: FeatureConfig) -> ExportState:
    """The served part of a shard's merged state: no optimizer slots, no filter, no waiting rows."""
    table = state.keyed["table"].rows.combine_chunks()
    width = 1 + config.model.dim
    values = table.column("values").combine_chunks().flatten() if table.num_rows else np.zeros(0, np.float32)
    version, newest = (int(x) for x in state.whole["trainer"]["numbers"])
    return ExportState(
        keys=table.column("key").to_numpy(),
        rows=np.asarray(values, np.float32).reshape(-1, width),
        dense=DenseLayout.of(config).unpack_array(state.whole["dense"]["theta"]),
        versions=np.array([version], np.int64),
        epochs=np.zeros(1, np.int64),
        newest_event_ms=newest,
        users=entries_of(state.keyed[USERS].rows),
        items=entries_of(state.keyed[ITEMS].rows).newest(CANDIDATES),
    )


def save_model(path: Path, state: ExportState, config: FeatureConfig) -> None:
    """Write a SavedModel of stock operations."""
    defaults = np.zeros((config.num_slots, 1 + config.model.dim), np.float32)
    number = {default_key(slot.slot): n for n, slot in enumerate(config.slot_order)}
    for at in np.flatnonzero(state.keys < 0).tolist():
        defaults[number[int(state.keys[at])]] = state.rows[at]
    live = state.keys >= 0
    arrays = ServingArrays(
        keys=state.keys[live],
        rows=state.rows[live],
        defaults=defaults,
        dense=state.dense,
        versions=state.versions,
        epochs=state.epochs,
    )
    model = ServingModel(config, arrays, state.users, state.items)
    tf.saved_model.save(model, str(path), signatures=model.signatures())
    del model
    # A saved module's functions refer to each other; without this their graphs would wait for the next collection.
    gc.collect()


def write_version(models: Path, state: ExportState, config: FeatureConfig, keep: int = 3) -> int:
    """Write the next version directory and remove all but the ``keep`` newest.

    Returns:
        Its number.
    """
    models.mkdir(parents=True, exist_ok=True)
    version = max(_versions(models), default=0) + 1
    temporary = models / f".tmp-{version}"
    shutil.rmtree(temporary, ignore_errors=True)
    save_model(temporary, state, config)
    temporary.rename(models / str(version))
    for old in sorted(_versions(models))[:-keep]:
        shutil.rmtree(models / str(old))
    return version


def _versions(models: Path) -> list[int]:
    return [int(path.name) for path in models.iterdir() if path.is_dir() and re.fullmatch(r"\d+", path.name)]
