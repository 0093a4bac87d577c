"""RankClient against a real server."""

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from serving_models import (
    HEADS,
    ITEM_WIDTH,
    ITEMS,
    USER_WIDTH,
    WIDTH,
    expected_scores,
    item_ids,
    item_name,
    publish,
    user_ids,
)
from tensorflow_serving.apis import model_service_pb2_grpc

from schemas.process import UserError
from serving.client import RankClient
from serving.errors import ServingError
from serving.rank import ask


@pytest.fixture
def client(model_dir, serve):
    with RankClient(f"127.0.0.1:{serve(model_dir).port}", timeout_s=20) as client:
        yield client


def free_port(serve, model_dir) -> int:
    """A port nobody listens on: one that a server has just given back."""
    server = serve(model_dir)
    server.stop()
    return server.port


def test_heads_catalogue_rank_and_predict(client):
    assert client.wait_until_ready() == 1
    assert client.heads() == HEADS
    candidates = client.catalogue("u3")
    assert candidates.known
    assert candidates.user_ids.tolist() == user_ids(3).tolist()
    assert candidates.item_ids == tuple(item_name(n) for n in range(ITEMS))
    np.testing.assert_array_equal(candidates.ids, np.stack([item_ids(n) for n in range(ITEMS)]))

    ranking = client.rank(candidates.user_ids, candidates.ids, k=7, head=1)
    rows = np.concatenate([np.tile(candidates.user_ids, (ITEMS, 1)), candidates.ids], axis=1)
    scores = expected_scores(rows, step=1)[:, 1]
    best = np.argsort(-scores, kind="stable")[:7]
    assert ranking.index.tolist() == best.tolist()
    np.testing.assert_allclose(ranking.scores, scores[best], rtol=1e-5)
    assert ranking.version == 1
    assert ranking.shard_versions.tolist() == [1]

    prediction = client.predict(rows)
    np.testing.assert_allclose(prediction.scores, expected_scores(rows, step=1), rtol=1e-5)
    assert prediction.version == 1


def test_more_than_there_are_gives_all(client):
    assert len(client.rank(user_ids(1), item_ids(1)[np.newaxis], k=10).index) == 1
    assert len(client.rank(user_ids(1), np.zeros((0, ITEM_WIDTH), np.int64), k=10).index) == 0


def test_an_unknown_user_is_ranked_for(client):
    answer = ask(client, "nobody", k=3)
    assert not answer.known
    assert len(answer.items) == 3
    assert answer.head == "click"


def test_heads_by_name_and_position(client):
    by_name = ask(client, "u1", k=5, head="long_view")
    by_position = ask(client, "u1", k=5, head="1")
    assert by_name.head == by_position.head == "long_view"
    assert by_name.items == by_position.items
    assert by_name.items != ask(client, "u1", k=5).items
    for head in ("finish", "2", "-1"):
        with pytest.raises(UserError, match=f"--head {head} is unknown: this model has click, long_view"):
            ask(client, "u1", k=5, head=head)


def test_errors_name_server_reason_and_remedy(client, model_dir, serve):
    with pytest.raises(ServingError, match="must be int64") as caught:
        client.predict(np.zeros((1, WIDTH + 1), np.int64))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(caught.value).startswith(client.server)

    with RankClient(client.server, model_name="other") as stranger, pytest.raises(ServingError) as caught:
        stranger.catalogue("u1")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert "--model_name" in str(caught.value)

    gone = free_port(serve, model_dir)
    with RankClient(f"127.0.0.1:{gone}", timeout_s=2) as nobody, pytest.raises(ServingError) as caught:
        nobody.rank(np.zeros(USER_WIDTH), np.zeros((1, ITEM_WIDTH)), k=1)
    assert f"127.0.0.1:{gone}" in str(caught.value)
    assert "\n" not in str(caught.value)


class FlakyNetwork:
    """A TCP forwarder to `port` that drops the first `drops` connections it accepts."""

    def __init__(self, port: int, drops: int) -> None:
        self._target = port
        self._drops = drops
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.accepted = 0
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.accepted += 1
            if self.accepted <= self._drops:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._ends += [near, far]
            threading.Thread(target=self._pump, args=(near, far), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either end may go at any time
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()
        for end in self._ends:
            end.close()


def test_a_call_outlives_dropped_connections(model_dir, serve):
    with contextlib.closing(FlakyNetwork(serve(model_dir).port, drops=2)) as network:
        with RankClient(f"127.0.0.1:{network.port}", timeout_s=20) as client:
            assert client.predict(np.zeros((1, WIDTH))).version == 1
        assert network.accepted > 2


def test_a_call_outlives_a_server_that_restarts(model_dir, serve):
    first = serve(model_dir)
    with RankClient(f"127.0.0.1:{first.port}", timeout_s=20) as client:
        assert client.predict(np.zeros((1, WIDTH))).version == 1
        first.stop()
        restarted = threading.Thread(target=serve, args=(model_dir,), kwargs={"port": first.port})
        restarted.start()
        client.wait_until_ready()
        assert client.predict(np.zeros((1, WIDTH))).version == 1
        restarted.join()


def test_waits_for_a_server_and_then_for_its_model(written, model_dir, tmp_path, serve):
    port = free_port(serve, model_dir)
    with RankClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(ServingError):
            client.wait_until_ready(timeout_s=0.2)
        later = tmp_path / "later"
        later.mkdir()
        ready: list[int] = []
        waiting = threading.Thread(target=lambda: ready.append(client.wait_until_ready()))
        waiting.start()
        serve(later, wait=True, port=port)
        publish(written[2], later, 8)
        waiting.join()
        assert ready == [8]


class StartingUp(model_service_pb2_grpc.ModelServiceServicer):
    """What stands before a server and answers UNAVAILABLE so many times, as a proxy does until the server is up."""

    def __init__(self, port: int, refusals: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._behind = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self.refusals = refusals
        self._grpc = grpc.server(ThreadPoolExecutor(1))
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, self._grpc)
        self.port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()

    def GetModelStatus(self, request, context):  # noqa: N802, gRPC's name
        self.refusals -= 1
        if self.refusals >= 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "no healthy upstream")
        return self._behind.GetModelStatus(request)

    def close(self) -> None:
        self._grpc.stop(0).wait()
        self._channel.close()


def test_waiting_goes_on_while_the_server_is_unavailable(model_dir, serve):
    with contextlib.closing(StartingUp(serve(model_dir).port, refusals=12)) as proxy:  # more than gRPC itself retries
        with RankClient(f"127.0.0.1:{proxy.port}") as client:
            assert client.wait_until_ready() == 1
        assert proxy.refusals < 0


def test_waiting_ends_at_the_deadline(model_dir, serve):
    with (
        contextlib.closing(StartingUp(serve(model_dir).port, refusals=10**6)) as proxy,
        RankClient(f"127.0.0.1:{proxy.port}") as client,
        pytest.raises(ServingError, match="no healthy upstream|DEADLINE_EXCEEDED"),
    ):
        client.wait_until_ready(timeout_s=0.5)
