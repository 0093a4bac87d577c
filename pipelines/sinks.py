"""Where the tagged outputs go: files that a crash leaves whole, written so that a repetition changes nothing."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from model.delta import Delta
from model.export import export_state, write_version
from model.snapshot import SnapshotError
from schemas.config import FeatureConfig
from schemas.log_files import LogWriter

from .outputs import DeadLetter, Metrics, Predictions, SnapshotRef
from .state_files import StateFiles


def replace_file(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.rename(path)


class WriteMetrics(beam.DoFn):
    """Keeps one JSON file at the newest figures."""

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, element: Metrics) -> None:
        replace_file(Path(self._path), json.dumps(element.figures, indent=2) + "\n")


class WriteDeadLetters(beam.DoFn):
    """Appends dead letters to one file a shard, as JSON lines; those already there are told by their number."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def process(self, element: tuple[int, list[DeadLetter]]) -> None:
        shard, letters = element
        path = Path(self._directory) / f"shard-{shard:03d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
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


def _lines_written(file: IO[bytes]) -> int:
    """Number after the last whole line; a line cut short by a crash is removed."""
    end = file.seek(0, os.SEEK_END)
    back = min(end, 256 << 10)
    file.seek(end - back)
    tail = file.read()
    whole = tail.rfind(b"\n") + 1
    if whole != len(tail):
        file.truncate(end - back + whole)
        file.seek(0, os.SEEK_END)
    lines = tail[:whole].splitlines()
    return json.loads(lines[-1])["number"] + 1 if lines else 0


class WritePredictions(beam.DoFn):
    """One Parquet file a batch, named by the shard's version: a repetition overwrites itself."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def process(self, element: tuple[int, int, list[Predictions]]) -> None:
        shard, applied, parts = element
        tables = [
            pa.table(
                {"head": [part.head] * part.key.size, "key": part.key, "time_ms": part.time_ms, "label": part.label}
                | {f"logit_{arm}": logits for arm, logits in part.logits.items()}
            )
            for part in parts
        ]
        Path(self._directory).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), Path(self._directory) / f"{shard:03d}-{applied:012d}.parquet")


class WriteDeltas(beam.DoFn):
    """Appends parameter deltas to the parameter log, one segment a delta: a reader sees it whole or not at all."""

    def __init__(self, root: str) -> None:
        self._root = root

    def process(self, element: Delta) -> None:
        with LogWriter(self._root, "parameters", element.shard) as writer:
            writer.append([element.to_record()])


class WriteVersion(beam.DoFn):
    """The version writer: turns a parameter snapshot into a SavedModel version directory."""

    def __init__(self, model_dir: str, config: FeatureConfig, keep: int) -> None:
        self._model_dir, self._config, self._keep = model_dir, config, keep
        self._versions = beam.metrics.Metrics.counter("version_writer", "versions")

    def process(self, element: SnapshotRef) -> Iterable[int]:
        files = StateFiles(element.state_dir, element.shard)
        try:
            state = files.load(files.read(element.manifest))
        except SnapshotError as error:
            raise RuntimeError(f"the snapshot to export is not whole: {error}") from error
        version = write_version(Path(self._model_dir), export_state(state, self._config), self._config, keep=self._keep)
        self._versions.inc()
        yield version
