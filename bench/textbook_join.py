"""The join as a Beam textbook has it, to measure ours against: a state cell and a timer for each request.

    python -m bench.textbook_join --kafka HOST:PORT --config features.toml --state_dir STATE --runner=PortableRunner ...

It reads the topics of `pipelines.train` by the same source, then parts the batches: each event, a video shown or an action, is
an element of its own, keyed by its request. They wait in the request's state cell, and a timer in event time, at the end of the
longest attribution window, joins them. Nothing is learned. Options are those of `pipelines.train`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import PickleCoder
from apache_beam.io.unbounded_source import ReadFromUnboundedSource
from apache_beam.options.pipeline_options import StandardOptions
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from pipelines.batches import EventBatch, Kind
from pipelines.command_line import pipeline_options
from pipelines.options import LOCAL_RUNNER, TrainConfig, TrainOptions
from pipelines.train import logs_source
from schemas.process import CommandParser, run_main, setup_logging

#: Name of the step that joins, by which its elements are counted.
JOIN = "Textbook join"

_COLUMNS = ("request_id", "kind", "time_ms", "item_id", "action", "ids")

#: Event time in ms, item, action's code, and a video's feature ids, None for an action.
Event = tuple[int, str, int, list[int] | None]


def events(element: tuple[bytes, bytes]) -> Iterator[tuple[str, Event]]:
    """The events of an encoded `EventBatch` by request id, faults left out."""
    columns = EventBatch.decode(element[1]).events.to_pydict()
    for request, kind, time_ms, item, action, ids in zip(*(columns[name] for name in _COLUMNS), strict=True):
        if kind != Kind.FAULT:
            yield request, (time_ms, item, action, ids if kind == Kind.FEATURES else None)


class TextbookJoin(beam.DoFn):
    """Events of a request wait until the window of its videos has passed; `(feature ids, labels as bits)` leave then.

    Args:
        window_s: the longest attribution window, in event time.
    """

    WAITING = BagStateSpec("waiting", PickleCoder())
    DECIDED = TimerSpec("decided", TimeDomain.WATERMARK)

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s

    def process(
        self,
        element: tuple[str, Event],
        waiting: Any = beam.DoFn.StateParam(WAITING),
        decided: Any = beam.DoFn.TimerParam(DECIDED),
    ) -> None:
        """An event begins to wait."""
        time_ms, _, _, ids = element[1]
        waiting.add(element[1])
        if ids is not None:
            decided.set(Timestamp(micros=time_ms * 1000) + self._window_s)

    @on_timer(DECIDED)
    def decide(self, waiting: Any = beam.DoFn.StateParam(WAITING)) -> Iterator[tuple[list[int], int]]:
        """The window has passed."""
        videos: dict[str, list[int]] = {}
        labels: dict[str, int] = {}
        for _, item, action, ids in waiting.read():
            if ids is not None:
                videos[item] = ids
            elif action >= 0:
                labels[item] = labels.get(item, 0) | 1 << action
        for item, ids in videos.items():
            yield ids, labels.get(item, 0)
        waiting.clear()


def main(argv: list[str] | None = None) -> int:
    """Run until the job is cancelled, or the topics end on the local runner."""
    setup_logging()
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    parser = CommandParser(
        prog="python -m bench.textbook_join", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    TrainOptions._add_argparse_args(parser)
    options = pipeline_options(parser, argv)
    config = TrainConfig.from_options(options)
    if config.local:
        options.view_as(StandardOptions).runner = LOCAL_RUNNER
    window_s = max(head.window_s for head in config.features.heads)
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Read both logs" >> ReadFromUnboundedSource(logs_source(config), poll_interval=0.05, max_read_time_seconds=10.0)
            | "Part" >> beam.FlatMap(events).with_output_types(tuple[str, Any])
            | JOIN >> beam.ParDo(TextbookJoin(window_s))
            | "Count" >> beam.Map(lambda _: beam.metrics.Metrics.counter("textbook", "examples").inc())
        )
    return 0


if __name__ == "__main__":
    run_main(main)
