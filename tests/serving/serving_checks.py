"""What tests of serving ask of a failed call and of a process's log."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[Callable[[], str]]:
    """The block's call must fail with `code`; the yielded function gives its details."""
    details: list[str] = []
    with pytest.raises(grpc.RpcError) as caught:
        yield lambda: details[0]
    assert caught.value.code() is code, caught.value.details()
    details.append(caught.value.details())


def log_lines(stderr: str) -> list[dict]:
    """The structured log on a process's stderr, which must hold nothing else."""
    return [json.loads(line) for line in stderr.splitlines()]
