"""One page that tells how a run went: AUC over time by arm, calibration, growth of the table, throughput, a guest's visit.

    python -m bench.report --metrics out/metrics.json --out out/report.html

The metrics are what `pipelines.train --metrics_json` wrote; the arms are in them if it had `--arms frozen,daily,hourly`. The
page is one file that needs no network, for light and dark, wide screens and narrow.
"""

import argparse
import json
from html import escape
from pathlib import Path
from string import Template

from bench import sections
from bench.figures import Metrics
from bench.story import Story
from schemas.files import replace_file
from schemas.process import CommandParser, UserError, run_main

_TEMPLATE = Path(__file__).with_name("report.html")
_FIGURES = frozenset(
    """actions arms bad_steps dead_letters duplicates evaluated_from_ms examples first_event_ms growth heads impressions late
    model_version newest_learned_ms table_bytes table_rows unmatched windows""".split()  # noqa: SIM905, a list of 18 would be as many lines
)


def render(metrics: Metrics, story: Story | None = None) -> str:
    """The page.

    Args:
        metrics: what `pipelines.train` wrote.
        story: of a demo, if there was one.

    Raises:
        KeyError: a figure is missing.
    """
    parts = (
        sections.freshness(metrics, story),
        sections.visit(story) if story else "",
        sections.calibration(metrics, story),
        sections.machine(metrics, story),
    )
    return Template(_TEMPLATE.read_text()).substitute(
        title=escape(story.wording.title if story else f"{metrics['examples']:,} examples"),
        headline=sections.headline(metrics),
        lead=sections.lead(metrics, story),
        cards=sections.cards(metrics, story),
        sections="\n".join(filter(None, parts)),
        footer=sections.footer(metrics),
    )


def write_report(metrics: Metrics, story: Story | None, out: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    page = render(metrics, story)
    try:
        replace_file(out, page)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give --out another file") from error


def read_metrics(path: Path) -> Metrics:
    """A metrics file.

    Raises:
        UserError: it is missing, holds something else, or lacks a figure, as one of an older version may.
    """
    remedy = "give the file that pipelines.train --metrics_json wrote"
    try:
        metrics = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as metrics ({error}): {remedy}") from error
    missing = _FIGURES - (metrics.keys() if isinstance(metrics, dict) else set())
    if missing:
        raise UserError(f"{path} has no {' or '.join(sorted(missing))}: {remedy}")
    return metrics


def main(argv: list[str] | None = None) -> int:
    """Write the page; 0 then."""
    parser = CommandParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--metrics", type=Path, required=True, metavar="FILE", help="what pipelines.train --metrics_json wrote")
    add("--guest", type=Path, metavar="FILE", help="guest.json of a demo, whose visit is told too")
    add("--out", type=Path, required=True, metavar="FILE.html", help="the page")
    args = parser.parse_args(argv)
    story = Story.read(args.guest) if args.guest is not None else None
    write_report(read_metrics(args.metrics), story, args.out)
    print(args.out)
    return 0


if __name__ == "__main__":
    run_main(main)
