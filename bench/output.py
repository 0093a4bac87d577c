"""How every benchmark ends: a table for people, and as its last line one JSON object for programs."""

import json
import math
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from schemas.process import UserError


def finish(rows: Sequence[Mapping[str, object]], fields: Mapping[str, object]) -> None:
    """Print `rows` as a table (columns are the first row's keys), then `fields` as one line of JSON.

    Raises:
        UserError: a field is None or not finite: there was too little to measure.
    """
    show(rows)
    missing = [name for name, value in fields.items() if _unmeasured(value)]
    if missing:
        raise UserError(f"nothing was measured for {', '.join(missing)}: give the benchmark more to work on")
    print(json.dumps(fields))


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Print `rows` as a table; its columns are the first row's keys."""
    table = Table()
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    # Into a file or a pipe, where rich would fall back to 80 columns, rows stay on one line.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _unmeasured(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
