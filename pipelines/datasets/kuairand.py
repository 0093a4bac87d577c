"""KuaiRand-Pure (Gao et al., CIKM 2022, doi 10.1145/3511808.3557624): the standard log, as requests.

The folder is the official one: log_standard_*_pure.csv, user_features_pure.csv and
video_features_basic_pure.csv, as they are or gzipped, in the folder itself or in its `data/`. The published
`statistic` features are not read: their counts cover the whole period, so they leak the future.
"""

import logging
from collections.abc import Iterator
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
from pipelines.datasets.tables import check_folder, integers, need_table, read_table, texts
from schemas.process import UserError

logger = logging.getLogger(__name__)

NAME = "KuaiRand-Pure"
_USER_FILE, _VIDEO_FILE = "user_features_pure.csv", "video_features_basic_pure.csv"
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_BEIJING_MS = 8 * _HOUR_MS  # dates in the files are local ones
# A click is taken to be known this long after the impression; so is an action of a play shorter than that.
_MOMENT_MS = 1_000
_FLAGS = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward")
_ACTIONS = np.array(["click", "long_view", "like", "follow", "comment", "forward"], dtype=object)
_IMPRESSION = ["time_ms", "user_id", "tab", "video_id"]
_LOG = dict.fromkeys(("user_id", "video_id", "time_ms", "tab", "play_time_ms", *_FLAGS), "int64")
_RANGES = ("follow_user_num_range", "fans_user_num_range", "friend_user_num_range", "register_days_range")
_USER = (
    {"user_id": "int64"}
    | dict.fromkeys(("user_active_degree", *_RANGES), "object")
    | dict.fromkeys(("is_lowactive_period", "is_live_streamer", "is_video_author"), "Int64")
    | {f"onehot_feat{i}": "Int64" for i in range(18)}
)
_VIDEO = (
    {"video_id": "int64"}
    | dict.fromkeys(("author_id", "music_id", "music_type", "video_duration"), "Int64")
    | dict.fromkeys(("video_type", "upload_type", "upload_dt", "tag"), "object")
)


def read_kuairand(path: Path, rows: int | None = None) -> Stream:
    """The log in time order, its first `rows` impressions if given, in batches.

    Rows of one user, time and tab are one request. An action's time is when it could first be known: a click
    a moment after the impression, everything else when the play ends.

    Raises:
        UserError: the folder, a file or a column is missing, or a file is damaged.
    """
    folder = _folder(path)
    log = _read_log(_log_files(folder)).iloc[:rows]
    users = _Users(need_table(folder, _USER_FILE, NAME), log["user_id"])
    videos = _Videos(need_table(folder, _VIDEO_FILE, NAME), log["video_id"])
    return Stream(len(log), _batches(log, users, videos))


def newest_days(path: Path, days: int, into: Path) -> Path:
    """A folder of the same layout that holds only the last `days` days of the log: `path` itself if it has no more, or
    else `into`, which is made.

    Raises:
        UserError: as of `read_kuairand`.
    """
    folder = _folder(path)
    # The files' own dates, which run up to an hour ahead: good enough to part days, not to tell the time.
    log = pd.concat([read_table(file, _LOG | {"date": "int64"}, NAME) for file in _log_files(folder)], ignore_index=True)
    dates = np.unique(log["date"])
    if dates.size <= days:
        return path
    into.mkdir(parents=True)
    log[log["date"] >= dates[-days]].to_csv(into / "log_standard_newest_pure.csv", index=False)
    for table in (need_table(folder, name, NAME) for name in (_USER_FILE, _VIDEO_FILE)):
        (into / table.name).symlink_to(table.resolve())
    return into


def _folder(path: Path) -> Path:
    check_folder(path, NAME)
    folder = next((f for f in (path, path / "data") if _log_files(f)), None)
    if folder is None:
        raise UserError(
            f"{path}: no log_standard_*_pure.csv(.gz) in it or its data/: give --path the folder that {NAME} unpacks to"
        )
    return folder


def _log_files(folder: Path) -> list[Path]:
    return sorted((*folder.glob("log_standard_*_pure.csv"), *folder.glob("log_standard_*_pure.csv.gz")))


def _read_log(files: list[Path]) -> pd.DataFrame:
    log = pd.concat([read_table(file, _LOG, NAME) for file in files], ignore_index=True)
    log = log.sort_values(["time_ms", "user_id", "tab"], kind="stable", ignore_index=True)
    # One impression is one row. Logged twice, in one file or in two that overlap, it has what either row says was done.
    once = log.groupby(_IMPRESSION, sort=False, as_index=False).max()
    if len(once) < len(log):
        logger.info("put together rows of the same impressions", extra={"rows": len(log) - len(once)})
    return once


class _Users:
    """Features of the users in the log, arrays by `row`; a user without features has all of them missing."""

    def __init__(self, file: Path, user_id: pd.Series) -> None:
        self.row, known = pd.factorize(user_id)
        table = read_table(file, _USER, NAME).drop_duplicates("user_id").set_index("user_id").reindex(known)
        self.columns = {
            name: texts(table[name]) if _USER[name] == "object" else integers(table[name]) for name in table.columns
        }
        self.columns["user_id"] = np.asarray(known, dtype=np.int64)


class _Videos:
    """Features of the videos in the log, arrays by `row`; upload_day: days since 1970, NaN if unknown."""

    def __init__(self, file: Path, video_id: pd.Series) -> None:
        self.row, known = pd.factorize(video_id)
        table = read_table(file, _VIDEO, NAME).drop_duplicates("video_id").set_index("video_id").reindex(known)
        self.columns = {name: integers(table[name]) for name in ("author_id", "music_id", "music_type")}
        self.columns |= {name: texts(table[name]) for name in ("video_type", "upload_type")}
        self.columns["video_id"] = np.asarray(known, dtype=np.int64)
        self.columns["duration_ms"] = integers(table["video_duration"])
        tags = (_tags(file, text) for text in texts(table["tag"]))
        self.columns["tag"] = object_array(tags, len(table))
        uploaded = pd.to_datetime(table["upload_dt"], format="%Y-%m-%d", errors="coerce")
        self.upload_day = ((uploaded - pd.Timestamp(0)) / pd.Timedelta(days=1)).to_numpy(dtype=np.float64)


def _tags(file: Path, text: str | None) -> list[int]:
    try:
        return [int(tag) for tag in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"{file}: tag {text!r} is not a list of numbers: download it again") from None


def _batches(log: pd.DataFrame, users: _Users, videos: _Videos) -> Iterator[Events]:
    time_ms, user_id, tab = (log[name].to_numpy() for name in ("time_ms", "user_id", "tab"))
    played_ms = np.maximum(log["play_time_ms"].to_numpy(), _MOMENT_MS)
    flags = log[list(_FLAGS)].to_numpy() == 1
    for first, rows, offsets in request_spans(request_starts(time_ms, user_id, tab), len(log)):
        user, video, start_ms = users.row[first], videos.row[rows], time_ms[first]
        requests = RequestBatch(
            request_id=object_array(
                (f"{u}-{t}-{tab}" for u, t, tab in zip(user_id[first], start_ms, tab[first], strict=True)),
                len(first),
            ),
            user_id=strings(user_id[first]),
            time_ms=start_ms,
            user_columns={name: column[user] for name, column in users.columns.items()}
            | {"tab": tab[first], "hour": (start_ms + _BEIJING_MS) // _HOUR_MS % 24},
            item_offsets=offsets,
            item_id=strings(videos.columns["video_id"][video]),
            item_columns={name: column[video] for name, column in videos.columns.items()}
            | {"age_days": _age_days(time_ms[rows], videos.upload_day[video])},
        )
        yield Events(requests, _actions(requests, flags[rows], played_ms[rows]))


def _age_days(time_ms: np.ndarray, upload_day: np.ndarray) -> np.ndarray:
    """Whole local days since the day of upload, which is all the files tell."""
    age = (time_ms + _BEIJING_MS) // _DAY_MS - upload_day
    return integers(pd.Series(age).astype("Int64"))


def _actions(requests: RequestBatch, flags: np.ndarray, played_ms: np.ndarray) -> ActionBatch:
    item, action = np.nonzero(flags)
    request = np.repeat(np.arange(len(requests)), np.diff(requests.item_offsets))[item]
    delay_ms = np.where(_ACTIONS[action] == "click", _MOMENT_MS, played_ms[item])
    return ActionBatch(
        request_id=requests.request_id[request],
        user_id=requests.user_id[request],
        item_id=requests.item_id[item],
        action=_ACTIONS[action],
        time_ms=requests.time_ms[request] + delay_ms,
    )
