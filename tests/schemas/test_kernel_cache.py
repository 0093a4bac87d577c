"""Kernels are kept apart for each state of the sources, in a place that can be written to."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.kernel_cache import digest_of, mark_used, prune, source_files, writable_base

ROOT = Path(__file__).parents[2]
#: A kernel that inlines a constant of another file, and where it is kept.
CODE = """
import numba
import numpy as np
from pipelines.join_kernel import index_find
print(index_find(np.array([3, 3]), np.array([0, 0, 0, 7]), 7), numba.config.CACHE_DIR)
"""


def run(sources: Path, **environment: str) -> Path:
    """Where a process that runs a kernel of these sources keeps it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    run = subprocess.run(
        [sys.executable, "-c", CODE], cwd=sources, env=kept | environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found, folder = run.stdout.split()
    assert found == "3"
    return Path(folder)


def kernels(folder: Path) -> set[str]:
    return {path.name.split(".")[1].split("-")[0] for path in folder.rglob("*.nbc")}


def test_an_edit_of_any_file_compiles_all_kernels_anew(tmp_path):
    sources, cache = tmp_path / "sources", tmp_path / "cache"
    for room in ("schemas", "model", "pipelines"):
        shutil.copytree(ROOT / room, sources / room, ignore=shutil.ignore_patterns("__pycache__"))
    before = run(sources, XDG_CACHE_HOME=str(cache))
    assert before.parent == cache / "freshet" / "kernels"
    assert kernels(before) == {"index_find"}
    assert not list(sources.rglob("*.nbc"))
    with (sources / "pipelines" / "batches.py").open("a") as file:
        file.write("# an edit\n")
    after = run(sources, XDG_CACHE_HOME=str(cache))
    assert after.parent == before.parent
    assert after != before
    assert kernels(after) == {"index_find"}


def test_a_folder_that_the_user_names_is_used(tmp_path):
    assert run(ROOT, NUMBA_CACHE_DIR=str(tmp_path)) == tmp_path
    assert kernels(tmp_path) == {"index_find"}


def test_a_digest_follows_from_names_and_bytes_alone(tmp_path):
    for name in ("a.py", "b.py", "notes.txt"):
        (tmp_path / name).write_text("x = 1\n")
    files = source_files([tmp_path])
    assert [path.name for path in files] == ["a.py", "b.py"]
    before = digest_of(files)
    os.utime(files[0], (0, 0))
    assert digest_of(files) == before
    files[0].write_text("x = 2\n")
    edited = digest_of(files)
    assert edited != before
    files[0].write_text("x = 1\n")
    assert digest_of(files) == before
    files[1].rename(tmp_path / "c.py")
    assert digest_of(source_files([tmp_path])) not in (before, edited)


def test_a_place_that_cannot_be_written_to_is_passed_over(tmp_path):
    (tmp_path / "file").write_text("")
    assert writable_base([tmp_path / "file" / "below", Path("/proc/freshet"), tmp_path / "there"]) == tmp_path / "there"
    last = writable_base([tmp_path / "file"])
    assert last.is_dir() and last != tmp_path / "file"
    last.rmdir()


def test_old_folders_go_and_what_is_in_use_or_not_ours_stays(tmp_path):
    names = [f"{number:016x}" for number in range(8)]
    for age, name in enumerate(names):
        (tmp_path / name / "model").mkdir(parents=True)
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age))
    (tmp_path / "somebody else's").mkdir()
    os.utime(tmp_path / "somebody else's", (0, 0))
    prune(tmp_path, kept=4, older_than_s=10**12)
    assert len(list(tmp_path.iterdir())) == 9
    prune(tmp_path, kept=4, older_than_s=3600)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names[:5], "somebody else's"]


@pytest.mark.parametrize("pruned", [False, True])
def test_a_folder_is_there_and_young_even_if_it_is_pruned_meanwhile(tmp_path, monkeypatch, pruned):
    folder = tmp_path / f"{7:016x}"
    mark_used(folder)
    os.utime(folder, (0, 0))
    touch = os.utime

    def after_another_process(path):
        if pruned:
            prune(tmp_path, kept=-1, older_than_s=3600)  # none is kept for its rank
            assert not folder.exists()
        touch(path)

    monkeypatch.setattr(os, "utime", after_another_process)
    mark_used(folder)
    assert folder.stat().st_mtime > time.time() - 60
    prune(tmp_path, kept=-1, older_than_s=3600)
    assert folder.is_dir()
