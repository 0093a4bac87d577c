"""New, broken, repaired and withdrawn versions, while requests run."""

import os
import shutil
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from serving_checks import refused
from serving_models import WIDTH, expected_scores, publish
from tensorflow_serving.apis import get_model_status_pb2

from serving.errors import RequestError
from serving.folders import fingerprint
from serving.metrics import Metrics
from serving.session import LoadedModel
from serving.versions import ENDED_VERSIONS_KEPT, VersionManager, VersionState

DEADLINE_S = 30
IDS = np.arange(3 * WIDTH).reshape(3, WIDTH)


@pytest.fixture
def manager(model_dir):
    manager = VersionManager(model_dir, "freshet", poll_s=0.05, metrics=Metrics())
    yield manager
    manager.close()


def states(manager: VersionManager) -> dict[int, VersionState]:
    return {status.version: status.state for status in manager.statuses()}


def test_requests_never_fail_while_versions_change(written, model_dir, serve, connect):
    server = serve(model_dir)
    stop = threading.Event()
    answered: list[list[int]] = [[] for _ in range(4)]
    failures: list[BaseException] = []
    stubs = connect(server.port)

    def keep_asking(versions: list[int]) -> None:
        try:
            while not stop.is_set():
                response = stubs.predict("predict", ids=IDS)
                version = response.model_spec.version.value
                step = tf.make_ndarray(response.outputs["version"]).item()
                assert step == 1 + version % 2 if version > 1 else step == 1
                np.testing.assert_allclose(tf.make_ndarray(response.outputs["scores"]), expected_scores(IDS, step), rtol=1e-5)
                versions.append(version)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=keep_asking, args=(versions,)) for versions in answered]
    for thread in threads:
        thread.start()
    try:
        for version in range(2, 6):
            publish(written[1 + version % 2], model_dir, version)
            assert server.versions.await_status(version, VersionState.AVAILABLE, DEADLINE_S)
            assert server.versions.await_status(version - 1, VersionState.END, DEADLINE_S)
            assert stubs.predict("predict", ids=IDS).model_spec.version.value == version
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    for versions in answered:
        assert versions == sorted(versions)  # never back in time
        assert len(set(versions)) > 1


def test_the_old_version_stays_until_its_requests_end(written, model_dir, manager):
    manager.poll()
    with manager.acquire() as old:
        publish(written[2], model_dir, 2)
        manager.poll()
        assert states(manager) == {1: VersionState.UNLOADING, 2: VersionState.AVAILABLE}
        with manager.acquire() as new:
            assert new.version == 2
        signature = old.signature("predict")
        np.testing.assert_allclose(old.run(signature, [IDS], ("scores",))[0], expected_scores(IDS, 1), rtol=1e-5)
        with pytest.raises(RequestError):  # for those already there only
            manager.acquire(1).__enter__()
    manager.poll()
    assert states(manager) == {1: VersionState.END, 2: VersionState.AVAILABLE}


def truncate_graph(path):
    graph = path / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])


def remove_variables(path):
    shutil.rmtree(path / "variables")


def truncate_variables(path):
    (data,) = (path / "variables").glob("*.data-*")
    data.write_bytes(data.read_bytes()[:10])


def remove_graph(path):
    (path / "saved_model.pb").unlink()


@pytest.mark.parametrize("damage", [truncate_graph, remove_variables, truncate_variables, remove_graph])
def test_a_broken_version_keeps_the_old_one(written, model_dir, serve, connect, tmp_path, damage):
    server = serve(model_dir)
    damaged = tmp_path / "damaged"
    shutil.copytree(written[2], damaged)
    damage(damaged)
    path = publish(damaged, model_dir, 2)
    assert server.versions.await_status(2, VersionState.END, DEADLINE_S)

    stubs = connect(server.port)
    assert stubs.predict("predict", ids=IDS).model_spec.version.value == 1
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "freshet"
    request.model_spec.version.value = 2
    (status,) = stubs.models.GetModelStatus(request).model_version_status
    assert status.state == get_model_status_pb2.ModelVersionStatus.END
    assert status.status.error_code != 0
    assert str(path) in status.status.error_message
    assert "\n" not in status.status.error_message

    shutil.rmtree(path)  # repaired: the folder changes, and is tried again
    publish(written[2], model_dir, 2)
    assert server.versions.await_status(2, VersionState.AVAILABLE, DEADLINE_S)
    assert stubs.predict("predict", ids=IDS).model_spec.version.value == 2


def test_a_broken_version_is_tried_again_at_once_when_it_changes(model_dir, manager, caplog):
    broken = model_dir / "2"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"not a graph")
    for _ in range(3):
        manager.poll()
    failures = [record for record in caplog.records if record.getMessage() == "version does not load"]
    assert [record.version for record in failures] == [2]
    (broken / "saved_model.pb").write_bytes(b"still not a graph")
    manager.poll()
    failures = [record for record in caplog.records if record.getMessage() == "version does not load"]
    assert len(failures) == 2
    assert failures[1].still_serving == 1


def test_a_failure_that_passes_without_a_trace_is_tried_again(written, model_dir, serve, connect, caplog):
    """As of a disk that did not answer: the folder looks the same when it loads as when it did not."""
    server = serve(model_dir)
    good = written[2] / "saved_model.pb"
    shutil.copytree(written[2], model_dir / ".2")
    graph = model_dir / ".2" / "saved_model.pb"
    replace_unseen(graph, bytes(graph.stat().st_size))
    (model_dir / ".2").rename(model_dir / "2")
    assert server.versions.await_status(2, VersionState.END, DEADLINE_S)
    replace_unseen(model_dir / "2" / "saved_model.pb", good.read_bytes())
    assert server.versions.await_status(2, VersionState.AVAILABLE, DEADLINE_S)
    assert connect(server.port).predict("predict", ids=IDS).model_spec.version.value == 2
    failures = [record for record in caplog.records if record.getMessage() == "version does not load"]
    assert len(failures) == 1


def replace_unseen(path, content):
    """Write a file whose name, size and time stay as they were."""
    before = fingerprint(path.parent)
    stat = path.stat()
    aside = path.parent.parent / ".aside"
    aside.write_bytes(content)
    os.utime(aside, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    aside.replace(path)
    assert fingerprint(path.parent) == before


def test_tries_come_ever_more_seldom(model_dir, manager, monkeypatch):
    (model_dir / "2").mkdir()
    now, tries = 0.0, []
    monkeypatch.setattr("serving.versions.time.monotonic", lambda: now)
    load = LoadedModel.load
    monkeypatch.setattr(LoadedModel, "load", lambda path, version: tries.append((now, version)) or load(path, version))
    while now < 200:
        manager.poll()
        now += 0.5
    assert [at for at, version in tries if version == 2] == [0, 1, 3, 7, 15, 31, 63, 123, 183]


def test_the_newest_that_loads_is_served_at_start(written, model_dir, manager):
    publish(written[2], model_dir, 5)
    truncate_graph(publish(written[2], model_dir, 9))
    (model_dir / "latest").mkdir()
    (model_dir / ".11.tmp").mkdir()
    (model_dir / "12").write_text("a file")
    manager.poll()
    assert states(manager) == {9: VersionState.END, 5: VersionState.AVAILABLE}


def test_versions_are_ordered_as_numbers(written, model_dir, manager):
    publish(written[1], model_dir, 9)
    publish(written[2], model_dir, 10)
    manager.poll()
    assert states(manager) == {10: VersionState.AVAILABLE}


def test_removing_the_newest_version_goes_back(written, model_dir, manager):
    newest = publish(written[2], model_dir, 2)
    manager.poll()
    assert states(manager)[2] is VersionState.AVAILABLE
    shutil.rmtree(newest)
    manager.poll()
    assert states(manager) == {1: VersionState.AVAILABLE, 2: VersionState.END}


def test_an_emptied_or_missing_directory_keeps_the_loaded_version(model_dir, manager, caplog):
    manager.poll()
    shutil.rmtree(model_dir / "1")
    manager.poll()
    shutil.rmtree(model_dir)
    for _ in range(3):
        manager.poll()
    with manager.acquire() as model:
        assert model.version == 1
    warnings = [r for r in caplog.records if r.getMessage() == "cannot read the model directory"]
    assert len(warnings) == 1


def test_status_forgets_versions_long_gone(model_dir, manager):
    for version in range(2, 2 * ENDED_VERSIONS_KEPT):
        (model_dir / str(version)).mkdir()
    manager.poll()
    ended = [version for version, state in states(manager).items() if state is VersionState.END]
    assert len(ended) == ENDED_VERSIONS_KEPT
    assert states(manager)[1] is VersionState.AVAILABLE


def test_waiting_for_a_first_version(written, tmp_path, serve, connect):
    empty = tmp_path / "later"
    server = serve(empty, wait=True)
    stubs = connect(server.port)
    with refused(grpc.StatusCode.NOT_FOUND) as details:
        stubs.predict("predict", ids=IDS)
    assert details() == "Servable not found for request: Latest(freshet)"
    empty.mkdir()
    publish(written[2], empty, 3)
    assert server.versions.await_status(3, VersionState.AVAILABLE, DEADLINE_S)
    assert stubs.predict("predict", ids=IDS).model_spec.version.value == 3
