"""Copies both topics into new ones of another number of partitions, so that each user's events lie in one again.

    python -m pipelines.rekey --kafka HOST:PORT --to_prefix new- --partitions 8

Messages are merged by event time, as training merges them, and a user's keep their order; those that cannot be read have no
user, are left out, and counted. What comes while it runs is not copied: stop the producers first, then send them, and training,
to the new topics. A state goes with the topics that it was learned from: begin with an empty --state_dir.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from schemas import flags
from schemas.avro import Record
from schemas.kafka_logs import TOPICS, KafkaLogs, KafkaTopics
from schemas.kafka_writer import TopicWriter, create_topics, producer_of
from schemas.process import CommandParser, UserError, run_main, setup_logging, signals_interrupt

_AT_ONCE = 2048


class Copy:
    """The messages of one topic, in the order in which training takes them.

    Args:
        logs: both topics, open without `follow`.
        topic: which.

    Attributes:
        unreadable: messages left out so far.
    """

    def __init__(self, logs: KafkaLogs, topic: str) -> None:
        self._logs, self._topic = logs, topic
        self.unreadable = 0

    def __iter__(self) -> Iterator[Record]:
        parts = [self._partition(number) for number in self._logs.partitions(self._topic)]
        for _, _, _, record in heapq.merge(*parts, key=lambda item: item[:3]):
            yield record

    def _partition(self, number: int) -> Iterator[tuple[int, int, int, Record]]:
        """Records by the running maximum of their event time, then by partition and place."""
        reader, newest, place = self._logs.reader(self._topic, number, 0), -1, 0
        while True:
            chunk = reader.read(_AT_ONCE)
            self.unreadable += len(chunk.faults)
            if not len(chunk.records) and not chunk.faults:
                return
            for record in chunk.records:
                newest, place = max(newest, record["time_ms"]), place + 1
                yield newest, number, place, record


def rekey(source: KafkaTopics, target: KafkaTopics, partitions: int) -> dict[str, int]:
    """Copy both topics; messages copied by topic, and `unreadable` ones.

    Raises:
        UserError: a topic of the target is there already, or the broker does not answer or refuses.
    """
    counts = {"unreadable": 0}
    logs = source.open(follow=False)
    try:
        create_topics(target, partitions)
        producer = producer_of(target)
        with Progress(disable=not sys.stderr.isatty()) as progress:
            for topic in TOPICS:
                shown = progress.add_task(f"{target.prefix}{topic}", total=None)
                copy, counts[topic] = Copy(logs, topic), 0
                writer, records = TopicWriter(producer, target.prefix + topic, topic), iter(copy)
                while batch := list(itertools.islice(records, _AT_ONCE)):
                    writer.append(batch)
                    counts[topic] += len(batch)
                    progress.update(shown, completed=counts[topic])
                writer.close()
                counts["unreadable"] += copy.unreadable
    finally:
        logs.close()
    return counts


def main(argv: list[str] | None = None) -> int:
    """Copy, and print what was copied."""
    setup_logging()
    parser = CommandParser(
        prog="python -m pipelines.rekey", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kafka", required=True, metavar="HOST:PORT,...", help="brokers")
    add("--kafka_prefix", default="", metavar="TEXT", help="of the topics: TEXTfeatures and TEXTactions (default: none)")
    add("--kafka_config", type=Path, metavar="FILE", help="further settings of librdkafka, a NAME=VALUE a line")
    add("--to_prefix", required=True, metavar="TEXT", help="of the new topics, which must not be there yet")
    add("--partitions", required=True, type=flags.count, help="of each new topic")
    args = parser.parse_args(argv)
    if args.to_prefix == args.kafka_prefix:
        raise UserError(f"--to_prefix {args.to_prefix!r} is that of the topics themselves: give another")
    source = KafkaTopics.configured(args.kafka, args.kafka_prefix, args.kafka_config)
    with signals_interrupt():
        counts = rekey(source, replace(source, prefix=args.to_prefix), args.partitions)
    print("copied: " + ", ".join(f"{counts[topic]:,} {topic}" for topic in TOPICS) + f"; unreadable: {counts['unreadable']:,}")
    return 0


if __name__ == "__main__":
    run_main(main)
