"""The results of the tower probe as a table and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vgift_plugin.report.page import aligned, render

TEMPLATE = Path(__file__).with_name("page.html")
FILLS = ("good", "cue")  # colours of the towers' bars


@dataclass(frozen=True)
class Row:
    """Accuracies of one tower under one condition, in [0, 1], with 95 % intervals."""

    tower: str
    condition: str
    severity: str
    linear: float
    linear_low: float
    linear_high: float
    knn: float
    knn_low: float
    knn_high: float


def _by_condition(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns {condition: its rows, one per tower}."""
    conditions: dict[str, list[Row]] = {}
    for row in rows:
        conditions.setdefault(row.condition, []).append(row)
    return conditions


def table_text(rows: Sequence[Row]) -> str:
    """Returns all rows as an aligned table, one line for each condition and tower."""
    lines = [("condition", "severity", "tower", "linear", "95 % interval", "kNN", "95 % interval")]
    for some in _by_condition(rows).values():
        for row in some:
            shown = [f"{row.linear:.1%}", f"{row.linear_low:.1%} to {row.linear_high:.1%}"]
            shown += [f"{row.knn:.1%}", f"{row.knn_low:.1%} to {row.knn_high:.1%}"]
            lines.append((row.condition, row.severity, row.tower, *shown))
    return aligned(lines, left=3)


def tower_page(rows: Sequence[Row], table: str, about: str, chance: float) -> str:
    """Returns the page: a group of bars per condition with one bar per tower, then the table."""
    names = dict.fromkeys(row.tower for row in rows)
    towers = dict(zip(names, FILLS, strict=False))  # one or two towers
    return render(TEMPLATE, towers=towers, conditions=_by_condition(rows), about=about, chance=chance, table=table)
