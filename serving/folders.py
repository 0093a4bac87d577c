"""The layout of a model directory: one folder per version, named by an integer."""

import os
from pathlib import Path

from schemas.process import UserError

_MAX_VERSION = (1 << 63) - 1  # versions are int64 on the wire

Fingerprint = tuple[tuple[str, int, int], ...]


def version_folders(model_dir: Path) -> dict[int, Path]:
    """The version folders in `model_dir`; whatever else lies there is ignored.

    Raises:
        OSError: the directory cannot be read.
    """
    return {
        int(path.name): path
        for path in model_dir.iterdir()
        if path.name.isascii() and path.name.isdecimal() and int(path.name) <= _MAX_VERSION and path.is_dir()
    }


def require_version_folder(model_dir: Path) -> None:
    """Refuse a model directory that cannot be read or holds no version.

    Raises:
        UserError: with the remedy.
    """
    try:
        found = version_folders(model_dir)
    except OSError as error:
        raise UserError(
            f"cannot read --model_dir {model_dir}: {error.strerror}; give the folder that holds the versions"
        ) from error
    if not found:
        raise UserError(
            f"no model in {model_dir}: it has no integer-named version folder; "
            "train one (python -m pipelines.train --model_dir ...) or start with --wait"
        )


def fingerprint(folder: Path) -> Fingerprint:
    """What tells a changed folder from an unchanged one: its files' names, sizes and times."""
    entries = []
    for root, _, names in os.walk(folder):
        for name in names:
            file = Path(root, name)
            try:
                stat = file.stat()
            except FileNotFoundError:  # being replaced at this moment: the next look sees the new one
                continue
            entries.append((str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(entries))
