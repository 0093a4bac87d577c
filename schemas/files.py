"""Files that are there whole or not at all, whatever ends the process or the machine."""

import os
from pathlib import Path


def sync_path(path: Path) -> None:
    """Have what a path names on the disk: a file's bytes, or the names in a folder.

    Raises:
        OSError: there is no such path, or the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str, durable: bool = False) -> None:
    """Write a file, UTF-8, and the folders to it, so that a reader sees the old text or the new, never a part.

    Args:
        path: of the file; a process writes it by one thread at a time.
        text: all of it.
        durable: the new text outlasts a power failure from the moment this returns. Costs two waits for the disk: not for
            what is written every moment.

    Raises:
        OSError: the disk refuses; the old text is still there then, unless all but the names in the folder was written.
    """
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        if durable:
            sync_path(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        for folder in (path.parent, *(new.parent for new in missing)):
            sync_path(folder)
