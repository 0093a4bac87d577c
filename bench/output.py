"""How every benchmark ends: a table for people, and as its last line one JSON object for programs."""

import json
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


def finish(rows: Sequence[Mapping[str, object]], fields: Mapping[str, float | int | str]) -> None:
    """Print `rows` as a table (columns are the first row's keys), then `fields` as one line of JSON."""
    table = Table()
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console().print(table)
    print(json.dumps(fields))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
