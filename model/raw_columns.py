"""Raw columns, as data sets and clients hand them over, to arrays of one type and one sign of the missing.

A source's type is fixed: 123 is an id, "123" is hashed, and a column that mixes them up is refused rather
than learned from under two ids.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.config import ConfigError, Slot

Column: TypeAlias = NDArray[Any] | Sequence[Any]

# What pandas uses for a missing time, too. No id is lost: every other int64 is a value.
MISSING_INT = int(np.iinfo(np.int64).min)

_INTEGERS = (int, np.integer, np.bool_)
_NUMBERS = (*_INTEGERS, float, np.floating)
_STRINGS = (str, bytes)


def int_column(values: Column, slot: Slot) -> NDArray[np.int64]:
    """int64[N], MISSING_INT for None and NaN. Floats are taken if integral, as pandas has columns with gaps.

    Raises:
        ConfigError: a value is not an integer of 64 bits.
    """
    array = _one_dimensional(values, slot)
    if array.dtype == object:
        _check_types(array, _NUMBERS, slot, "integers")
        if any(issubclass(kind, float | np.floating | type(None)) for kind in _types(array)):
            gaps = _gaps(array)
            whole = np.full(len(array), MISSING_INT, np.int64)
            whole[~gaps] = [_whole(value, slot) for value in array[~gaps].tolist()]
            return whole
        try:
            return array.astype(np.int64)
        except OverflowError:
            raise _refused(slot, "an integer beyond 64 bits", "integers of 64 bits") from None
    if array.dtype.kind == "f":
        gaps = np.isnan(array)
        if not np.all(gaps | ((np.trunc(array) == array) & (np.abs(array) < 2.0**63))):
            raise _refused(slot, "a number with a fraction", "integers")
        return np.where(gaps, MISSING_INT, np.where(gaps, 0, array).astype(np.int64))
    if array.dtype.kind == "u" and array.size and int(array.max()) >= 2**63:
        raise _refused(slot, "an integer beyond 64 bits", "integers of 64 bits")
    if array.dtype.kind in "iub":
        return array.astype(np.int64)
    raise _refused(slot, str(array.dtype), "integers")


def float_column(values: Column, slot: Slot) -> NDArray[np.float32]:
    """float32[N], NaN for None and NaN.

    Raises:
        ConfigError: a value is not a number.
    """
    array = _one_dimensional(values, slot)
    if array.dtype == object:
        _check_types(array, _NUMBERS, slot, "numbers")
        array = np.where(_gaps(array), np.nan, array)
    elif array.dtype.kind not in "iubf":
        raise _refused(slot, str(array.dtype), "numbers")
    with np.errstate(over="ignore"):  # beyond float32 is infinity, the last bucket
        return array.astype(np.float64).astype(np.float32)


def string_column(values: Column, slot: Slot) -> NDArray[np.object_]:
    """object[N] of str or bytes, "" for None and NaN.

    Raises:
        ConfigError: a value is not a string.
    """
    array = _one_dimensional(values, slot)
    if array.dtype.kind in "USTf":
        array = array.astype(object)
    if array.dtype != object:
        raise _refused(slot, str(array.dtype), "strings")
    _check_types(array, _STRINGS, slot, "strings")
    if not all(issubclass(kind, _STRINGS) for kind in _types(array)):
        array = np.where(_gaps(array), "", array)
    return array


def bag_column(values: Column, slot: Slot) -> tuple[list[Any], NDArray[np.int64]]:
    """Elements of all rows one after the other, and how many each row has, int64[N]; a missing bag is empty.

    Raises:
        ConfigError: a row is not a list, tuple or array.
    """
    rows = list(values)
    for kind in set(map(type, rows)):
        if not issubclass(kind, list | tuple | np.ndarray | type(None) | float):
            raise _refused(slot, kind.__name__, "a list of values a row")
    if any(isinstance(row, float) and row == row for row in rows):
        raise _refused(slot, "float", "a list of values a row")
    rows = [() if row is None or isinstance(row, float) else row for row in rows]
    return list(chain.from_iterable(rows)), np.fromiter(map(len, rows), np.int64, len(rows))


def _one_dimensional(values: Column, slot: Slot) -> NDArray[Any]:
    # Not np.asarray for lists: it would turn 1 and "1" into the same string.
    array = values if isinstance(values, np.ndarray) else np.fromiter(values, object, len(values))
    if array.ndim != 1:
        raise _refused(slot, f"an array of {array.ndim} dimensions", "one value a row")
    return array


def _types(array: NDArray[np.object_]) -> set[type]:
    return set(map(type, array.tolist()))


def _check_types(array: NDArray[np.object_], allowed: tuple[type, ...], slot: Slot, wanted: str) -> None:
    for kind in _types(array):
        if issubclass(kind, (*allowed, type(None))):
            continue
        # NaN stands for what is missing in pandas' object columns.
        if issubclass(kind, float | np.floating) and _all_nan([v for v in array.tolist() if type(v) is kind]):
            continue
        raise _refused(slot, kind.__name__, wanted)


def _all_nan(values: list[Any]) -> bool:
    return all(value != value for value in values)


def _gaps(array: NDArray[np.object_]) -> NDArray[np.bool_]:
    return np.fromiter((v is None or v != v for v in array.tolist()), np.bool_, len(array))


def _whole(value: Any, slot: Slot) -> int:
    if value != value // 1 or not -(2**63) <= value < 2**63:
        raise _refused(slot, f"the number {value}", "integers of 64 bits")
    return int(value)


def _refused(slot: Slot, found: str, wanted: str) -> ConfigError:
    return ConfigError(f"slot {slot.name!r}: source {slot.source!r} is of type {slot.type}, but holds {found}: give {wanted}")
