"""Each kind of data set from its official layout to a ranking: replay, train, serve, rank."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from e2e_worlds import figures, train_arguments

from pipelines import replay, train
from schemas.config import load_config
from serving import rank
from serving.client import RankClient
from serving.host import ModelServer, ServerOptions

KUAIRAND = Path(os.environ.get("KUAIRAND_DIR", "../shared/data/kuairand_pure"))
RATINGS = 3000


def kuairand(folder):
    """The first impressions of the log, in the official layout."""
    if not KUAIRAND.is_dir():
        pytest.skip(f"needs KuaiRand-Pure in {KUAIRAND}, or KUAIRAND_DIR to name its folder")
    (log,) = KUAIRAND.glob("log_standard_4_25*")
    data = folder / "data"
    data.mkdir()
    shown = pd.read_csv(log, nrows=4000)
    shown.to_csv(data / "log_standard_4_22_to_5_08_pure.csv", index=False)
    for name, key in (("user_features_pure", "user_id"), ("video_features_basic_pure", "video_id")):
        (path,) = KUAIRAND.glob(f"{name}.csv*")
        known = pd.concat(part[part[key].isin(shown[key])] for part in pd.read_csv(path, chunksize=100_000))
        known.to_csv(data / f"{name}.csv", index=False)
    return ["--path", folder], len(shown), shown["user_id"].iloc[-1]


def ratings():
    """Users, movies, stars and times of people who like some movies, in no order, minutes apart."""
    rng = np.random.default_rng(0)
    users, movies = rng.integers(1, 80, RATINGS), rng.integers(1, 120, RATINGS)
    good = rng.normal(0, 1, 121)
    stars = np.clip(np.round(3.4 + good[movies] + rng.normal(0, 0.7, RATINGS)), 1, 5).astype(int)
    times = 978_300_000 + rng.permutation(RATINGS) * 97
    return users, movies, stars, times


def movielens_25m(folder):
    users, movies, stars, times = ratings()
    rows = {"userId": users, "movieId": movies, "rating": stars.astype(float), "timestamp": times}
    pd.DataFrame(rows).to_csv(folder / "ratings.csv", index=False)
    titles = {"movieId": range(1, 121), "title": [f"Film {n}, The ({1950 + n % 50})" for n in range(1, 121)]}
    pd.DataFrame(titles | {"genres": ["Comedy|Drama", "Action", "(no genres listed)"] * 40}).to_csv(
        folder / "movies.csv", index=False
    )
    return ["--path", folder], RATINGS, users[times.argmax()]


def movielens_1m(folder):
    users, movies, stars, times = ratings()
    columns = zip(users, movies, stars, times, strict=True)
    (folder / "ratings.dat").write_text("".join(f"{u}::{m}::{s}::{t}\n" for u, m, s, t in columns))
    (folder / "movies.dat").write_text(
        "".join(f"{m}::L'Été: {m} ({1950 + m % 50})::Drama|War\n" for m in range(1, 121)), encoding="latin-1"
    )
    return ["--path", folder], RATINGS, users[times.argmax()]


def movielens_100k(folder):
    users, movies, stars, times = ratings()
    columns = zip(users, movies, stars, times, strict=True)
    (folder / "u.data").write_text("".join(f"{u}\t{m}\t{s}\t{t}\n" for u, m, s, t in columns))
    flags = "|".join(["0", "1"] + ["0"] * 17)
    (folder / "u.item").write_text("".join(f"{m}|Film {m} (1995)|01-Jan-1995||http://x|{flags}\n" for m in range(1, 121)))
    return ["--path", folder], RATINGS, users[times.argmax()]


def simulator(folder):
    return ["--requests", 1500, "--days", 2, "--users", 200], 5 * 1500, None


DATA_SETS = {
    "kuairand": ("kuairand", kuairand),
    "ml-25m": ("movielens", movielens_25m),
    "ml-1m": ("movielens", movielens_1m),
    "ml-100k": ("movielens", movielens_100k),
    "simulator": ("simulator", simulator),
}


@pytest.mark.parametrize("kind", DATA_SETS)
def test_a_data_set_becomes_a_ranking(kind, tmp_path, capsys):
    data_set, make = DATA_SETS[kind]
    data, logs, models = tmp_path / "data", tmp_path / "logs", tmp_path / "models"
    data.mkdir()
    options, impressions, user = make(data)
    assert replay.main(["--dataset", data_set, *map(str, options), "--out", str(logs)]) == 0
    assert train.run(train_arguments(logs, tmp_path, "--model_dir", str(models), "--snapshot_interval", "1000")) == 0
    found = figures(tmp_path)
    assert found["dead_letters"] == 0
    # Of a video shown twice in one request, the second mention is a duplicate.
    assert found["examples"] + found["duplicates"] == pytest.approx(impressions, rel=0.01)
    assert 0 < found["positives"] < found["examples"]
    assert found["auc_last_window"] > 0.5
    config = load_config(logs / "feature_config.toml")
    with ModelServer(ServerOptions(models, port=0)) as server:
        address = f"127.0.0.1:{server.port}"
        with RankClient(address, timeout_s=20) as client:
            assert client.heads() == tuple(head.name for head in config.heads)
            if user is None:
                user = next(name for name in map(str, range(200)) if client.catalogue(name).known)
        capsys.readouterr()
        for name, known in ((str(user), True), ("a stranger", False)):
            assert rank.main(["--server", address, "--user", name, "--k", "10", "--json", "--timeout_s", "20"]) == 0
            answer = json.loads(capsys.readouterr().out)
            assert (answer["user"], answer["known"], answer["head"]) == (name, known, config.heads[0].name)
            scores = [item["score"] for item in answer["items"]]
            assert len({item["item_id"] for item in answer["items"]}) == 10
            assert scores == sorted(scores, reverse=True)
            assert all(0 < score < 1 for score in scores)
            assert scores[0] > scores[-1]
        assert rank.main(["--server", address, "--user", str(user), "--k", "3", "--timeout_s", "20"]) == 0
        table = capsys.readouterr().out
        assert f"Next for {user}" in table
        assert "not seen before" not in table
