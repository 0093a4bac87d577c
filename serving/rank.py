"""Ask a model server what it would show a user next.

    python -m serving.rank --server HOST:PORT --user U --k 10

Asks the `catalogue` signature for the user's features and the candidate videos, ranks them with `rank`, and
prints the best. Works against serving.server and TF Serving alike.
"""

import argparse
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas import flags
from schemas.process import CommandParser, UserError, run_main
from schemas.quiet import quiet_imports

if TYPE_CHECKING:
    from serving.client import RankClient

_TABLE_WIDTH = 56  # so that title and caption keep to one line


@dataclass(frozen=True)
class ScoredItem:
    """A video and its probability."""

    item_id: str
    score: float


@dataclass(frozen=True)
class Answer:
    """A ranking for a person to read; `latency_ms` is that of the rank call, over `candidates` videos."""

    user: str
    known: bool
    version: int
    head: str
    items: tuple[ScoredItem, ...]
    candidates: int
    latency_ms: float


def ask(client: "RankClient", user: str, k: int, head: str | None = None) -> Answer:
    """Rank the model's catalogue for `user` by `head` (its name or position; None is the first).

    Raises:
        ServingError: the server does not answer, or not as a Freshet model.
        UserError: the model has no such head, or no videos.
    """
    names = client.heads()
    position = _position(head, names)
    candidates = client.catalogue(user)
    if not candidates.item_ids:
        raise UserError(f"{client.server}: version {candidates.version} has no videos to rank; train on logs with items")
    started = time.perf_counter()
    ranking = client.rank(candidates.user_ids, candidates.ids, k, position)
    latency_ms = 1000 * (time.perf_counter() - started)
    items = tuple(
        ScoredItem(candidates.item_ids[index], score)
        for index, score in zip(ranking.index.tolist(), ranking.scores.tolist(), strict=True)
    )
    return Answer(user, candidates.known, ranking.version, names[position], items, len(candidates.item_ids), latency_ms)


def _position(head: str | None, names: tuple[str, ...]) -> int:
    if head is None:
        return 0
    if head in names:
        return names.index(head)
    if head.isdecimal() and int(head) < len(names):
        return int(head)
    raise UserError(f"--head {head} is unknown: this model has {', '.join(names)} (or 0 to {len(names) - 1})")


def as_json(answer: Answer) -> str:
    """One JSON object: user, known, version, head, items [{item_id, score}], latency_ms."""
    return json.dumps(
        {
            "user": answer.user,
            "known": answer.known,
            "version": answer.version,
            "head": answer.head,
            "items": [{"item_id": item.item_id, "score": item.score} for item in answer.items],
            "latency_ms": round(answer.latency_ms, 3),
        },
        ensure_ascii=False,
    )


def print_table(answer: Answer) -> None:
    """The ranking as a table on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    user = escape(answer.user) + ("" if answer.known else " (not seen before)")
    table = Table(
        title=f"Next for {user}",
        caption=f"{answer.candidates:,} candidates, {answer.latency_ms:.1f} ms, version {answer.version}",
        min_width=_TABLE_WIDTH,
    )
    table.add_column("rank", justify="right")
    table.add_column("video")
    table.add_column(f"P({escape(answer.head)})", justify="right")
    for rank, item in enumerate(answer.items, start=1):
        table.add_row(str(rank), escape(item.item_id), f"{item.score:.4f}")
    Console().print(table)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(
        prog="python -m serving.rank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--server", required=True, metavar="HOST:PORT", help="the model server's gRPC address")
    add("--user", type=flags.text, required=True, metavar="U", help="user id, as in the logs; an unknown one is a new user")
    add("--k", type=flags.count, default=10, help="how many videos (default: %(default)s)")
    add("--head", help="rank by this head: its name or position (default: the model's first)")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add("--model_name", default="freshet", help="as the server was started with (default: %(default)s)")
    add("--timeout_s", type=flags.positive, default=5.0, help="deadline of each call (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print a user's ranking; 0 then. Raises UserError for what the user can put right."""
    args = parse_args(argv)
    with quiet_imports():
        from serving.client import RankClient
    with RankClient(args.server, args.model_name, args.timeout_s) as client:
        answer = ask(client, args.user, args.k, args.head)
    if args.json:
        print(as_json(answer))
    else:
        print_table(answer)
    return 0


if __name__ == "__main__":
    run_main(main)
