"""What `deploy.submit` makes of a command line."""

import pytest

from deploy import submit
from deploy.state import ServiceState
from schemas.process import UserError


@pytest.fixture
def servers(monkeypatch):
    """Where services say they are; none of them runs."""
    endpoints = {
        "flink": {"rest": "h:1", "job_endpoint": "h:2", "artifact_endpoint": "h:3", "worker_pool": "h:4"},
        "kafka": {"bootstrap": "h:5"},
    }

    def running(folder, service):
        if service not in endpoints:
            raise UserError(f"{service} does not run")
        return ServiceState(service, True, endpoints[service], [])

    monkeypatch.setattr(submit, "running", running)
    return endpoints


def test_it_adds_where_the_servers_are(servers, tmp_path):
    words = submit.words(tmp_path, ["--config", "c.toml", "--state_dir=state"])
    assert words[:3] == ["--config", "c.toml", "--state_dir=state"]
    assert {"--runner=PortableRunner", "--job_endpoint=h:2", "--environment_config=h:4", "--kafka=h:5"} <= set(words)


def test_what_is_given_comes_first(servers, tmp_path):
    del servers["kafka"]
    words = submit.words(tmp_path, ["--logs", "out/logs", "--job_endpoint=mine:1"])
    assert not [word for word in words if word.startswith("--kafka")]
    assert [word for word in words if word.startswith("--job_endpoint")] == ["--job_endpoint=mine:1"]
    with pytest.raises(UserError, match="kafka does not run"):
        submit.words(tmp_path, ["--config", "c.toml"])
