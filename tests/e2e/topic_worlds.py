"""Topics that a small world is written to part by part, so that a job can come to the end of one before there is the next."""

from dataclasses import replace

from pipelines.datasets.requests import PendingActions
from pipelines.datasets.simulator import World
from pipelines.request_log import RequestLogWriter
from schemas.kafka_writer import create_topics
from tests.e2e.e2e_worlds import ITEMS

REQUESTS = 300  # of each part


class Stream:
    """A small world's requests and actions, part by part, into topics."""

    def __init__(self, topics):
        create_topics(topics, 2)
        self._topics, self._pending = topics, PendingActions()
        self._world = World(seed=4, users=80, requests_per_day=2 * REQUESTS, videos_per_request=ITEMS)

    def write(self, config, last=False):
        """The next part, featurised by a configuration; ids of its requests."""
        batch, actions, _ = self._world.requests(REQUESTS)
        batch = replace(batch, user_columns={**batch.user_columns, "request_id": batch.request_id})
        self._pending.push(actions)
        with RequestLogWriter(self._topics, config) as writer:
            writer.append(batch, self._pending.pop_before(int(batch.time_ms[-1])))
            if last:
                writer.append_actions(self._pending.pop_all())
        return batch.request_id.tolist()


def place(topics, config, tmp_path):
    file = tmp_path / f"{len(config.slots)}.toml"
    config.dump(file)
    return ["--kafka", topics.servers, "--kafka_prefix", topics.prefix, "--config", str(file)]
