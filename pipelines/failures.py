"""Errors for the user, found inside a runner: it would wrap their one line in its own traceback.

A step that fails notes the error here on its way out; the command, which runs in the same process where the runner is a
local one, raises it again. Elsewhere the runner's log has it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.process import UserError

_lock = threading.Lock()
_noted: list[UserError] = []


@contextmanager
def noted(place: str | None = None) -> Iterator[None]:
    """Note a user error that leaves the block; with ``place``, such as an option and its folder, any OSError is one.

    Raises:
        UserError: what left the block, or what the system said of ``place``.
    """
    try:
        yield
    except UserError as error:
        _note(error)
        raise
    except OSError as error:
        if place is None:
            raise
        said = UserError(f"{place}: {error.strerror or error}; put it right and start again, nothing is lost")
        _note(said)
        raise said from error


def reset() -> None:
    """Forget what was noted, before a new run in the same process."""
    with _lock:
        _noted.clear()


def first() -> UserError | None:
    """The first error noted since :func:`reset`."""
    with _lock:
        return _noted[0] if _noted else None


def _note(error: UserError) -> None:
    with _lock:
        _noted.append(error)
