"""How the job runs on Flink unless it is told otherwise: options of Beam and its job server, each with its reason."""

from __future__ import annotations

import json
import secrets
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from schemas.process import UserError

#: Runners that hand the job to Flink by a job server.
RUNNERS = ("FlinkRunner", "PortableRunner")

_ANSWER_S = 10.0
_ALIVE = ("CREATED", "INITIALIZING", "RUNNING", "RESTARTING", "FAILING")

_DEFAULTS = {
    # The source never ends where logs are followed, and where they end the same steps serve.
    "streaming": None,
    # A worker that dies costs what was applied since the last checkpoint: seconds, applied again. Each copies at most
    # --inputs_bytes, a tenth of a second's work.
    "checkpointing_interval": "5000",
    "min_pause_between_checkpoints": "1000",
    # An element is a batch of thousands of events: a bundle is as many as have come, and the step waits for no more.
    "max_bundle_size": "64",
    "max_bundle_time_mills": "100",
    # By default what a bundle puts out while a checkpoint ends it is kept until the next bundle begins, which after the
    # logs' last batch is never.
    "finish_bundle_before_checkpointing": None,
    # The default keeps checkpoints in the job manager's memory and refuses those beyond 5 MB, for ever.
    "state_backend": "filesystem",
    # Without a cache every look at Beam state is a round trip to the task manager.
    "max_cache_memory_usage_mb": "256",
    # One shard: a second subtask would have nothing to do.
    "parallelism": "1",
    "max_parallelism": "128",
    # The step's threads are its own; a second worker process would share the cores and have no key.
    "sdk_worker_parallelism": "1",
    # Whatever dies is started again and goes on from its checkpoint; what fails for ever is for a person to see.
    "number_of_execution_retries": "1000000",
    "execution_retry_delay": "1000",
}


def flink_words(words: Sequence[str], state_dir: str) -> list[str]:
    """Options that the words of a command line do not name; checkpoints lie beside the job's own state."""
    named = {word.split("=", 1)[0] for word in words}
    own = {
        "state_backend_storage_path": Path(state_dir, "checkpoints").absolute().as_uri(),
        "job_name": f"freshet-{secrets.token_hex(4)}",  # by which it is found again
    }
    defaults = _DEFAULTS | own
    return list(_options(defaults, named))


def _options(defaults: dict[str, str | None], named: set[str]) -> Iterator[str]:
    for name, value in defaults.items():
        if f"--{name}" not in named and f"--no_{name}" not in named:
            yield f"--{name}" if value is None else f"--{name}={value}"


def cancel(rest: str, name: str) -> None:
    """Cancel the jobs of a name. Beam's job server says that it does, and leaves them running (seen with 2.62).

    Args:
        rest: HOST:PORT of the job manager's REST interface.
        name: of the job.

    Raises:
        UserError: it does not answer.
    """
    try:
        with urllib.request.urlopen(f"http://{rest}/jobs/overview", timeout=_ANSWER_S) as answer:
            jobs = [job["jid"] for job in json.load(answer)["jobs"] if job["name"] == name and job["state"] in _ALIVE]
        for job in jobs:
            request = urllib.request.Request(f"http://{rest}/jobs/{job}?mode=cancel", method="PATCH")
            urllib.request.urlopen(request, timeout=_ANSWER_S).close()
    except OSError as error:
        raise UserError(
            f"--flink_master {rest}: job {name} cannot be cancelled ({error}): cancel it in Flink's web interface"
        ) from error
