"""`make chaos` in short: one fault of each kind that no other test has, one after the other in one run."""

import pytest

from tests.e2e.chaos import chaos

pytestmark = pytest.mark.usefixtures("needs_servers")
FAULTS = ["fill_disk", "kill_broker", "kill_task_manager", "kill_job_manager", "kill_model_server"]


def test_nothing_is_lost_or_learned_twice_while_things_die(tmp_path):
    chaos(tmp_path, FAULTS, requests=4000, seed=1)
