"""What a person sees while the job runs: examples, their rate, AUC of the last window, table size."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from schemas.logs import FileLogs

if TYPE_CHECKING:
    from .options import TrainConfig
    from .shard import Shard

log = logging.getLogger(__name__)

_TERMINAL_S = 0.25


class ProgressDisplay:
    """A progress line while the job runs in this process; lines of the log where there is no terminal."""

    def __init__(self, config: TrainConfig, shard: Callable[[], Shard[Any]]) -> None:
        self._config, self._shard = config, shard
        self._done, self._failed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> ProgressDisplay:
        if self._config.local:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._failed = kind is not None
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        if sys.stderr.isatty():
            self._draw()
        else:
            while not self._done.wait(self._config.progress_interval_s):
                log.info("training", extra=self._figures())

    def _draw(self) -> None:
        columns = (SpinnerColumn(), BarColumn(30), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
            total = self._bytes()
            task = bar.add_task("compiling kernels", total=total)
            while True:
                ended = self._done.wait(_TERMINAL_S)
                figures = self._figures()
                if figures:
                    auc = figures.get("auc_last_window")
                    text = f"{figures['examples']:>9,} examples  {figures['examples_per_s']:>7,.0f}/s"
                    text += f"  AUC {auc:.4f}" if auc is not None else ""
                    text += f"  {figures['table_rows']:,} rows"
                    bar.update(task, description=text, completed=total if ended and not self._failed else figures["bytes"])
                if ended:
                    return

    def _figures(self) -> dict[str, Any]:
        shard = self._shard()
        step: Any = shard.step
        if step is None:
            return {}
        positions = dict(shard.positions)
        learned = step.learned
        return {
            "model_version": learned.model_version,
            "newest_learned_ms": learned.event_ms,
            "examples": step.progress.examples,
            "examples_per_s": step.progress.examples_per_s,
            "auc_last_window": step.progress.auc_last_window,
            "table_rows": len(step.trainer.table),
            "bytes": sum(position.offset for position in positions.values()),
            "seconds": round(time.monotonic() - step.progress.started, 1),
        }

    def _bytes(self) -> int | None:
        """Of the logs, if they have an end."""
        if self._config.follow or not isinstance(self._config.logs, FileLogs):
            return None
        logs = Path(self._config.logs.root)
        return sum(path.stat().st_size for topic in ("features", "actions") for path in (logs / topic).rglob("*.avro"))
