"""How much memory the Python worker of a shard and the pool that starts it need: for a container's limit, or a machine to rent.

    python -m pipelines.memory --config features.toml --rows 10000000 --impressions_per_s 1000

Nothing of it is Flink's: table, waiting rows and snapshots lie in the worker's own memory, outside of the task manager's
process and of its managed memory. A container that holds pool and worker alone needs the whole; one that holds the task
manager, too, needs taskmanager.memory.process.size on top.

Bytes of a row are those of the layouts themselves; copies at work were counted in real processes, and the test counts again.
It is a bound for when everything comes together: every row touched since the last snapshot, while a base is merged and a
version exported. Arms (--arms) come on top.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from schemas.config import FeatureConfig, load_config
from schemas.kafka_logs import FULL_BYTES, TOPICS, KafkaTopics
from schemas.process import CommandParser, UserError, run_main
from schemas.quiet import quiet_imports

with quiet_imports():
    from model.catalogue import Catalogue
    from model.keyed_rows import row_bytes
    from model.trainer import Trainer

    from .flink import DEFAULTS
    from .join import Join
    from .rows import RowStore
    from .shard import ShardConfig

MIB = 1 << 20
#: Python with Beam, TensorFlow and all kernels and steps, before the first row: 0.93 GiB were measured where the kernels came
#: from the cache, and 1.05 where they were compiled.
_PROCESS = 1280 * MIB
#: `deploy.worker_pool` (205 MiB were measured) and the process that it forks workers from: what it does not share (150).
_POOL = 384 * MIB
#: Copies of all rows, as files hold them, in memory at once: while an increment is written (2.0 were measured); while it and
#: a base become one (4.0); while a version is exported (5.3).
_INCREMENT, _MERGE, _EXPORT = 2.0, 4.0, 5.5
#: The text of a name in the catalogue, as an object of Python's.
_NAME = 64
#: Columns that grow are twice as long as needed, at most.
_DOUBLED = 2


def _part(meaning: str) -> int:
    part: int = field(metadata={"meaning": meaning})
    return part


@dataclass(frozen=True)
class Need:
    """Bytes, by what they are for."""

    process: int = _part("Python, Beam, TensorFlow, compiled code")
    pool: int = _part("the worker pool, and the process that workers are forked from")
    beam: int = _part("Beam's state cache, the batches of a checkpoint, messages fetched ahead")
    table: int = _part("embedding table: rows, index, journal, filter")
    catalogue: int = _part("users and videos of the exported catalogue")
    waiting: int = _part("impressions that wait for their actions, or are remembered")
    files: int = _part("snapshots: an increment, a merge and an export at once")

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


def file_row_bytes(config: FeatureConfig) -> float:
    """Bytes of a row as a snapshot's columns hold it, before compression."""
    rows = Trainer(config, capacity=1).increment(0).keyed["table"].rows
    return float(rows.nbytes / len(rows))


def waiting_bytes(config: FeatureConfig, impressions_per_s: float) -> int:
    """Bytes of the rows that the join remembers: those of its longest window and of the lateness after it."""
    rows = int(impressions_per_s * Join(config).horizon / 1000)
    return rows * RowStore(config.width, 1, len(config.heads)).row_nbytes + Join.bytes_for(rows)


def need(config: FeatureConfig, rows: int, impressions_per_s: float, shard: ShardConfig | None = None) -> Need:
    """What a worker with one shard needs at most.

    Args:
        config: feature configuration.
        rows: of the table; with ``--table_bytes N``, at most N / `model.keyed_rows.row_bytes`.
        impressions_per_s: event rate of the features log, in videos shown; it counts by event time, so for a replay it is
            that of the recorded stream.
        shard: of the job; for ``--inputs_bytes``.
    """
    topics = KafkaTopics("").settings()
    cache, inputs = int(DEFAULTS["max_cache_memory_usage_mb"] or 0) * MIB, (shard or ShardConfig()).inputs_bytes
    names = sum(most * (_DOUBLED * width + _NAME) for most, width in Catalogue(config).row_bytes.values())
    empty = Trainer(config, capacity=1).table.nbytes  # default rows and the filter, if a slot has one
    return Need(
        process=_PROCESS,
        pool=_POOL,
        # Batches since the last manifest lie in the cache, and twice where they wait for a snapshot that is being written.
        beam=cache + 2 * inputs + int(topics["queued.max.messages.kbytes"]) * 1024 + len(TOPICS) * FULL_BYTES,
        table=int(rows * row_bytes(config)) + empty,
        catalogue=names,
        waiting=waiting_bytes(config, impressions_per_s),
        files=int((_INCREMENT + _MERGE + _EXPORT) * rows * file_row_bytes(config)),
    )


def lines(found: Need) -> list[str]:
    """A table for people, in MiB."""
    parts = [(getattr(found, each.name), each.name, each.metadata["meaning"]) for each in fields(found)]
    text = [f"{size / MIB:>8,.0f} MiB  {name:10} {meaning}" for size, name, meaning in parts]
    return [*text, f"{found.total / MIB:>8,.0f} MiB  in all"]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what is needed, part by part."""
    parser = CommandParser(
        prog="python -m pipelines.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", metavar="FILE", type=Path, required=True, help="feature configuration")
    add("--rows", metavar="N", type=int, required=True, help="ids with a row of their own")
    add(
        "--impressions_per_s",
        metavar="N",
        type=float,
        default=1000.0,
        help="videos shown a second, by event time (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.rows < 0:
        raise UserError(f"--rows {args.rows}: give 0 or more")
    if not 0 <= args.impressions_per_s < 1e9:
        raise UserError(f"--impressions_per_s {args.impressions_per_s}: give a rate of 0 or more")
    print("\n".join(lines(need(load_config(args.config), args.rows, args.impressions_per_s))))
    return 0


if __name__ == "__main__":
    run_main(main)
