"""The trainer's Prometheus endpoint: figures of the shards that this process holds.

Beam hands counters on to Flink's metrics, but its gauges and distributions reach Prometheus as zero. So the worker that
holds a shard publishes them itself, on ``--metrics_port``: one endpoint a process, its metrics labelled by shard, gone with
the process. Counters take each batch once; what is timed is what this process did, batches that it applied again included.
Times of the wall clock are for people to look at: nothing is learned by them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from model.delta import Delta
from model.trainer import StepMetrics
from schemas.metrics_endpoint import MetricsEndpoint
from schemas.process import UserError

from .counts import MEANINGS, Counts

log = logging.getLogger(__name__)

_PREFIX = "freshet_trainer_"
#: Of the shard's own life: see :class:`pipelines.shard.ShardCounts`.
_FAULTS = {
    "restores": "Times that a shard was rebuilt from files and inputs",
    "reapplied": "Batches applied again in a restore",
    "snapshots": "Snapshots that a manifest names",
    "snapshot_failures": "Snapshots that could not be written",
    "merge_failures": "Bases that could not be merged",
}
_GAUGES = {
    "table_rows": "Ids with a row of their own",
    "table_bytes": "Bytes of the embedding table",
    "waiting_rows": "Impressions with an undecided head",
    "model_version": "Steps learned since the state began",
    "loss": "Loss of the newest step",
    "auc": "AUC of the first head over the last closed window, as of the requests",
    "healthy": "Whether parameters may be published",
    "joined_ratio": "Share of the impressions taken by this process that an action has met",
    "event_lag_seconds": "From the newest event time learned to the wall clock",
}
_SIZES = tuple(4.0**n for n in range(5, 16))  # 1 KiB to 1 GiB
_BUCKETS: dict[str, tuple[str, tuple[float, ...]]] = {
    "learn_step_seconds": ("Seconds of a learning step", tuple(0.001 * 2**n for n in range(12))),
    "snapshot_seconds": ("Seconds to copy a snapshot and write its files", tuple(0.01 * 2**n for n in range(14))),
    "snapshot_bytes": ("Bytes of a snapshot's files", _SIZES),
    "delta_seconds": ("Seconds to cut a parameter delta", tuple(0.001 * 2**n for n in range(12))),
    "delta_rows": ("Rows of a parameter delta", tuple(4.0**n for n in range(1, 12))),
    "delta_bytes": ("Bytes of a parameter delta", _SIZES),
}
#: How long a port that was taken is left alone.
_AGAIN_S = 10.0


class MetricsPlace(NamedTuple):
    """Where metrics are published; port 0: a free one, which the log names."""

    host: str
    port: int


class Monitoring:
    """Metrics of the shards of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.consumer_connects = Counter(
            f"{_PREFIX}consumer_connects", "Times that this process opened the logs", registry=self.registry
        )
        # Sums of the delta's histograms are the totals of its rows and bytes.
        totals = {name: meaning for name, meaning in MEANINGS.items() if name not in _BUCKETS} | _FAULTS
        self.counters = {name: Counter(_PREFIX + name, m, ["shard"], registry=self.registry) for name, m in totals.items()}
        self.gauges = {name: Gauge(_PREFIX + name, m, ["shard"], registry=self.registry) for name, m in _GAUGES.items()}
        self.histograms = {
            name: Histogram(_PREFIX + name, meaning, ["shard"], registry=self.registry, buckets=buckets)
            for name, (meaning, buckets) in _BUCKETS.items()
        }
        self._shards: dict[int, ShardMonitor] = {}

    def shard(self, number: int) -> ShardMonitor:
        """Metrics of one shard, always the same ones."""
        if number not in self._shards:
            self._shards[number] = ShardMonitor(self, number)
        return self._shards[number]


class ShardMonitor:
    """What a shard tells of itself."""

    def __init__(self, monitoring: Monitoring, shard: int) -> None:
        self._counters = {name: counter.labels(shard) for name, counter in monitoring.counters.items()}
        self._gauges = {name: gauge.labels(shard) for name, gauge in monitoring.gauges.items()}
        self._histograms = {name: histogram.labels(shard) for name, histogram in monitoring.histograms.items()}
        self._impressions = self._joined = 0
        self._learned_ms = -1
        self._gauges["event_lag_seconds"].set_function(self._lag_s)

    def counted(self, counts: Counts, faults: Mapping[str, int]) -> None:
        """What a batch, applied and recorded, added to the totals; ``faults`` by the names of ``ShardCounts``."""
        for name, more in (asdict(counts) | dict(faults)).items():
            if name in self._counters:
                self._counters[name].inc(more)
        self._impressions += counts.impressions
        self._joined += counts.joined
        if self._impressions:
            self._gauges["joined_ratio"].set(self._joined / self._impressions)

    def stands(self, **gauges: float | None) -> None:
        """Where things stand after a batch, by the names of the gauges; None for what is not known yet."""
        for name, value in gauges.items():
            self._gauges[name].set(math.nan if value is None else value)

    def stepped(self, step: StepMetrics, seconds: float, event_ms: int) -> None:
        """A step was learned, up to an event time in ms."""
        self._histograms["learn_step_seconds"].observe(seconds)
        self._gauges["loss"].set(step.loss)
        self._learned_ms = event_ms

    def cut(self, delta: Delta, seconds: float) -> None:
        """A delta was cut."""
        self._histograms["delta_seconds"].observe(seconds)
        self._histograms["delta_rows"].observe(delta.keys.size)
        self._histograms["delta_bytes"].observe(delta.nbytes)

    def wrote(self, seconds: float, size: int) -> None:
        """A snapshot of so many bytes was copied and written."""
        self._histograms["snapshot_seconds"].observe(seconds)
        self._histograms["snapshot_bytes"].observe(size)

    def _lag_s(self) -> float:
        return time.time() - self._learned_ms / 1000 if self._learned_ms >= 0 else math.nan


_lock = threading.Lock()
_monitoring = Monitoring()
_endpoint: MetricsEndpoint | None = None
_refused_at = -math.inf


def of_process() -> Monitoring:
    """The metrics of this process."""
    return _monitoring


def serve(place: MetricsPlace) -> int:
    """Publish them, unless that is done already; the port.

    Raises:
        UserError: the port is taken.
    """
    global _endpoint
    with _lock:
        if _endpoint is None:
            _endpoint = MetricsEndpoint(place.port, _monitoring.registry, place.host)
            log.info("publishing metrics", extra={"host": place.host, "port": _endpoint.port})
        return _endpoint.port


def serve_when_free(place: MetricsPlace) -> None:
    """As `serve`; a port that is taken is told and tried again later: a job does not stop learning for it."""
    global _refused_at
    if _endpoint is not None or time.monotonic() - _refused_at < _AGAIN_S:
        return
    try:
        serve(place)
    except UserError as error:
        _refused_at = time.monotonic()
        log.error("metrics not published yet", extra={"reason": str(error)})


def reset() -> None:
    """Publish no more, and count from nothing, before a new run in the same process."""
    global _monitoring, _endpoint, _refused_at
    with _lock:
        if _endpoint is not None:
            _endpoint.close()
        _monitoring, _endpoint, _refused_at = Monitoring(), None, -math.inf
