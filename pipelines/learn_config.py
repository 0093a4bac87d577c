"""How a shard learns, and which of it a state stays with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.process import UserError

from .arms import Arm


@dataclass(frozen=True)
class LearnConfig:
    """How a shard learns.

    Attributes:
        shard: its number, which its deltas carry.
        step: examples a step; a fixed count, so that a replay gives the same model.
        early: a decided head is learned at once, the undecided ones masked.
        arms: lagged copies of the model, scored beside it.
        warm_start_s: event time from the first event on during which arms follow the model and nothing is evaluated.
        window: decided examples of the first head a metrics window.
        predictions: whether predictions are put out once their label is known.
        examples: whether what was learned from is put out.
        seed: of the model's initial values.
        table_bytes: most memory for the embedding table; None: what the system gives.
        threads: that share a step; None: one a core.
    """

    shard: int = 0
    step: int = 128
    early: bool = True
    arms: tuple[Arm, ...] = ()
    warm_start_s: float = 0.0
    window: int = 10_000
    predictions: bool = False
    examples: bool = False
    seed: int = 0
    table_bytes: int | None = None
    threads: int | None = None

    @property
    def lasting(self) -> dict[str, Any]:
        """What a state is made with and stays with, by option. A step is only when the next examples are learned."""
        return {
            "arms": ",".join(arm.name for arm in self.arms),
            "emit": "early" if self.early else "complete",
            "warm_start_s": self.warm_start_s,
            "window": self.window,
            "seed": self.seed,
        }

    def check(self, made_with: Mapping[str, Any]) -> None:
        """Check that a state made with these options can be gone on from.

        Raises:
            UserError: naming the first option that differs, what it was and what it is.
        """
        for option, now in self.lasting.items():
            before = made_with[option]
            if before != now:
                given, made = ("none" if value == "" else value for value in (now, before))
                remedy = f"leave out --{option}" if before == "" else f"give --{option} {before} again"
                raise UserError(
                    f"--{option} {given}: this --state_dir was made with {made}; {remedy}, or take an empty --state_dir"
                )
