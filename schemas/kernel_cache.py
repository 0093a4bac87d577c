"""Where compiled kernels are kept: in a folder of their own for each state of the sources.

Numba compares only the file that a kernel stands in, but a kernel inlines functions and constants of other files. After an
edit there, or a pull, those that look keys up would run the new code and those that put them in the old: keys would be lost
without a word. So any change to a file of the rooms that have kernels, or that they draw on, compiles them all anew.

A process looks at the sources once, when it imports the first of `model` and `pipelines`: an edit after that is seen by the
next process. A module that is edited after that look, but before this process has imported it, is compiled as it now is into
the folder of what was: edit nothing while a process starts.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_ROOMS = ("schemas", "model", "pipelines")
_DIGITS = 16
#: Folders kept besides the one in use: those of the branches that one goes to and fro between.
_KEPT = 4
#: Seconds for which any folder is kept: a process that began with it may yet compile into it.
_IN_USE_S = 24 * 3600.0


def use_kernel_cache() -> None:
    """Have Numba keep kernels in the sources' own folder; must come before the first kernel is decorated.

    `NUMBA_CACHE_DIR`, if set, is left as it is: whoever sets it clears it after an edit.
    """
    import numba  # here, as it takes half a second: what only reads a digest does not wait for it

    if numba.config.CACHE_DIR:
        return
    base = writable_base(_bases())
    folder = base / digest_of(source_files(_ROOT / room for room in _ROOMS))
    mark_used(folder)
    prune(base, kept=_KEPT, older_than_s=_IN_USE_S)
    numba.config.CACHE_DIR = str(folder)


def mark_used(folder: Path) -> None:
    """Make the folder, or make it as young as a new one, even if another process is about to prune it."""
    try:
        os.utime(folder)
    except FileNotFoundError:
        folder.mkdir(exist_ok=True)  # young by itself, whichever process makes it: nobody prunes it now


def source_files(folders: Iterable[Path]) -> list[Path]:
    """The Python files below these folders, in order."""
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def digest_of(files: Iterable[Path]) -> str:
    """16 hexadecimal digits that follow from the files' paths and bytes, and from nothing else."""
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()[:_DIGITS]


def writable_base(candidates: Iterable[Path]) -> Path:
    """The first of these folders that can be made, belongs to this user and can be written to; else a new temporary one."""
    for base in candidates:
        try:
            base.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Kernels are loaded as they lie there: never from a folder that somebody else has put in place.
            if base.stat().st_uid == os.getuid():
                tempfile.TemporaryFile(dir=base).close()
                return base
        except OSError:
            continue  # the next one will do, and the last always does
    return Path(tempfile.mkdtemp(prefix="freshet-kernels-"))


def prune(base: Path, kept: int, older_than_s: float) -> None:
    """Remove the folders of sources in `base` that are not among the `kept` newest others nor younger than `older_than_s`.

    What a process has loaded it needs no more, and Numba makes a folder again before it writes.
    """
    times: list[tuple[float, Path]] = []
    for path in base.iterdir():
        if re.fullmatch(f"[0-9a-f]{{{_DIGITS}}}", path.name):
            try:
                times.append((path.stat().st_mtime, path))
            except FileNotFoundError:
                continue  # another process has removed it
    now = time.time()
    for modified, path in sorted(times, reverse=True)[1 + kept :]:
        if now - modified > older_than_s:
            shutil.rmtree(path, ignore_errors=True)  # two processes may do so at once


def _bases() -> Iterator[Path]:
    given = os.environ.get("XDG_CACHE_HOME", "")
    if Path(given).is_absolute():  # the specification has others ignored
        yield Path(given) / "freshet" / "kernels"
    home = Path("~").expanduser() if os.environ.get("HOME") else None
    if home is not None and home.is_absolute():
        yield home / ".cache" / "freshet" / "kernels"
    yield Path(tempfile.gettempdir()) / f"freshet-kernels-{os.getuid()}"
