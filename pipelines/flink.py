"""How the job runs on Flink unless it is told otherwise: options of Beam and its job server, each with its reason."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from schemas.process import UserError

#: Runners that hand the job to Flink by a job server.
RUNNERS = ("FlinkRunner", "PortableRunner")

_ANSWER_S = 10.0
_POLL_S = 0.2
#: What the names of our jobs begin with.
JOB_PREFIX = "freshet-"
_ALIVE = ("CREATED", "INITIALIZING", "RUNNING", "RESTARTING", "FAILING")

#: Options by name; None: a flag.
DEFAULTS: dict[str, str | None] = {
    # The impulses at which the logs are read never end, though the logs may.
    "streaming": None,
    # A worker that dies costs what was applied since the last checkpoint: seconds, applied again. Each copies at most
    # --inputs_bytes, a tenth of a second's work.
    "checkpointing_interval": "5000",
    "min_pause_between_checkpoints": "1000",
    # An element is an impulse, at which a second's work or more is done, and what that puts out leaves when the bundle ends:
    # no more of them a bundle than gather in a second.
    "max_bundle_size": "8",
    "max_bundle_time_mills": "100",
    # By default what a bundle puts out while a checkpoint ends it is kept in the checkpoint, and leaves with the next bundle:
    # parameters would be as old as a checkpoint is long.
    "finish_bundle_before_checkpointing": None,
    # The default keeps checkpoints in the job manager's memory and refuses those beyond 5 MB, for ever.
    "state_backend": "filesystem",
    # Without a cache every look at Beam state is a round trip to the task manager.
    "max_cache_memory_usage_mb": "256",
    # A flag that turns chaining off: its default is true. Beam leaves it to Flink to name some operators, which goes by what
    # they are chained to, and so by the parallelism: a savepoint would fit no other. Elements are impulses, and few.
    "operator_chaining": None,
    # One shard: a second subtask would have nothing to do.
    "parallelism": "1",
    "max_parallelism": "128",
    # The step's threads are its own; a second worker process would share the cores and have no key.
    "sdk_worker_parallelism": "1",
    # By default the submitter has pip list what is installed, seconds for a note that only Beam's own containers look at.
    "experiments": "disable_logging_submission_environment",
    # Whatever dies is started again and goes on from its checkpoint; what fails for ever is for a person to see.
    "number_of_execution_retries": "1000000",
    "execution_retry_delay": "1000",
}


def flink_words(words: Sequence[str], state_dir: str) -> list[str]:
    """Options that the words of a command line do not name; checkpoints lie beside the job's own state."""
    named = {word.split("=", 1)[0] for word in words}
    own = {
        "state_backend_storage_path": Path(state_dir, "checkpoints").absolute().as_uri(),
        "job_name": f"{JOB_PREFIX}{secrets.token_hex(4)}",  # by which it is found again
    }
    defaults = DEFAULTS | own
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
        for job in alive(rest):
            if job.name == name:
                _ask(rest, f"/jobs/{job.id}?mode=cancel", method="PATCH")
    except OSError as error:
        raise UserError(
            f"--flink_master {rest}: job {name} cannot be cancelled ({error}): cancel it in Flink's web interface"
        ) from error


class Job(NamedTuple):
    """A job that has not ended."""

    id: str
    name: str


def alive(rest: str) -> list[Job]:
    """Jobs of a cluster that have not ended, by its REST interface at HOST:PORT.

    Raises:
        OSError: it does not answer.
    """
    return [Job(job["jid"], job["name"]) for job in _ask(rest, "/jobs/overview")["jobs"] if job["state"] in _ALIVE]


def stop_with_savepoint(rest: str, job: str, folder: str | None, timeout_s: float) -> str:
    """Has a job write a savepoint and ends it; where it lies.

    It is cancelled once the savepoint is there: Flink's graceful stop would have sources tell that the logs have ended.

    Args:
        rest: HOST:PORT of the job manager's REST interface.
        job: its id.
        folder: that the savepoint's own folder is made in; None: the cluster's `state.savepoints.dir`.
        timeout_s: seconds to wait for it.

    Raises:
        OSError: the cluster does not answer, or refuses.
        UserError: the job could not write it, or not in time; it runs on then.
    """
    asked = {"cancel-job": True} | ({} if folder is None else {"target-directory": folder})
    trigger = _ask(rest, f"/jobs/{job}/savepoints", "POST", asked)["request-id"]
    deadline = time.monotonic() + timeout_s
    while (told := _ask(rest, f"/jobs/{job}/savepoints/{trigger}"))["status"]["id"] != "COMPLETED":
        if time.monotonic() > deadline:
            raise UserError(f"job {job}: no savepoint after {timeout_s:.0f} s: see its checkpoints in Flink's web interface")
        time.sleep(_POLL_S)
    done = told["operation"]
    if "failure-cause" in done:
        said = done["failure-cause"]["stack-trace"].strip().splitlines()
        raise UserError(f"job {job}: no savepoint, it runs on: {said[-1] if said else done['failure-cause']['class']}")
    return str(done["location"])


def _ask(rest: str, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{rest}{path}", data, {"Content-Type": "application/json"} if data else {}, method=method
    )
    with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
        return json.loads(answer.read() or "null")
