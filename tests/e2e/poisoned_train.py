"""`pipelines.train` whose step crashes, on whatever worker it runs, on each batch with a certain record in it.

    python -m tests.e2e.poisoned_train features/p000 700 OPTIONS OF pipelines.train

No record is known that does it, or it would be mended.
"""

import functools
import sys

from pipelines import train
from pipelines.batches import EventBatch, Kind
from pipelines.learn import JoinAndLearn
from schemas.process import run_main


class PoisonedFn(train.JoinAndLearnFn):
    """Goes to a worker with the place of the record."""

    def __init__(self, config: train.TrainConfig, partition: str, offset: int) -> None:
        super().__init__(config)
        self._place = partition, offset

    def setup(self) -> None:
        if not hasattr(JoinAndLearn.apply, "__wrapped__"):
            JoinAndLearn.apply = poisoned(JoinAndLearn.apply, *self._place)


def poisoned(apply, partition: str, offset: int):
    """The step's verb, which gives up half-way on a batch that has the record as more than a dead letter."""

    @functools.wraps(apply)
    def crash(step: JoinAndLearn, batch: EventBatch):
        outputs = apply(step, batch)
        here = [number for number, name in enumerate(batch.partitions) if name == partition]
        usable = batch.column("kind") != Kind.FAULT
        if here and (usable & (batch.column("partition") == here[0]) & (batch.column("offset") == offset)).any():
            raise RuntimeError("poison")
        return outputs

    return crash


def main(argv: list[str] | None = None) -> int:
    """As `pipelines.train`."""
    partition, offset, *rest = sys.argv[1:] if argv is None else argv
    from tests.e2e.poisoned_train import PoisonedFn  # by the name that a worker imports it by

    train.JoinAndLearnFn = functools.partial(PoisonedFn, partition=partition, offset=int(offset))
    return train.main(rest)


if __name__ == "__main__":
    run_main(main)
