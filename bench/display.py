"""What the demo shows on a terminal: progress, what freshness is worth, and the guest's two lists."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.processes import Learning
from bench.story import LIKES, UPDATED, Answer, Moment, Story, Wording

_PLAIN_S = 5.0  # between lines where there is no terminal


class Display:
    """Writes to stdout; draws over its own lines only on a terminal."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def opening(self, wording: Wording, impressions: int) -> None:
        """What is about to happen."""
        self.console.print(
            f"[bold]Freshet[/] learns from {wording.title} as it streams: {impressions:,} impressions and what people did, "
            "then a guest.\n"
        )

    def closing(self, report: Path, seconds: float) -> None:
        """Where the report is."""
        self.console.print(f"Report: [bold]{escape(str(report))}[/]  ({seconds:.0f} s in all)", soft_wrap=True)

    @contextmanager
    def learning(self, impressions: int) -> Iterator["Bar"]:
        """A bar that fills as the stream's impressions are learned."""
        with self._bar("starting", impressions) as bar:
            yield bar

    @contextmanager
    def visiting(self) -> Iterator["Bar"]:
        """A bar that fills as the guest gives likes."""
        with self._bar("guest", LIKES) as bar:
            yield bar

    def arms(self, metrics: Mapping[str, Any], oracle_auc: float | None) -> None:
        """What freshness is worth: the arms, freshest first."""
        arms = metrics["arms"]
        print_ = self.console.print
        print_(
            f"[bold]Online against frozen[/], {arms['continuous']['count']:,.0f} impressions, each scored as of its request:"
        )
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("model", "updated", "AUC", "above frozen", "log loss", "calibration"):
            table.add_column(name, justify="left" if name in ("model", "updated") else "right", no_wrap=True)
        for name, updated in UPDATED.items():
            found = arms[name]
            gain = "" if name == "frozen" else _difference(found["auc"], arms["frozen"]["auc"])
            figures = (_number(found["auc"]), gain, _number(found["logloss"]), _number(found["calibration"], 3))
            table.add_row(name, updated, *figures, style="bold" if name == "continuous" else "")
        if oracle_auc is not None:
            table.add_row("oracle", "knows the odds", f"{oracle_auc:.4f}", style="dim")
        print_(table)

    def visit(self, story: Story) -> None:
        """The two lists side by side, and the seconds between."""
        visit, wording = story.visit, story.wording
        tag, before, after = escape(story.tag), visit.before, visit.after
        print_ = self.console.print
        print_(
            f"[bold]A guest nobody has met[/] asks over gRPC for the top {len(before.videos)} of {before.candidates:,} "
            f"{wording.video}s ({before.latency_ms:.0f} ms), likes {visit.likes} with [bold green]{tag}[/] "
            f"({visit.tagged:,} have it), and asks again:"
        )
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("", justify="right", style="dim", min_width=2)
        for title in (f"before, version {before.version}", f"{visit.seconds:.1f} s after, version {after.version}"):
            table.add_column(title, no_wrap=True, max_width=min(34, (self.console.width - 34) // 2))
            table.add_column(f"P({story.head})", justify="right", no_wrap=True, min_width=len(story.head) + 3)
        for place in range(max(len(before.videos), len(after.videos))):
            table.add_row(str(place + 1), *_cells(before, place, visit.tag), *_cells(after, place, visit.tag))
        print_(table)
        print_(
            f"  {wording.video}s with [bold green]{tag}[/] in the top {len(before.videos)}: "
            f"[bold]{before.with_tag(visit.tag)} before, {after.with_tag(visit.tag)} after[/]"
        )
        if visit.others:
            print_(
                f"  the same for {visit.others} regular users at these moments: "
                f"{visit.others_before:.1f} and {visit.others_after:.1f} on average"
            )
        print_(
            f"  after the last like: learned in {visit.learned_s:.1f} s, "
            f"served and in the guest's top {len(after.videos)} in [bold]{visit.seconds:.1f} s[/]\n"
        )

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator["Bar"]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<8}"),
            BarColumn(24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
        )
        if not self.console.is_terminal:
            yield Bar(self.console, None, total)
            return
        with Progress(*columns, console=self.console) as progress:
            progress.add_task(description, total=total, text="")
            yield Bar(self.console, progress, total)


class Bar:
    """A bar being drawn, or a line now and then."""

    def __init__(self, console: Console, progress: Progress | None, total: int) -> None:
        self._console, self._progress, self._total = console, progress, total
        self._due = 0.0

    def total(self, impressions: int) -> None:
        """How many there are to learn, once that is known."""
        self._total = impressions
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], total=impressions)

    def learned(self, learning: Learning) -> None:
        """How far training has come."""
        if not learning.examples:
            self._show("starting", 0, "training and serving start, kernels are compiled")
            return
        text = f"{learning.examples:>7,} examples  {learning.examples_per_s:>6,.0f}/s"
        text += f"  AUC {learning.auc:.4f}" if learning.auc is not None else ""
        self._show("learning", min(learning.examples, self._total), f"{text}  {learning.table_rows:,} rows")

    def done(self) -> None:
        """All there is to learn has been, but for a step that is not full."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=self._total)

    def liked(self, tag: str, moment: Moment) -> None:
        """One of the guest's questions."""
        text = f"{moment.likes} likes of {tag}  version {moment.version}  {moment.with_tag} of the top 10"
        self._show("guest", moment.likes, text)

    def _show(self, description: str, completed: int, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description=description, completed=completed, text=escape(text))
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + _PLAIN_S
            self._console.print(f"{description}: {' '.join(text.split())}", markup=False)


def _cells(answer: Answer, place: int, tag: str) -> tuple[str, str]:
    if place >= len(answer.videos):
        return "", ""
    video = answer.videos[place]
    tags = " ".join(f"[bold green]{escape(each)}[/]" if each == tag else f"[dim]{escape(each)}[/]" for each in video.tags)
    return f"{escape(video.name)} {tags}", f"{video.score:.3f}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _difference(value: float | None, other: float | None) -> str:
    return "-" if value is None or other is None else f"{value - other:+.4f}"
