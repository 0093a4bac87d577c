"""A version as model/export writes it, behind the server: what a client of Freshet meets."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import Entries
from model.dense import DenseLayout
from model.export import ExportState, write_version
from model.feature_ids import pack_ids
from schemas.config import FeatureConfig, Slot, load_config
from serving.client import RankClient
from serving.versions import VersionState

CONFIG = load_config(Path(__file__).parents[2] / "schemas" / "simulator.toml")
VALUES = 50  # of each slot


def random_ids(slots: tuple[Slot, ...], rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    columns = [pack_ids(slot.slot, rng.integers(1, VALUES, rows)) for slot in slots for _ in range(slot.max_length)]
    return np.stack(columns, axis=1)


def entries(prefix: str, slots: tuple[Slot, ...], count: int) -> Entries:
    names = np.array([f"{prefix}{number}" for number in range(count)], object)
    return Entries(names, random_ids(slots, count, seed=count), np.arange(count))


USERS = entries("user-", CONFIG.user_slots, 5)
ITEMS = entries("vidéo-", CONFIG.item_slots, 30)


def state(config: FeatureConfig, step: int) -> ExportState:
    rng = np.random.default_rng(step)
    keys = np.concatenate([pack_ids(slot.slot, np.arange(1, VALUES)) for slot in config.slot_order])
    dense = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in DenseLayout.of(config).shapes.items()}
    return ExportState(
        keys=keys,
        rows=rng.normal(0, 0.2, (keys.size, 1 + config.model.dim)).astype(np.float32),
        dense=dense,
        versions=np.array([step]),
        epochs=np.zeros(1, np.int64),
        newest_event_ms=0,
        users=USERS,
        items=ITEMS,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    write_version(directory, state(CONFIG, step=70), CONFIG)
    return directory


@pytest.fixture
def server(exported, serve):
    return serve(exported)


@pytest.fixture
def client(server):
    with RankClient(f"127.0.0.1:{server.port}", timeout_s=20) as client:
        yield client


def test_heads_fingerprint_and_catalogue(client):
    assert client.heads() == tuple(head.name for head in CONFIG.heads)
    assert client.fingerprint() == CONFIG.fingerprint
    candidates = client.catalogue("user-3")
    assert candidates.known
    assert candidates.user_ids.tolist() == USERS.ids[3].tolist()
    assert sorted(candidates.item_ids) == sorted(ITEMS.names)
    stranger = client.catalogue("nobody")
    assert not stranger.known
    assert stranger.user_ids.shape == (CONFIG.user_width,)


@pytest.mark.parametrize("user", ["user-3", "nobody"])
@pytest.mark.parametrize("head", range(len(CONFIG.heads)))
def test_rank_agrees_with_predict(client, user, head):
    candidates = client.catalogue(user)
    rows = np.concatenate([np.tile(candidates.user_ids, (len(candidates.ids), 1)), candidates.ids], axis=1)
    scores = client.predict(rows).scores[:, head]
    assert len(np.unique(scores)) > len(rows) // 2
    ranking = client.rank(candidates.user_ids, candidates.ids, k=10, head=head)
    assert ranking.index.tolist() == np.argsort(-scores, kind="stable")[:10].tolist()
    np.testing.assert_allclose(ranking.scores, scores[ranking.index], rtol=1e-5)
    assert ranking.shard_versions.tolist() == [70]


def test_raw_examples(server, connect):
    empty = tf.train.Example().SerializeToString()
    response = connect(server.port).predict(examples=np.array([empty, empty], object))
    scores = tf.make_ndarray(response.outputs["scores"])
    assert scores.shape == (2, len(CONFIG.heads))
    assert np.all((scores > 0) & (scores < 1))


def test_the_next_version_is_picked_up(exported, tmp_path, serve):
    directory = tmp_path / "models"
    shutil.copytree(exported, directory)
    server = serve(directory)
    with RankClient(f"127.0.0.1:{server.port}", timeout_s=20) as client:
        version = client.rank(USERS.ids[0], ITEMS.ids, k=3).version
        written = write_version(directory, state(CONFIG, step=71), CONFIG)
        assert written > version
        assert server.versions.await_status(written, VersionState.AVAILABLE, 30)
        ranking = client.rank(USERS.ids[0], ITEMS.ids, k=3)
    assert (ranking.version, ranking.shard_versions.tolist()) == (written, [71])
