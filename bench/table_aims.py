"""What the table is to reach in `bench.table`, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RATIOS = "min_ratio_vs_tfra"
_FLAT = 1.01  # an allocator gives or takes a page here and there


@dataclass(frozen=True)
class Aim:
    """A figure of the benchmark and its bound.

    Attributes:
        name: in the JSON line.
        text: what the figure is, for people.
        field: of the JSON line, which holds the figure; with a dot, of an object in it.
        bound: of the figure.
        most: whether the figure may be `bound` at most; otherwise at least.
    """

    name: str
    text: str
    field: str
    bound: float
    most: bool = True

    def figure(self, fields: Mapping[str, Any]) -> float | None:
        """Its figure in the JSON line's fields; None if it was not measured."""
        value: Any = fields
        for key in self.field.split("."):
            value = value.get(key) if value is not None else None
        return None if value is None else float(value)

    def met(self, figure: float) -> bool:
        """Whether a figure keeps to the bound; one that is no number does not."""
        return figure <= self.bound if self.most else figure >= self.bound


AIMS = (
    Aim("lookup_vs_tfra", "lookup: least ratio to TFRA's rate", f"{RATIOS}.lookup", 3.0, most=False),
    Aim("sgd_vs_tfra", "learn, SGD: least ratio to TFRA's rate", f"{RATIOS}.sgd", 4.0, most=False),
    Aim("adam_vs_tfra", "learn, Adam: least ratio to TFRA's rate", f"{RATIOS}.adam", 6.0, most=False),
    Aim("bytes_per_key", "resident bytes a live key, at most", "bytes_per_key", 100.0),
    Aim("insert_slowdown", "inserts: seconds of the last million to the first's", "insert_slowdown", 1.5),
    Aim("insert_rss_growth", "inserts: most RSS since the budget was reached to RSS then", "insert_rss_growth", _FLAT),
    Aim("learn_p99_over_p50", "learn() of 4,096 rows: p99 to the median", "learn_p99_over_p50", 3.0),
)


def verdicts(fields: Mapping[str, Any]) -> tuple[list[dict[str, object]], dict[str, dict[str, object]]]:
    """Each aim with its figure and whether it is met: rows of a table, and by the aim's name for the JSON line.

    Where an aim was not measured, since its part was left out or there are no peers, figure and verdict are None.
    """
    rows: list[dict[str, object]] = []
    by_name: dict[str, dict[str, object]] = {}
    for aim in AIMS:
        figure = aim.figure(fields)
        met = None if figure is None else aim.met(figure)
        of = f", {fields[RATIOS]['threads']} threads" if aim.field.startswith(RATIOS) and figure is not None else ""
        rows.append(
            {
                "aim": aim.text + of,
                "bound": f"{'<=' if aim.most else '>='} {aim.bound:g}",
                "figure": figure,
                "verdict": "not measured" if met is None else "met" if met else "NOT met",
            }
        )
        by_name[aim.name] = {"figure": figure, "at_most" if aim.most else "at_least": aim.bound, "met": met}
    return rows, by_name
