"""Files are replaced whole, and are on the disk if they were asked to be."""

import os
import stat
import threading

import pytest

from schemas.files import replace_file, sync_path


@pytest.fixture
def synced(monkeypatch):
    """What was synced: each file's or folder's number, and its names or bytes of then."""
    seen, fsync = [], os.fsync

    def watched(descriptor):
        fsync(descriptor)
        about = os.fstat(descriptor)
        seen.append((about.st_ino, os.listdir(descriptor) if stat.S_ISDIR(about.st_mode) else about.st_size))  # noqa: PTH208, of an open folder

    monkeypatch.setattr(os, "fsync", watched)
    return seen


def test_a_reader_sees_the_old_text_or_the_new(tmp_path):
    path = tmp_path / "new" / "figures"
    texts = ["a" * 100_000, "é" * 70_000]
    replace_file(path, texts[0])
    over = threading.Event()

    def write():
        for number in range(400):
            replace_file(path, texts[number % 2])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    read = set()
    while not over.is_set():
        read.add(path.read_text(encoding="utf-8"))
    writer.join()
    assert read <= set(texts)
    assert path.read_text(encoding="utf-8") == texts[1]
    assert [*path.parent.iterdir()] == [path]


def test_what_is_durable_is_on_the_disk_bytes_before_name(tmp_path, synced):
    path = tmp_path / "state"
    replace_file(path, "some text", durable=True)
    assert synced == [(path.stat().st_ino, len("some text")), (tmp_path.stat().st_ino, ["state"])]


def test_what_is_not_durable_waits_for_no_disk(tmp_path, synced):
    replace_file(tmp_path / "state", "some text")
    assert synced == []


def test_what_cannot_be_written_leaves_the_old_text_and_nothing_else(tmp_path):
    path = tmp_path / "state"
    replace_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(path, "new \ud800")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]
    (tmp_path / "folder" / "below").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "folder", "new")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder", path]


def test_what_is_not_there_cannot_be_synced(tmp_path):
    with pytest.raises(FileNotFoundError):
        sync_path(tmp_path / "none")
