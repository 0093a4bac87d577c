"""MovieLens in each of its official layouts gives the same requests and clicks."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.datasets import Events, read_movielens
from schemas.process import UserError

GENRES = 19
RATINGS = [(1, 10, 5, 978_300_760), (1, 20, 3, 978_300_760), (2, 30, 4, 978_300_000), (2, 30, 4, 978_300_000)]
MOVIES = [
    (10, "Star Wars: Episode IV - A New Hope (1977)", ["Action", "Sci-Fi"]),
    (20, "Misérables, Les (1995)", ["Drama"]),
]


def write_csv(folder: Path) -> None:
    rows = [f"{u},{m},{r}.0,{t}" for u, m, r, t in RATINGS]
    text = "\n".join(["userId,movieId,rating,timestamp", *rows])
    (folder / "ratings.csv.gz").write_bytes(gzip.compress(text.encode()))
    movies = [f'{m},"{title}",{"|".join(genres)}' for m, title, genres in MOVIES]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]), encoding="utf-8")


def write_dat(folder: Path) -> None:
    (folder / "ratings.dat").write_text("".join(f"{u}::{m}::{r}::{t}\n" for u, m, r, t in RATINGS))
    movies = "".join(f"{m}::{title}::{'|'.join(genres)}\n" for m, title, genres in MOVIES)
    (folder / "movies.dat").write_text(movies, encoding="latin-1")


def write_100k(folder: Path) -> None:
    (folder / "u.data").write_text("".join(f"{u}\t{m}\t{r}\t{t}\n" for u, m, r, t in RATINGS))
    positions = {"Action": 1, "Drama": 8, "Sci-Fi": 15}
    lines = []
    for movie, title, genres in MOVIES:
        on = {positions[genre] for genre in genres}
        flags = "|".join(str(int(i in on)) for i in range(GENRES))
        lines.append(f"{movie}|{title}|01-Jan-1995||http://us.imdb.com/M|{flags}\n")
    (folder / "u.item").write_text("".join(lines), encoding="latin-1")


def only_batch(path: Path, rows: int | None = None) -> Events:
    (events,) = read_movielens(path, rows).events
    return events


@pytest.mark.parametrize("write", [write_csv, write_dat, write_100k])
def test_layouts(tmp_path: Path, write: Callable[[Path], None]):
    write(tmp_path)
    requests, actions, truth = only_batch(tmp_path)
    assert requests.request_id.tolist() == ["2-978300000000", "1-978300760000"]
    assert requests.user_id.tolist() == ["2", "1"]
    assert requests.item_offsets.tolist() == [0, 1, 3]
    assert requests.item_id.tolist() == ["30", "10", "20"]
    assert requests.user_columns["user_id"].tolist() == [2, 1]
    assert requests.user_columns["hour"].tolist() == [22, 22]
    columns = requests.item_columns
    assert columns["movie_id"].tolist() == [30, 10, 20]
    assert columns["title"].tolist() == [None, "Star Wars: Episode IV - A New Hope", "Misérables, Les"]
    assert columns["year"].tolist() == [None, 1977, 1995]
    assert columns["genres"].tolist() == [[], ["Action", "Sci-Fi"], ["Drama"]]
    clicks = list(zip(actions.request_id, actions.item_id, actions.action, actions.time_ms.tolist(), strict=True))
    assert clicks == [
        ("2-978300000000", "30", "click", 978_300_001_000),
        ("1-978300760000", "10", "click", 978_300_761_000),
    ]
    assert truth is None


def test_half_stars_titles_without_year_and_no_genres(tmp_path: Path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,3.5,100\n1,2,3.0,200\n1,3,0.5,300\n")
    (tmp_path / "movies.csv").write_text(
        "movieId,title,genres\n1,Babylon 5,(no genres listed)\n2,Fawlty Towers (1975-1979),Comedy\n"
        '3,"Apu (Part 2) (1956) ",Drama\n'
    )
    requests, actions, _ = only_batch(tmp_path)
    assert actions.item_id.tolist() == ["1"]
    assert requests.item_columns["title"].tolist() == ["Babylon 5", "Fawlty Towers", "Apu (Part 2)"]
    assert requests.item_columns["year"].tolist() == [None, 1975, 1956]
    assert requests.item_columns["genres"].tolist() == [[], ["Comedy"], ["Drama"]]


def test_rows(tmp_path: Path):
    write_csv(tmp_path)
    assert only_batch(tmp_path, rows=2).requests.item_id.tolist() == ["30", "10"]
    assert read_movielens(tmp_path, rows=2).impressions == 2


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"none of ratings.csv, ratings.dat, u.data in it: give --path"):
        read_movielens(tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,1,5\n")
    with pytest.raises(UserError, match=r"movies.csv .* is missing"):
        read_movielens(tmp_path)
    write_csv(tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,1,5\n")
    with pytest.raises(UserError, match="column timestamp is missing"):
        read_movielens(tmp_path)
    (tmp_path / "ratings.csv").unlink()
    (tmp_path / "ratings.csv.gz").unlink()
    write_dat(tmp_path)
    (tmp_path / "ratings.dat").write_text("1::x::5::100\n")
    with pytest.raises(UserError, match=r"ratings.dat: cannot be read"):
        read_movielens(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_movielens(tmp_path / "nowhere")
