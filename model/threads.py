"""The threads that kernels and compiled steps share, and how work is cut for them.

Work is cut by what is to be done, never by how many threads there are, or in a way that the result does not depend on: a
result is the same bit by bit on any number of threads. Numba's own threads (`prange`) are not used: they end a process that
forks, or are not safe to call from several threads.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

_T = TypeVar("_T")

_lock = threading.Lock()
_here = threading.local()
_executor: ThreadPoolExecutor | None = None
_count = len(os.sched_getaffinity(0))


def use_threads(count: int) -> None:
    """Have all that runs from now on use `count` threads, the caller's included; at first it is one a core.

    Raises:
        ValueError: fewer than one.
    """
    global _executor, _count
    if count < 1:
        raise ValueError(f"{count} threads cannot work: use 1 or more")
    with _lock:
        _executor, _count = None, count  # an executor that nobody holds any more ends its threads


def threads() -> int:
    """Threads in use."""
    return _count


def ranges(items: int, least: int) -> list[slice]:
    """`items` cut into a range a thread, of at least `least` each; one empty range if there are none."""
    parts = max(1, min(_count, items // least))
    return [slice(items * part // parts, items * (part + 1) // parts) for part in range(parts)]


def run(function: Callable[[slice], _T], parts: Sequence[slice]) -> list[_T]:
    """`function(part)` for each part, in threads where there are several of both; results in their order.

    Within a part of another run it stays in that part's thread: the others are at work, and may wait for it.
    """
    helpers = min(_count, len(parts)) - 1
    if helpers < 1 or getattr(_here, "at_work", False):
        return [function(part) for part in parts]
    results: list[_T | None] = [None] * len(parts)
    turns = iter(range(len(parts)))  # whoever is done takes the next one

    def work() -> None:
        _here.at_work = True
        try:
            for turn in turns:
                results[turn] = function(parts[turn])
        finally:
            _here.at_work = False

    # The caller works, too: one that only waits would wake its helpers on the core it is about to leave.
    others: list[Future[None]] = [_threads().submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        # Those that have not begun have nothing left to do; the others write to the caller's arrays.
        begun = [other for other in others if not other.cancel()]
        wait(begun)
    for other in begun:
        other.result()
    return results  # type: ignore[return-value]  # each turn was taken


def _threads() -> ThreadPoolExecutor:
    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(max(1, _count - 1), thread_name_prefix="kernel")
        return _executor


_guarded: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_guarded_lock = threading.Lock()
_held: list[threading.RLock] = []


def free_at_fork(lock: threading.RLock) -> None:
    """Has each fork wait until no other thread holds this lock: a child has no thread that could ever release it.

    A thread that holds one such lock must not wait for another.
    """
    with _guarded_lock:
        _guarded.add(lock)


def _hold() -> None:
    _guarded_lock.acquire()
    _held[:] = _guarded
    for lock in _held:
        lock.acquire()


def _release() -> None:
    for lock in _held:
        lock.release()
    _held.clear()
    _guarded_lock.release()


def _release_in_child() -> None:
    global _executor, _lock
    _release()
    _executor, _lock = None, threading.Lock()


# A forked child has none of its parent's threads, and may have been born while one of them held the executor's lock.
os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_release_in_child)
