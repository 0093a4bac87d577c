"""How what was made with fewer slots is read once slots have been appended.

Appended slots lie at the end of their side: the columns of what was there move, and the new ones are empty. A slot without
ids is pooled to 0 and meets zeros in the first kernel, so the model predicts what it predicted before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from schemas.config import FeatureConfig
from schemas.slots import Side

from .catalogue import ITEMS, USERS, entries_of
from .dense import DenseLayout
from .snapshot import Increment, KeyedPart, SnapshotError, matrix_column

#: The kernel that reads the slots' embeddings; a name in a lagged copy's state ends in it.
_FIRST_KERNEL = "kernel_0"


@dataclass(frozen=True)
class Widening:
    """From a configuration to one that has grown from it; from one to itself, everything is handed back as it is.

    Attributes:
        old: what was made is of this one.
        new: what reads it.
    """

    old: FeatureConfig
    new: FeatureConfig

    @classmethod
    def of(cls, state: Increment, config: FeatureConfig) -> Widening:
        """From the configuration of a trainer's state to ``config``.

        Raises:
            SnapshotError: ``config`` neither is that one nor has grown from it.
        """
        fingerprint = int(state.whole["trainer"]["fingerprint"][0])
        old = config.grown_from(fingerprint)
        if old is None:
            raise SnapshotError(
                f"a state of feature configuration {fingerprint}, which {config.name!r} ({config.fingerprint}) has not grown "
                "from: use the configuration it was made with"
            )
        return cls(old, config)

    @cached_property
    def grown(self) -> bool:
        """Whether slots have been appended."""
        return self.new.num_slots > self.old.num_slots

    def ids(self, ids: NDArray[np.int64], side: Side | None = None) -> NDArray[np.int64]:
        """Feature ids int64[N, W] of one side, or of both, at their new columns."""
        if not self.grown:
            return ids
        columns = np.repeat(self._kept(side), [slot.max_length for slot in self.new.slots_of(side)])
        out = np.zeros((len(ids), columns.size), np.int64)
        out[:, columns] = ids
        return out

    def dense(self, flat: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """A network's state: parameters and moments, flat float32[size] each, with zeros for what new slots bring."""
        before, now = DenseLayout.of(self.old), DenseLayout.of(self.new)

        def widened(array: NDArray[np.float32]) -> NDArray[np.float32]:
            if array.size != before.size:  # the count of steps
                return array
            parts = before.unpack_array(array)
            return now.pack_array(parts | {_FIRST_KERNEL: self._kernel(parts[_FIRST_KERNEL])})

        return {name: widened(array) for name, array in flat.items()} if self.grown else dict(flat)

    def copies(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """State of lagged copies, whose dense parameters lie in it by name."""
        if not self.grown:
            return dict(state)
        return {name: self._kernel(array) if name.endswith(f"/{_FIRST_KERNEL}") else array for name, array in state.items()}

    def catalogue(self, state: Increment) -> Increment:
        """The catalogue's parts of a merged increment."""
        if not self.grown:
            return state
        sides: dict[str, Side] = {USERS: "user", ITEMS: "item"}
        return Increment({name: self._entries(state.keyed[name], side) for name, side in sides.items()})

    def _entries(self, part: KeyedPart, side: Side) -> KeyedPart:
        ids = matrix_column(self.ids(entries_of(part.rows).ids, side))
        return KeyedPart(part.rows.set_column(part.rows.column_names.index("ids"), "ids", ids), part.removed)

    def _kernel(self, kernel: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[units, S * dim]."""
        kept, dim = self._kept(None), self.new.model.dim
        out = np.zeros((len(kernel), kept.size, dim), np.float32)
        out[:, kept] = kernel.reshape(len(kernel), -1, dim)
        return out.reshape(len(kernel), -1)

    def _kept(self, side: Side | None) -> NDArray[np.bool_]:
        """bool[S], which of the new slots were there before; their order has not changed."""
        before = {slot.slot for slot in self.old.slots}
        return np.array([slot.slot in before for slot in self.new.slots_of(side)])
