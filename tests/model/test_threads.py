"""However many threads share a batch, the table is the same; and they survive forks and company."""

import os
import signal
import threading

import numpy as np
import pytest

import model.table as table_module
from model import pooled_rows, row_copies
from model.table import EmbeddingTable
from model.threads import ranges, run, threads, use_threads
from tests.model.table_checks import CONFIG, NUMBERS, WIDTH, admit, everything


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    for module in (pooled_rows, row_copies, table_module):
        monkeypatch.setattr(module, "_LEAST", 512)  # so that batches of thousands are shared by three
    monkeypatch.setattr(pooled_rows, "_LEAST_SUMMED", 512)
    before = threads()
    yield
    use_threads(before)


def history(seed: int = 0) -> EmbeddingTable:
    """Batches of thousands of distinct ids, learned by both optimizers, some expired."""
    table, rng = EmbeddingTable(CONFIG, capacity=1, seed=5), np.random.default_rng(seed)
    for step in range(6):
        table.tick()
        ids = (rng.integers(1, 3_000, (1_500, CONFIG.width)) | (NUMBERS << 48)).astype(np.int64)
        unique, inverse, _ = table.dedup(ids)
        assert unique.size > 4_000
        rows = admit(table, ids, 4_000 * step)
        grad_first = rng.normal(size=len(ids)).astype(np.float32)
        grad_v = rng.normal(size=(len(ids), 4, WIDTH - 1)).astype(np.float32)
        table.update(rows, table.scatter([(grad_first, grad_v, inverse)], rows))
        table.expire(4_000 * step, 2_000)
    return table


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    cuts: dict[str, set[int]] = {}
    for module in (pooled_rows, row_copies, table_module):

        def counted(function, parts, name=module.__name__):
            cuts.setdefault(name, set()).add(len(parts))
            return run(function, parts)

        monkeypatch.setattr(module, "run", counted)
    contents, states = [], []
    for count in (1, 2, 3):
        use_threads(count)
        table = history()
        contents.append(everything(table))
        states.append(table.state())
    assert contents[1:] == contents[:1] * 2
    for state in states[1:]:
        assert all(np.array_equal(state[name], states[0][name]) for name in states[0])
    assert len(cuts) == 3 and all({1, 2, 3} <= found for found in cuts.values()), cuts


def test_a_forked_child_has_threads_of_its_own():
    use_threads(2)
    expected = everything(history())
    child = os.fork()
    if child == 0:
        os._exit(0 if everything(history()) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_forked_while_another_thread_is_in_the_table_can_use_it():
    table, ids, ended = EmbeddingTable(CONFIG, capacity=1), (np.arange(1, 2_001)[:, None] | (NUMBERS << 48)), threading.Event()
    admit(table, ids, 0)

    def work() -> None:
        while not ended.is_set():
            admit(table, ids, 0)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if len(table.find(ids[0])) == CONFIG.width else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        ended.set()
        worker.join()


def test_python_threads_may_sum_gradients_of_one_table_at_once():
    table = EmbeddingTable(CONFIG, capacity=1)
    ids = (np.arange(1, 3_001)[:, None] | (NUMBERS << 48)).astype(np.int64)
    rows, inverse = admit(table, ids, 0), table.dedup(ids)[1]
    grad_first, grad_v = np.ones(len(ids), np.float32), np.ones((len(ids), 4, WIDTH - 1), np.float32)
    expected = table.scatter([(grad_first, grad_v, inverse)], rows).copy()
    assert expected[1:].all()
    wrong: list[int] = []

    def work(value: int) -> None:
        part = (value * grad_first, value * grad_v, inverse)
        wrong.extend(int((table.scatter([part], rows) != value * expected).sum()) for _ in range(50))

    workers = [threading.Thread(target=work, args=(value,)) for value in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(wrong) == 150 and not any(wrong)


def test_a_run_does_not_wait_for_helpers_that_have_nothing_left_to_do():
    use_threads(2)
    begun, ended, done = threading.Event(), threading.Event(), threading.Event()

    def hold(part: slice) -> None:
        begun.set()
        assert ended.wait(60)

    def short() -> None:
        run(lambda part: None, ranges(2, 1))
        done.set()

    holders = threading.Thread(target=lambda: run(hold, ranges(2, 1)))  # it, and the only helper
    holders.start()
    assert begun.wait(60)
    worker = threading.Thread(target=short)
    worker.start()
    try:
        assert done.wait(60)
    finally:
        ended.set()
        worker.join()
        holders.join()


def test_python_threads_may_use_tables_at_once():
    use_threads(2)
    expected, got = everything(history()), []
    workers = [threading.Thread(target=lambda: got.append(everything(history()))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert got == [expected] * 3


def test_one_table_may_be_read_and_written_at_once():
    table, rng = EmbeddingTable(CONFIG, capacity=1), np.random.default_rng(1)
    table.tick()
    batches = (rng.integers(1, 3_000, (40, 1_000, CONFIG.width)) | (NUMBERS << 48)).astype(np.int64)
    failures: list[BaseException] = []

    def work(part: np.ndarray) -> None:
        try:
            for ids in part:
                admit(table, ids, 0)
                table.find(np.unique(ids))
        except BaseException as error:  # told below: a thread's own would only be printed
            failures.append(error)

    workers = [threading.Thread(target=work, args=(part,)) for part in np.split(batches, 4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    single = EmbeddingTable(CONFIG, capacity=1)
    for ids in batches:
        admit(single, ids, 0)
    assert set(everything(table)) == set(everything(single))


def test_parts_cover_the_work_and_an_error_comes_out():
    use_threads(3)
    assert [(part.start, part.stop) for part in ranges(10, 3)] == [(0, 3), (3, 6), (6, 10)]
    assert [(part.start, part.stop) for part in ranges(0, 3)] == [(0, 0)]
    assert run(lambda part: part.start, ranges(7, 1)) == [0, 2, 4]

    def fail(part: slice) -> None:
        raise RuntimeError(f"at {part.start}")

    with pytest.raises(RuntimeError, match="at "):
        run(fail, ranges(9, 1))
    with pytest.raises(ValueError, match="0 threads cannot work"):
        use_threads(0)
