"""What the table's kernels need to know of each slot, as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from schemas.config import FeatureConfig
from schemas.slots import MAX_SLOT

from .feature_ids import SLOT_SHIFT
from .optimizers import adam_rates, settings_of

NEVER_S = 1 << 62  # far beyond all time, and no overflow beside a time
NORMAL, UNIFORM, ZEROS = range(3)
_INITS = {"normal": NORMAL, "uniform": UNIFORM, "zeros": ZEROS}


class SlotArrays(NamedTuple):
    """Slots in column order.

    Attributes:
        of_number: int32[32768], index of a slot by its number, -1 where the configuration has none.
        of_column: int32[W], index of the slot of each id column.
        mean: bool[S], whether a bag is averaged rather than summed.
        admission: int64[S], occurrences after which an id gets a row.
        missed: float64[S], the probability that one occurrence does not get an id its row; -1 where they are counted.
        ttl_s: int64[S], NEVER_S for slots whose rows stay.
        min_rows: int64[S], rows of a slot that stay whatever their age.
        init: int64[S], distribution of a new row (`NORMAL` and so on).
        init_scale: float32[S], its standard deviation, or its bound.
        optimizers: float64[S, 9], see `optimizers.settings_of`.
        adam_rates: float32[A, T], see `optimizers.adam_rates`.
    """

    of_number: NDArray[np.int32]
    of_column: NDArray[np.int32]
    mean: NDArray[np.bool_]
    admission: NDArray[np.int64]
    missed: NDArray[np.float64]
    ttl_s: NDArray[np.int64]
    min_rows: NDArray[np.int64]
    init: NDArray[np.int64]
    init_scale: NDArray[np.float32]
    optimizers: NDArray[np.float64]
    adam_rates: NDArray[np.float32]

    @classmethod
    def of(cls, config: FeatureConfig) -> SlotArrays:
        """The arrays of a configuration."""
        slots = config.slot_order
        of_number = np.full(MAX_SLOT + 1, -1, np.int32)
        of_number[[slot.slot for slot in slots]] = np.arange(len(slots))
        optimizers = settings_of([slot.optimizer for slot in slots])
        return cls(
            of_number=of_number,
            of_column=np.array(config.column_slot, np.int32),
            mean=np.array([slot.pooling == "mean" for slot in slots]),
            admission=np.array([slot.admission for slot in slots], np.int64),
            # Of n occurrences one in twenty ids misses all: 0.05 = missed^n, as in Monolith's probabilistic filter.
            missed=np.array([0.05 ** (1 / slot.admission) if slot.admission_mode == "probability" else -1.0 for slot in slots]),
            ttl_s=np.array([NEVER_S if slot.ttl_s is None else slot.ttl_s for slot in slots], np.int64),
            min_rows=np.array([slot.min_rows for slot in slots], np.int64),
            init=np.array([_INITS[slot.init] for slot in slots], np.int64),
            init_scale=np.array([slot.init_scale for slot in slots], np.float32),
            optimizers=optimizers,
            adam_rates=adam_rates(optimizers),
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


def slot_rows_of(slots: SlotArrays, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[S], how many of keys int64[R] are ids of each slot."""
    return np.bincount(slots.of_number[keys[keys > 0] >> SLOT_SHIFT], minlength=slots.ttl_s.size).astype(np.int64)


def unknown_slot(feature_id: int) -> ValueError:
    """What to raise for an id of a slot that is not configured."""
    return ValueError(
        f"feature id {feature_id} is of slot {feature_id >> SLOT_SHIFT}, which the feature configuration lacks: "
        "add the slot, or featurise with this configuration"
    )
