"""What the table's kernels need to know of each slot, as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from schemas.config import FeatureConfig
from schemas.slots import MAX_SLOT

from .feature_ids import SLOT_SHIFT
from .optimizers import settings_of

NEVER_MS = np.iinfo(np.int64).max


class SlotArrays(NamedTuple):
    """Slots in column order.

    Attributes:
        of_number: int32[32768], index of a slot by its number, -1 where the configuration has none.
        of_column: int32[W], index of the slot of each id column.
        mean: bool[S], whether a bag is averaged rather than summed.
        admission: int64[S], occurrences after which an id gets a row.
        ttl_ms: int64[S], NEVER_MS for slots whose rows stay.
        init_scale: float32[S], standard deviation of a new row.
        optimizers: float64[S, 6], see `optimizers.settings_of`.
    """

    of_number: NDArray[np.int32]
    of_column: NDArray[np.int32]
    mean: NDArray[np.bool_]
    admission: NDArray[np.int64]
    ttl_ms: NDArray[np.int64]
    init_scale: NDArray[np.float32]
    optimizers: NDArray[np.float64]

    @classmethod
    def of(cls, config: FeatureConfig) -> SlotArrays:
        """The arrays of a configuration."""
        slots = config.slot_order
        of_number = np.full(MAX_SLOT + 1, -1, np.int32)
        of_number[[slot.slot for slot in slots]] = np.arange(len(slots))
        return cls(
            of_number=of_number,
            of_column=np.array(config.column_slot, np.int32),
            mean=np.array([slot.pooling == "mean" for slot in slots]),
            admission=np.array([slot.admission for slot in slots], np.int64),
            ttl_ms=np.array([NEVER_MS if slot.ttl_s is None else slot.ttl_s * 1000 for slot in slots], np.int64),
            init_scale=np.array([slot.init_scale for slot in slots], np.float32),
            optimizers=settings_of([slot.optimizer for slot in slots]),
        )


@njit(nogil=True, cache=True)
def first_unknown(of_number: NDArray[np.int32], ids: NDArray[np.int64]) -> int:
    """Position of the first id whose slot is not configured, or -1; 0 pads and is fine."""
    for i in range(ids.size):
        if ids[i] != 0 and (ids[i] < 0 or of_number[ids[i] >> SLOT_SHIFT] < 0):
            return i
    return -1


def check_known(slots: SlotArrays, ids: NDArray[np.int64]) -> None:
    """Check that the configuration has the slot of each id.

    Raises:
        ValueError: it lacks one; names the first such id.
    """
    at = first_unknown(slots.of_number, ids)
    if at >= 0:
        raise unknown_slot(int(ids[at]))


def expired(slots: SlotArrays, keys: NDArray[np.int64], last_seen_ms: NDArray[np.int64], time_ms: int) -> NDArray[np.bool_]:
    """bool[R], which of rows with keys int64[R], last seen at int64[R], are past their time to live; a default row never is."""
    of_key = slots.of_number[np.maximum(keys, 0) >> SLOT_SHIFT]
    return (keys > 0) & (time_ms - last_seen_ms > slots.ttl_ms[of_key])


def unknown_slot(feature_id: int) -> ValueError:
    """What to raise for an id of a slot that is not configured."""
    return ValueError(
        f"feature id {feature_id} is of slot {feature_id >> SLOT_SHIFT}, which the feature configuration lacks: "
        "add the slot, or featurise with this configuration"
    )
