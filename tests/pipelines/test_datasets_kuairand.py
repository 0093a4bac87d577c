"""KuaiRand-Pure in its official layout: a few rows written here, and the real folder where there is one."""

import gzip
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets import Events, read_kuairand
from pipelines.datasets.kuairand import newest_days
from schemas.process import UserError

REAL = Path(os.environ.get("KUAIRAND_DIR", "../shared/data/kuairand_pure"))
LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
# 2022-04-24T15:05:41Z is 23:05 in Beijing.
EARLY, LATE = 1_650_812_741_436, 1_650_899_141_436
FIRST_LOG = [
    f"7,5,20220425,2300,{LATE},0,1,0,0,0,0,0,400,11933,0,0,0,0,1",
    f"7,4,20220425,2300,{EARLY},0,0,0,0,0,0,0,400,49866,0,0,0,0,1",
    f"7,4,20220425,2400,{EARLY},1,0,0,0,0,0,1,61802,49866,0,0,0,0,1",  # the same impression, logged twice
    f"7,5,20220425,2300,{EARLY},0,0,0,0,0,0,0,900,11933,0,0,0,0,1",
]
SECOND_LOG = [f"8,9,20220425,2300,{EARLY + 1},0,0,0,0,0,0,0,0,0,0,0,0,0,2"]
USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
)
USERS = ['7,full_active,0,-124,1,9,"(0,10]",150,"[100,1k)",34,"[30,60)",799,730+,' + "1,2,3,4,1.0" + ",0" * 7 + "," * 6]
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)
VIDEOS = [
    '4,41,NORMAL,2022-04-20,LongImport,0.0,49866.0,720.0,1280.0,9155697141,9.0,"20,43"',
    "5,51,NORMAL,,Kmovie,0.0,,720.0,1280.0,6355810746,,",
]


def write(path: Path, header: str, rows: list[str]) -> None:
    text = "\n".join([header, *rows]) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    write(data / "log_standard_4_08_to_4_21_pure.csv", LOG_HEADER, SECOND_LOG)
    write(data / "log_standard_4_22_to_5_08_pure.csv.gz", LOG_HEADER, FIRST_LOG)
    write(data / "log_random_4_22_to_5_08_pure.csv", LOG_HEADER, FIRST_LOG)
    write(data / "user_features_pure.csv", USER_HEADER, USERS)
    write(data / "video_features_basic_pure.csv.gz", VIDEO_HEADER, VIDEOS)
    return tmp_path / "KuaiRand-Pure"


def only_batch(path: Path, rows: int | None = None) -> Events:
    (events,) = read_kuairand(path, rows).events
    return events


def test_logs_are_joined_sorted_and_grouped_into_requests(folder: Path):
    requests = only_batch(folder).requests
    assert requests.request_id.tolist() == [f"7-{EARLY}-1", f"8-{EARLY + 1}-2", f"7-{LATE}-1"]
    assert requests.user_id.tolist() == ["7", "8", "7"]
    assert requests.time_ms.tolist() == [EARLY, EARLY + 1, LATE]
    assert requests.item_offsets.tolist() == [0, 2, 3, 4]
    assert requests.item_id.tolist() == ["4", "5", "9", "5"]
    assert read_kuairand(folder).impressions == 4


def test_actions_come_when_they_can_be_known(folder: Path):
    actions = only_batch(folder).actions
    known = set(zip(actions.item_id, actions.action, actions.time_ms.tolist(), strict=True))
    assert known == {
        ("4", "click", EARLY + 1_000),
        ("4", "long_view", EARLY + 61_802),
        ("5", "like", LATE + 1_000),  # its play of 0.4 s ended sooner
    }
    assert actions.request_id.tolist().count(f"7-{LATE}-1") == 1


def test_user_columns(folder: Path):
    columns = only_batch(folder).requests.user_columns
    assert columns["user_id"].tolist() == [7, 8, 7]
    assert columns["tab"].tolist() == [1, 2, 1]
    assert columns["hour"].tolist() == [23, 23, 23]
    # User 8 has no features: all are missing, none is made up.
    assert columns["is_live_streamer"].tolist() == [-124, None, -124]
    assert columns["fans_user_num_range"].tolist() == ["[100,1k)", None, "[100,1k)"]
    assert columns["onehot_feat4"].tolist() == [1, None, 1]
    assert columns["onehot_feat12"].tolist() == [None, None, None]


def test_item_columns(folder: Path):
    columns = only_batch(folder).requests.item_columns
    assert columns["video_id"].tolist() == [4, 5, 9, 5]
    assert columns["author_id"].tolist() == [41, 51, None, 51]
    assert columns["music_id"].tolist() == [9155697141, 6355810746, None, 6355810746]
    assert columns["music_type"].tolist() == [9, None, None, None]
    assert columns["tag"].tolist() == [[20, 43], [], [], []]
    assert columns["video_type"].tolist() == ["NORMAL", "NORMAL", None, "NORMAL"]
    assert columns["duration_ms"].tolist() == [49866, None, None, None]
    assert columns["age_days"].tolist() == [4, None, None, None]


def test_rows_stop_in_time_order(folder: Path):
    requests = only_batch(folder, rows=3).requests
    assert requests.item_id.tolist() == ["4", "5", "9"]


def test_the_newest_days_are_a_folder_of_their_own(folder: Path, tmp_path: Path):
    other = [row.replace(",20220425,", ",20220424,") for row in SECOND_LOG]
    write(folder / "data" / "log_standard_4_08_to_4_21_pure.csv", LOG_HEADER, other)
    assert newest_days(folder, 2, tmp_path / "all") == folder
    newest = newest_days(folder, 1, tmp_path / "newest")
    whole, cut = only_batch(folder).requests, only_batch(newest).requests
    assert whole.user_id.tolist() == ["7", "8", "7"]
    assert cut.request_id.tolist() == [whole.request_id[0], whole.request_id[2]]
    assert cut.user_columns["fans_user_num_range"].tolist() == ["[100,1k)", "[100,1k)"]
    assert cut.item_columns["tag"].tolist() == [[20, 43], [], []]


def test_the_data_folder_itself_is_taken(folder: Path):
    assert len(only_batch(folder / "data").requests) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: (data / "user_features_pure.csv").unlink(), "user_features_pure.csv .* is missing"),
        (lambda data: [f.unlink() for f in data.glob("log_standard*")], "no log_standard"),
        (
            lambda data: write(data / "user_features_pure.csv", "user_id,nothing", ["7,1"]),
            "column user_active_degree, .* is missing",
        ),
        (
            lambda data: write(data / "log_standard_4_22_to_5_08_pure.csv.gz", LOG_HEADER, ["x" + ",0" * 18]),
            "cannot be read",
        ),
        (
            lambda data: (data / "log_standard_4_22_to_5_08_pure.csv.gz").write_bytes(gzip.compress(b"user_id\n" * 1000)[:20]),
            "cannot be read",
        ),
        (
            lambda data: write(data / "video_features_basic_pure.csv.gz", VIDEO_HEADER, [VIDEOS[0].replace("43", "x")]),
            "tag '20,x' is not a list of numbers",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder: Path, damage, message: str):
    damage(folder / "data")
    with pytest.raises(UserError, match=message) as error:
        read_kuairand(folder)
    assert "\n" not in str(error.value)


def test_missing_folder(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder: give --path"):
        read_kuairand(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        read_kuairand(tmp_path / "file")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"KuaiRand-Pure is not at {REAL}: set KUAIRAND_DIR to its folder")
def test_the_real_folder():
    batches = list(read_kuairand(REAL, rows=20_000).events)
    time_ms = np.concatenate([batch.requests.time_ms for batch in batches])
    impressions = sum(batch.requests.impressions for batch in batches)
    actions = Counter(action for batch in batches for action in batch.actions.action)
    names = np.concatenate([batch.requests.request_id for batch in batches])
    assert impressions == 20_000
    assert (np.diff(time_ms) >= 0).all()
    assert len(set(names)) == len(names)
    assert 0.35 < actions["click"] / impressions < 0.55
    assert 0.2 < actions["long_view"] / impressions < 0.45
