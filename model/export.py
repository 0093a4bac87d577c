"""Full model versions: a parameter snapshot becomes an integer version directory with a SavedModel.

A directory appears under its final name only when it is whole, as model servers that watch the folder expect.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import tensorflow as tf

from schemas.config import FeatureConfig
from schemas.files import sync_path

from .catalogue import ITEMS, NAME_BITS, USERS, Entries, entries_of
from .dense import DenseLayout
from .eviction import outlived_of
from .feature_ids import default_key, hash_strings, mix63
from .serving_graph import DELETED, EMPTY, ServingModel, buckets_for
from .slot_arrays import SlotArrays
from .snapshot import Increment, matrix_of

#: Videos that the exported catalogue offers as candidates.
CANDIDATES = 500

_GRAPH = "saved_model.pb"
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VARIABLE, _KEYS, _VALUES = ".ATTRIBUTES/VARIABLE_VALUE", ".ATTRIBUTES/table-keys", ".ATTRIBUTES/table-values"


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
    """The served part of a shard's merged state: no optimizer slots, no filter, no waiting rows, no rows past their time."""
    table = state.keyed["table"].rows
    version, newest = (int(x) for x in state.whole["trainer"]["numbers"])
    keys = table.column("key").to_numpy()
    # The trainer reads such a row's slot's default, whether or not its clock hand has come by; so does the serving copy.
    stays = ~outlived_of(
        SlotArrays.of(config), keys, table.column("last_seen_ms").to_numpy(), int(state.whole["table"]["newest_ms"][0])
    )
    return ExportState(
        keys=keys[stays],
        rows=matrix_of(table.column("values"))[stays],
        dense=DenseLayout.of(config).unpack_array(state.whole["dense"]["theta"]),
        versions=np.array([version], np.int64),
        epochs=np.zeros(1, np.int64),
        newest_event_ms=newest,
        users=entries_of(state.keyed[USERS].rows),
        items=entries_of(state.keyed[ITEMS].rows).newest(CANDIDATES),
    )


def write_version(models: Path, state: ExportState, config: FeatureConfig, keep: int = 3) -> int:
    """Write the next version directory and remove all but the `keep` newest.

    Returns:
        Its number.
    """
    models.mkdir(parents=True, exist_ok=True)
    version = max(_versions(models), default=0) + 1
    temporary = models / f".tmp-{version}"
    shutil.rmtree(temporary, ignore_errors=True)
    save_model(temporary, state, config)
    temporary.rename(models / str(version))
    sync_path(models)
    for old in sorted(_versions(models))[:-keep]:
        shutil.rmtree(models / str(old))
    return version


def save_model(path: Path, state: ExportState, config: FeatureConfig) -> None:
    """Write a SavedModel of stock operations into a new folder; durable when it returns.

    Its graph is that of every version of this configuration, traced once a process; its variables are written as a
    checkpoint of their own, straight from the arrays.
    """
    template = _template(config)
    tensors = {_OBJECTS: tf.constant(template.objects)} | _tensors(state, config)
    if tensors.keys() != set(template.names):
        raise AssertionError(f"variables of the serving graph: {sorted(tensors.keys() ^ set(template.names))}")
    (path / "variables").mkdir(parents=True)
    names = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(path / "variables" / "variables"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tensors[name] for name in names],
    )
    (path / _GRAPH).write_bytes(template.graph)
    for file in (*path.rglob("*.*"), path / "variables", path):
        sync_path(file)


@dataclass(frozen=True)
class _Template:
    """A configuration's graph as bytes of `saved_model.pb`, its checkpoint's object graph and tensor names."""

    graph: bytes
    objects: bytes
    names: tuple[str, ...]


@lru_cache(maxsize=4)
def _template(config: FeatureConfig) -> _Template:
    with tempfile.TemporaryDirectory() as folder:
        model = ServingModel(config)
        tf.saved_model.save(model, folder, signatures=model.signatures())
        reader = tf.train.load_checkpoint(str(Path(folder) / "variables" / "variables"))
        graph = (Path(folder) / _GRAPH).read_bytes()
        return _Template(graph, reader.get_tensor(_OBJECTS), tuple(reader.get_variable_to_shape_map()))


def _tensors(state: ExportState, config: FeatureConfig) -> dict[str, tf.Tensor]:
    """The variables and tables of the serving graph by their names in its checkpoint."""
    first_live = 1 + config.num_slots
    live = state.keys >= 0
    count = int(np.count_nonzero(live))
    # Room for as many rows again: neither arena nor index ever grows.
    arena = np.zeros((first_live + max(1024, 2 * count), 1 + config.model.dim), np.float32)
    place = {default_key(slot.slot): row for row, slot in enumerate(config.slot_order, start=1)}
    arena[[place[key] for key in state.keys[~live].tolist()]] = state.rows[~live]
    arena[first_live : first_live + count] = state.rows[live]
    items = state.items
    variables: dict[str, np.ndarray] = {
        "arena": arena,
        "rows": np.array(count, np.int64),
        "versions": np.asarray(state.versions, np.int64),
        "epochs": np.asarray(state.epochs, np.int64),
        "users": np.concatenate([np.zeros((1, config.user_width), np.int64), state.users.ids]),
        "items": items.ids,
    }
    variables |= {f"dense/{name}": np.asarray(array, np.float32) for name, array in state.dense.items()}
    tensors = {f"{name}/{_VARIABLE}": tf.constant(array) for name, array in variables.items()}
    tensors[f"item_names/{_VARIABLE}"] = tf.constant(items.names.tolist(), tf.string, [len(items.names)])
    users = hash_strings(state.users.names, bits=NAME_BITS)
    tensors |= _table("index", mix63(state.keys[live]), first_live, len(arena))
    tensors |= _table("user_index", users, 1, len(users))
    return tensors


def _table(name: str, keys: np.ndarray, first: int, capacity: int) -> dict[str, tf.Tensor]:
    """A hash table's buckets: keys to consecutive rows from `first` on, with room for `capacity` of them."""
    # Anonymous, unlike tf.lookup's, which stay in memory for ever.
    table = tf.raw_ops.AnonymousMutableDenseHashTable(
        empty_key=tf.constant(EMPTY, tf.int64),
        deleted_key=tf.constant(DELETED, tf.int64),
        value_dtype=tf.int64,
        initial_num_buckets=buckets_for(capacity),
    )
    rows = tf.range(first, first + len(keys), dtype=tf.int64)
    tf.raw_ops.LookupTableInsertV2(table_handle=table, keys=tf.constant(keys, tf.int64), values=rows)
    exported = tf.raw_ops.LookupTableExportV2(table_handle=table, Tkeys=tf.int64, Tvalues=tf.int64)
    return {f"{name}/{_KEYS}": exported.keys, f"{name}/{_VALUES}": exported.values}


def _versions(models: Path) -> list[int]:
    return [int(path.name) for path in models.iterdir() if path.is_dir() and re.fullmatch(r"\d+", path.name)]
