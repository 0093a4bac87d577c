"""How a soak of the training job judges what it has seen, and the heap of a JVM as `jcmd` tells it."""

import pytest

from deploy.flink_cluster import FlinkCluster
from tests.e2e.soak_job import Histogram, Life, grown, histogram


def heap(buffers, objects):
    return Histogram({"[B": buffers, "java.lang.Object": objects}, buffers + objects)


def test_what_comes_and_goes_is_no_growth():
    life = Life([100, 140, 120, 141], [heap(900, 50), heap(100, 52), heap(950, 51), heap(104, 53)])
    assert life.growth() == pytest.approx({"worker_rss": 141 / 140, "heap_buffers": 1.04, "heap_objects": 53 / 52})
    life.check()


@pytest.mark.parametrize(
    ("life", "told"),
    [
        (Life([100, 110, 112, 120], [heap(1, 1)] * 2), "worker_rss has grown to 1.091"),
        (Life([1, 1], [heap(100, 50), heap(110, 50)]), r"heap_buffers .* grew \[B by 10 bytes"),
        (Life([1, 1], [heap(100, 50), heap(90, 60)]), "heap_objects .* grew java.lang.Object by 10 bytes"),
        (Life([1, 1], [heap(1, 1)] * 2, restores=2), "restored 2 times"),
    ],
)
def test_what_grows_or_is_restored_is_told(life, told):
    with pytest.raises(AssertionError, match=told):
        life.check()


@pytest.mark.usefixtures("needs_servers")
def test_a_heap_is_told_by_class(cluster: FlinkCluster):
    found = histogram(cluster.job_manager.pid)
    assert found.total == sum(found.classes.values()) > 1 << 20
    assert found.bytes_of("[B") > 0 and found.bytes_of("no.such.Class") == 0
    assert grown(Histogram({}, 0), found)[0][1] == max(found.classes.values())
