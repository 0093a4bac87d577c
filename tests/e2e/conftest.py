"""What tests with real servers share."""

import os

import pytest

from deploy import install
from schemas.process import UserError


@pytest.fixture(scope="session")
def needs_servers():
    """Skips where this machine cannot run Kafka and Flink; with FRESHET_REQUIRE_SERVERS set, as in CI, that is an error."""
    try:
        install.java()
        install.maven()
    except UserError as error:
        if os.environ.get("FRESHET_REQUIRE_SERVERS"):
            raise
        pytest.skip(str(error))
