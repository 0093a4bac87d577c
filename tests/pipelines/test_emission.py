"""AUC as scored when learned, for comparison: it is of the very examples that are evaluated as of their request."""

import pytest
from small_logs import CONFIG, START_MS, batches_of, world, write

from model.evaluation import Progressive
from pipelines.learn import JoinAndLearn, LearnConfig

WARM_START_S = 300.0


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for topic, records in zip(("features", "actions"), world(400), strict=True):
        write(root, topic, sorted(records, key=lambda record: record["time_ms"]))
    return batches_of(root, batch_rows=200)


def learned(batches, warm_start_s):
    """The step after the batches, and every (example batch, logits before its step)."""
    step, seen = JoinAndLearn(CONFIG, LearnConfig(step=32, warm_start_s=warm_start_s)), []
    learn = step.trainer.learn

    def watched(batch):
        metrics = learn(batch)
        seen.append((batch, metrics.logits))
        return metrics

    step.trainer.learn = watched
    for batch in batches:
        step.apply(batch)
    return step, seen


@pytest.mark.parametrize("warm_start_s", [0.0, WARM_START_S])
def test_it_is_of_what_is_evaluated(batches, warm_start_s):
    step, seen = learned(batches, warm_start_s)
    expected = Progressive()
    for batch, logits in seen:
        rows = (batch.mask[:, 0] > 0) & (batch.time_ms >= START_MS + round(1000 * warm_start_s))
        expected.update(logits[rows, 0], batch.labels[rows, 0])
    figures = step.figures()
    assert expected.count == figures["heads"]["click"]["count"] > 500
    assert figures["auc_scored_at_emission"] == pytest.approx(expected.auc, abs=1e-6)


def test_a_warm_start_beyond_the_end_leaves_nothing_to_score(batches):
    figures = learned(batches, 1e6)[0].figures()
    assert figures["examples"] > 1000
    assert figures["heads"]["click"]["count"] == 0
    assert figures["auc_scored_at_emission"] is None
