"""Reading a data set's tables: found by name, gzipped or not, columns checked, errors in one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.datasets.requests import object_array
from schemas.process import UserError


def check_folder(path: Path, data_set: str) -> None:
    """Raises UserError unless `path` is a folder."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "no such folder"
        raise UserError(f"{path}: {what}: give --path the folder that {data_set} unpacks to")


def find_table(folder: Path, name: str) -> Path | None:
    """`folder/name` or `folder/name.gz`, or None."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def need_table(folder: Path, name: str, data_set: str) -> Path:
    """As `find_table`, but raises UserError if there is none."""
    path = find_table(folder, name)
    if path is None:
        raise UserError(f"{folder}: {name} (or {name}.gz) is missing: unpack the whole of {data_set}")
    return path


def read_table(path: Path, types: Mapping[str, str], data_set: str, **options: Any) -> pd.DataFrame:
    """The columns `types` (name -> dtype) of a table with a header; further columns are left out.

    Raises:
        UserError: the file cannot be read, a column is missing, or a value does not fit its type.
    """
    try:
        header = pd.read_csv(path, nrows=0, **options)
        if missing := [name for name in types if name not in header.columns]:
            raise UserError(f"{path}: column {', '.join(missing)} is missing: the file must be {data_set}'s own")
        return pd.read_csv(path, usecols=list(types), dtype=dict(types), **options)
    except (OSError, EOFError, ValueError, pd.errors.ParserError) as error:
        raise unreadable(path, error, data_set) from error


def read_headless(path: Path, types: Mapping[str, str], positions: list[int], data_set: str, **options: Any) -> pd.DataFrame:
    """As `read_table` for a file without header: column i of the result is the file's `positions[i]`."""
    try:
        frame = pd.read_csv(path, header=None, usecols=positions, dtype=object, **options)
        frame.columns = pd.Index(types)
        return frame.astype(dict(types))
    except (OSError, EOFError, ValueError, pd.errors.ParserError) as error:
        raise unreadable(path, error, data_set) from error


def unreadable(path: Path, error: Exception, data_set: str) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path}: cannot be read as a table of {data_set} ({reason}): download it again")


def integers(series: pd.Series) -> np.ndarray:
    """A nullable Int64 column as int64[n], or as object[n] of int and None where something is missing."""
    if not series.isna().any():
        return series.to_numpy(dtype=np.int64)
    return object_array((None if value is pd.NA else value for value in series.tolist()), len(series))


def texts(series: pd.Series) -> np.ndarray:
    """A string column as object[n] of str and None."""
    return object_array((value if isinstance(value, str) else None for value in series.tolist()), len(series))
