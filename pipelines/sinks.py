"""Where the tagged outputs go: files that a crash leaves whole, written so that a repetition changes nothing.

A runner may deliver an element again, alone or with those after it, and a job started anew may put out again what came
after its newest manifest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections import deque
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import IO

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from model.delta import Delta
from model.export import export_state, write_version
from model.snapshot import SnapshotError
from schemas.avro import Record, encode_body
from schemas.config import FeatureConfig
from schemas.files import replace_file, sync_path
from schemas.log_files import LogWriter, PartitionReader
from schemas.log_segments import newest_segment
from schemas.process import UserError

from .failures import noted
from .outputs import DeadLetter, Metrics, Predictions, SnapshotRef
from .state_files import StateFiles

_PARAMETERS = "parameters"
#: Bytes looked at first for the last line of a file: a line is seldom longer.
_TAIL = 4 << 10
#: Deltas a runner may repeat at once: more than a bundle ever holds.
_REMEMBERED = 256
_written: dict[tuple[Hashable, int], deque[bytes]] = {}
#: By folder and shard, the version of the predictions that this process wrote last.
_newest: dict[tuple[str, int], int] = {}
_written_lock = threading.Lock()


def reset() -> None:
    """Forget what was written, before a new run in the same process: the files tell."""
    with _written_lock:
        _written.clear()
        _newest.clear()


class WriteMetrics(beam.DoFn):
    """Keeps one JSON file at the newest figures."""

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, element: Metrics) -> None:
        with noted(f"--metrics_json {self._path}"):
            replace_file(Path(self._path), json.dumps(element.figures, indent=2) + "\n")


class WriteDeadLetters(beam.DoFn):
    """Appends dead letters to one file a shard, as JSON lines; those already there are told by their number.

    They are on the disk when a batch's are done: the manifest after it makes a restart skip them.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def process(self, element: tuple[int, list[DeadLetter]]) -> None:
        with noted(f"--dead_letters_dir {self._directory}"):
            self._append(*element)

    def _append(self, shard: int, letters: list[DeadLetter]) -> None:
        path = Path(self._directory) / f"shard-{shard:03d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a+b") as file:
            written = _lines_written(file)
            for letter in letters:
                if letter.number < written:
                    continue
                line = {
                    "number": letter.number,
                    "partition": letter.partition,
                    "offset": letter.offset,
                    "reason": letter.reason,
                    "raw_base64": base64.b64encode(letter.raw).decode(),
                }
                file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_path(path.parent)


def _lines_written(file: IO[bytes]) -> int:
    """Number after the last whole line; a line cut short by a crash is removed."""
    end = file.seek(0, os.SEEK_END)
    back = _TAIL
    while True:
        back = min(back, end)
        file.seek(end - back)
        tail = file.read(back)
        whole = tail.rfind(b"\n") + 1
        begin = tail.rfind(b"\n", 0, max(whole - 1, 0)) + 1
        if begin or back == end:
            break
        back *= 2
    if whole != len(tail):
        file.truncate(end - back + whole)
        file.seek(0, os.SEEK_END)
    return int(json.loads(tail[begin:whole])["number"]) + 1 if whole else 0


class WritePredictions(beam.DoFn):
    """One Parquet file a batch, named by the shard's version.

    What comes first in a process, or has an earlier version than what came before but is not what its file holds, is of a
    new attempt, which may cut its batches elsewhere: files of its version and later ones are removed. What comes again
    as it was, alone or with those after it, changes nothing.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def process(self, element: tuple[int, int, list[Predictions]]) -> None:
        with noted(f"--predictions_dir {self._directory}"), _written_lock:
            self._write(*element)

    def _write(self, shard: int, applied: int, parts: list[Predictions]) -> None:
        folder = Path(self._directory)
        path = folder / f"{shard:03d}-{applied:012d}.parquet"
        data = _parquet(parts)
        newest = _newest.get((self._directory, shard), -1)
        if applied <= newest and data == (path.read_bytes() if path.exists() else None):
            return
        # What this process wrote last has nothing behind it: the folder, which grows with the stream, need not be listed.
        if newest < 0 or applied <= newest:
            folder.mkdir(parents=True, exist_ok=True)
            for other in folder.glob(f"{shard:03d}-*.parquet"):
                if other.name >= path.name:
                    other.unlink()
        if data is None:
            path.unlink(missing_ok=True)  # another process may have had the shard, and cut its batches elsewhere
        else:
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(data)
            temporary.rename(path)
        _newest[self._directory, shard] = applied


def _parquet(parts: list[Predictions]) -> bytes | None:
    """Predictions as a file, the same for the same ones; None without any."""
    if not parts:
        return None
    tables = [
        pa.table(
            {"head": [part.head] * part.key.size, "key": part.key, "time_ms": part.time_ms, "label": part.label}
            | {f"logit_{arm}": logits for arm, logits in part.logits.items()}
        )
        for part in parts
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), sink)
    return sink.getvalue().to_pybytes()


class DeltaSink(beam.DoFn):
    """Appends parameter deltas to a parameter log, those that are there already told by what they hold.

    Args:
        log: where it is, as `WriteDeltas` and `pipelines.topic_sinks` have it.
        place: such as an option and its folder, for errors.
    """

    def __init__(self, log: Hashable, place: str) -> None:
        self._log, self._place = log, place

    def process(self, element: Delta) -> None:
        record = element.to_record()
        digest = _digest(record)
        with noted(self._place), _written_lock:
            known = (self._log, element.shard) in _written
            written = _written.setdefault((self._log, element.shard), deque(maxlen=_REMEMBERED))
            written.extend(map(_digest, self._unseen(element.shard, known)))
            if digest not in written:
                self._append(element.shard, record)
                written.append(digest)

    def _unseen(self, shard: int, known: bool) -> Iterable[Record]:
        """Newest deltas that others wrote; `known`: since this process looked last."""
        raise NotImplementedError

    def _append(self, shard: int, record: Record) -> None:
        """Returns when it is there for good."""
        raise NotImplementedError


class WriteDeltas(DeltaSink):
    """A parameter log in files, one segment a delta: a reader sees it whole or not at all.

    A partition of files has one writer, so others have written only what was there at first: its last delta.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root, f"--parameter_log {root}")
        self._root = root

    def _unseen(self, shard: int, known: bool) -> Iterable[Record]:
        if known:
            return []
        return PartitionReader(self._root, _PARAMETERS, shard, newest_segment(self._root, _PARAMETERS, shard)).read(1).records

    def _append(self, shard: int, record: Record) -> None:
        with LogWriter(self._root, _PARAMETERS, shard) as writer:
            writer.append([record])


def _digest(delta: Record) -> bytes:
    return hashlib.sha256(encode_body(_PARAMETERS, delta)).digest()


class WriteVersion(beam.DoFn):
    """The version writer: turns a parameter snapshot into a SavedModel version directory, which names the snapshot."""

    def __init__(self, model_dir: str, config: FeatureConfig, keep: int) -> None:
        self._model_dir, self._config, self._keep = model_dir, config, keep
        self._versions = beam.metrics.Metrics.counter("version_writer", "versions")

    def process(self, element: SnapshotRef) -> Iterable[int]:
        with noted(f"--model_dir {self._model_dir}"):
            version = self._write(element)
        if version is not None:
            self._versions.inc()
            yield version

    def _write(self, snapshot: SnapshotRef) -> int | None:
        models = Path(self._model_dir)
        origin = {"state_dir": snapshot.state_dir, "shard": snapshot.shard, "manifest": snapshot.manifest}
        if _origin_of_newest(models) == origin:
            return None
        files = StateFiles(snapshot.state_dir, snapshot.shard)
        try:
            state = files.load(files.read(snapshot.manifest))
        except SnapshotError as error:
            raise UserError(f"the snapshot to export is not whole: {error}") from error
        version = write_version(models, export_state(state, self._config), self._config, keep=self._keep)
        replace_file(models / str(version) / _ORIGIN, json.dumps(origin) + "\n")
        return version


def published(model_dir: str, state_dir: str, files: StateFiles) -> bool:
    """Whether the newest version in a folder is of the newest snapshot of a state, where that may be served at all."""
    manifest = files.read(files.manifests()[-1])
    origin = {"state_dir": state_dir, "shard": files.shard, "manifest": manifest.name}
    return not manifest.publishable or _origin_of_newest(Path(model_dir)) == origin


#: Where model servers expect what is not theirs.
_ORIGIN = Path("assets.extra") / "snapshot.json"


def _origin_of_newest(models: Path) -> dict[str, str | int] | None:
    """Of which snapshot the newest version was made, if it says so."""
    versions = [int(path.name) for path in models.glob("*") if re.fullmatch(r"\d+", path.name)]
    path = models / str(max(versions, default=0)) / _ORIGIN
    return json.loads(path.read_text()) if path.exists() else None
