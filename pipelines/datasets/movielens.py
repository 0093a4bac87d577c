"""MovieLens (Harper & Konstan 2015, doi 10.1145/2827872): ratings as requests; 3.5 or more is a click, as in
the Monolith paper (arXiv 2209.07663, section 3.1).

Official layouts: ml-1m and ml-10m (ratings.dat, movies.dat); ml-20m, ml-25m, ml-32m and ml-latest
(ratings.csv, movies.csv); ml-100k (u.data, u.item).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.datasets.requests import (
    ActionBatch,
    Events,
    RequestBatch,
    Stream,
    object_array,
    request_spans,
    request_starts,
    strings,
)
from pipelines.datasets.tables import (
    check_folder,
    find_table,
    integers,
    need_table,
    read_headless,
    read_table,
    texts,
)
from schemas.process import UserError

NAME = "MovieLens"
POSITIVE_RATING = 3.5
_HOUR_MS = 3_600_000
_CLICK_AFTER_MS = 1_000
_RATINGS = {"userId": "int64", "movieId": "int64", "rating": "float64", "timestamp": "int64"}
_MOVIES = {"movieId": "int64", "title": "object", "genres": "object"}
_NO_GENRES = "(no genres listed)"
# fmt: off
_GENRES_100K = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]
# fmt: on


def read_movielens(path: Path, rows: int | None = None) -> Stream:
    """The ratings in time order, the first `rows` of them if given, in batches.

    What one user rated in the same second is one request; a click comes a second after it.

    Raises:
        UserError: the folder is missing or of no known layout, a file or column is missing or damaged.
    """
    check_folder(path, NAME)
    for ratings_name, read in _LAYOUTS.items():
        if (ratings_file := find_table(path, ratings_name)) is not None:
            ratings, movies = read(path, ratings_file)
            break
    else:
        names = ", ".join(_LAYOUTS)
        raise UserError(f"{path}: none of {names} in it: give --path a folder that {NAME} unpacks to (ml-25m, ml-1m …)")
    ratings = ratings.sort_values(["timestamp", "userId"], kind="stable", ignore_index=True)
    ratings = ratings.drop_duplicates(["timestamp", "userId", "movieId"], ignore_index=True).iloc[:rows]
    return Stream(len(ratings), _batches(ratings, _Movies(movies, ratings["movieId"])))


def _read_csv(path: Path, ratings_file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    movies_file = need_table(path, "movies.csv", NAME)
    return read_table(ratings_file, _RATINGS, NAME), read_table(movies_file, _MOVIES, NAME)


def _read_dat(path: Path, ratings_file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    # The fast parser splits at single colons: every second column is empty. Titles hold colons of their own.
    ratings = read_headless(ratings_file, _RATINGS, [0, 2, 4, 6], NAME, sep=":")
    movies_file = need_table(path, "movies.dat", NAME)
    return ratings, read_headless(movies_file, _MOVIES, [0, 1, 2], NAME, sep="::", engine="python", encoding="latin-1")


def _read_100k(path: Path, ratings_file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    ratings = read_headless(ratings_file, _RATINGS, [0, 1, 2, 3], NAME, sep="\t")
    types = {"movieId": "int64", "title": "object"} | dict.fromkeys(_GENRES_100K, "int64")
    positions = [0, 1, *range(5, 5 + len(_GENRES_100K))]
    movies = read_headless(need_table(path, "u.item", NAME), types, positions, NAME, sep="|", encoding="latin-1")
    flags = movies[_GENRES_100K].to_numpy() == 1
    named = ("|".join(name for name, flag in zip(_GENRES_100K, row, strict=True) if flag) for row in flags)
    movies["genres"] = object_array(named, len(movies))
    return ratings, movies


_LAYOUTS: dict[str, Callable[[Path, Path], tuple[pd.DataFrame, pd.DataFrame]]] = {
    "ratings.csv": _read_csv,
    "ratings.dat": _read_dat,
    "u.data": _read_100k,
}


class _Movies:
    """Features of the rated movies, as arrays by `row`; a movie without a record has only its id."""

    def __init__(self, movies: pd.DataFrame, movie_id: pd.Series) -> None:
        self.row, known = pd.factorize(movie_id)
        table = movies.drop_duplicates("movieId").set_index("movieId").reindex(known)
        # "Matrix, The (1999)", "Babylon 5", "Fawlty Towers (1975-1979)"
        parts = table["title"].astype("str").str.extract(r"^(?P<title>.*?)\s*(?:\((?P<year>\d{4})[^()]*\))?\s*$")
        genres = ([] if text is None or text == _NO_GENRES else text.split("|") for text in texts(table["genres"]))
        self.columns = {
            "movie_id": np.asarray(known, dtype=np.int64),
            "title": texts(parts["title"].where(table["title"].notna())),
            "year": integers(pd.to_numeric(parts["year"]).astype("Int64")),
            "genres": object_array(genres, len(table)),
        }


def _batches(ratings: pd.DataFrame, movies: _Movies) -> Iterator[Events]:
    user_id, rating = ratings["userId"].to_numpy(), ratings["rating"].to_numpy()
    time_ms = ratings["timestamp"].to_numpy() * 1_000
    for first, rows, offsets in request_spans(request_starts(time_ms, user_id), len(ratings)):
        columns = {name: column[movies.row[rows]] for name, column in movies.columns.items()}
        start_ms = time_ms[first]
        names = (f"{user}-{time}" for user, time in zip(user_id[first], start_ms, strict=True))
        requests = RequestBatch(
            request_id=object_array(names, len(first)),
            user_id=strings(user_id[first]),
            time_ms=start_ms,
            user_columns={"user_id": user_id[first], "hour": start_ms // _HOUR_MS % 24},
            item_offsets=offsets,
            item_id=strings(columns["movie_id"]),
            item_columns=columns,
        )
        item = np.flatnonzero(rating[rows] >= POSITIVE_RATING)
        request = np.repeat(np.arange(len(first)), np.diff(offsets))[item]
        clicks = ActionBatch(
            request_id=requests.request_id[request],
            user_id=requests.user_id[request],
            item_id=requests.item_id[item],
            action=np.full(len(item), "click", dtype=object),
            time_ms=start_ms[request] + _CLICK_AFTER_MS,
        )
        yield Events(requests, clicks)
