"""The benchmark on Flink: its rates, and the textbook's join that it measures ours against."""

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from bench.pipeline_flink import Look, Measured
from bench.textbook_join import TextbookJoin, events
from pipelines.options import LOCAL_RUNNER
from tests.pipelines.small_logs import START_MS, action, batches_of, features, write


def measured(*counts, every_s=10.0):
    return Measured([Look(every_s * i, {"examples_total": count}) for i, count in enumerate(counts)], 5.0, {})


def test_rates_are_from_the_first_look_to_the_last_and_of_the_slowest_half_minute():
    run = measured(0, 1000, 2000, 3000, 3300, 3600, 3900, 6900)
    assert run.per_s("examples_total") == pytest.approx(6900 / 70)
    assert run.slowest("examples_total") == pytest.approx(30)
    assert measured(0, 500).slowest("examples_total") == pytest.approx(50)  # too short for half a minute


def test_the_textbook_s_join_labels_each_video_once(tmp_path):
    write(tmp_path, "features", [features("r1", 0, items=("v1", "v2")), features("r2", 5_000, user="u2", items=("v3",))])
    write(
        tmp_path,
        "actions",
        [action("r1", 1_000, item="v2"), action("r1", 2_000, item="v2", name="like"), action("r9", 9_000)],
    )
    parted = [event for batch in batches_of(tmp_path) for event in events((b"", batch.encode()))]
    assert sorted((request, time_ms - START_MS, item) for request, (time_ms, item, _, _) in parted) == [
        ("r1", 0, "v1"), ("r1", 0, "v2"), ("r1", 1_000, "v2"), ("r1", 2_000, "v2"), ("r2", 5_000, "v3"), ("r9", 9_000, "v1"),
    ]  # fmt: skip
    shown = {item: ids for _, (_, item, _, ids) in parted if ids is not None}
    with beam.Pipeline(LOCAL_RUNNER) as pipeline:
        joined = pipeline | beam.Create(parted).with_output_types(tuple[str, object]) | beam.ParDo(TextbookJoin(300.0))
        assert_that(joined, equal_to([(shown["v1"], 0), (shown["v2"], 0b11), (shown["v3"], 0)]))
