"""`make chaos` in short: kinds of faults that no other test has, one after the other in one run."""

import pytest

from tests.e2e.chaos import chaos

pytestmark = pytest.mark.usefixtures("needs_servers")
FAULTS = ["fill_disk", "kill_task_manager", "kill_broker"]


def test_nothing_is_lost_or_learned_twice_while_things_die(tmp_path):
    chaos(tmp_path, FAULTS, requests=6000, seed=1)
