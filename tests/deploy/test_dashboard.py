"""The dashboard asks for what is published: names are taken from the registries, not from a list."""

import json
import re
from pathlib import Path

import pytest
import yaml

from pipelines.monitoring import Monitoring

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "freshet.json"


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queried(expression):
    """Names of the metrics in a PromQL expression: all names that are no function's, keyword's or label's."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without|on)\s*\([^)]*\)", " ", expression)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w|\s*\()", bare)) - {"and", "or", "unless"}


def all_queried():
    return set().union(*(queried(target["expr"]) for panel in panels() for target in panel["targets"]))


def published():
    monitoring = Monitoring()
    monitoring.shard(0)
    return {sample.name for family in monitoring.registry.collect() for sample in family.samples}


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("sum(rate(a_total[1m])) / sum by (le) (rate(b_total{job=\"x\"}[5m]))", {"a_total", "b_total"}),
        ("histogram_quantile(0.5, sum by (le) (rate(c_bucket[5m])))", {"c_bucket"}),
        ("d", {"d"}),
    ],
)  # fmt: skip
def test_names_are_found_in_expressions(expression, names):
    assert queried(expression) == names


def test_every_metric_that_it_queries_is_published():
    """Those of Flink's reporter are looked for in a real cluster's: see tests/e2e/test_flink_metrics.py."""
    ours = {name for name in all_queried() if not name.startswith("flink_")}
    assert len(ours) > 20
    assert ours <= published()


def test_every_kind_of_the_trainers_metrics_is_shown():
    shown = all_queried()
    monitoring = Monitoring()
    for name in (*monitoring.counters, *monitoring.gauges, *monitoring.histograms):
        if name not in ("deltas", "snapshots", "model_version"):  # their rates say nothing that others do not
            assert any(each.startswith(f"freshet_trainer_{name}") for each in shown), name


def test_panels_have_a_place_a_title_and_a_source_that_is_provisioned():
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    places = set()
    for panel in panels():
        assert panel["title"]
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
        places.add((panel["gridPos"]["x"], panel["gridPos"]["y"]))
    assert len(places) == len(panels())
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_jobs_that_queries_name_are_scraped():
    jobs = {each["job_name"] for each in yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]}
    named = {job for panel in panels() for target in panel["targets"] for job in re.findall(r'job="(\w+)"', target["expr"])}
    assert named
    assert named <= jobs
