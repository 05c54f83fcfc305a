"""What `vgift tower-probe` found, as a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vgift_plugin.report.page import aligned, bar, chance_line, plot, report

FILLS = ("good", "cue")  # of the towers' bars


@dataclass(frozen=True)
class Row:
    """How one tower did under one condition: accuracies in [0, 1] with their 95 % intervals."""

    tower: str
    condition: str
    severity: str
    linear: float
    linear_low: float
    linear_high: float
    knn: float
    knn_low: float
    knn_high: float


def _ordered(rows: Sequence[Row]) -> tuple[list[str], dict[str, list[Row]]]:
    """Returns the towers, and the rows of each condition in that order."""
    towers = list(dict.fromkeys(row.tower for row in rows))
    conditions: dict[str, list[Row]] = {}
    for row in rows:
        conditions.setdefault(row.condition, []).append(row)
    return towers, conditions


def table_text(rows: Sequence[Row]) -> str:
    """Returns all rows as an aligned table: a line for each condition and tower."""
    lines = [("condition", "severity", "tower", "linear", "95 % interval", "kNN", "95 % interval")]
    for some in _ordered(rows)[1].values():
        for row in some:
            shown = [f"{row.linear:.1%}", f"{row.linear_low:.1%} to {row.linear_high:.1%}"]
            shown += [f"{row.knn:.1%}", f"{row.knn_low:.1%} to {row.knn_high:.1%}"]
            lines.append((row.condition, row.severity, row.tower, *shown))
    return aligned(lines, left=3)


def tower_page(rows: Sequence[Row], table: str, about: str, chance: float) -> str:
    """Returns the page."""
    towers, conditions = _ordered(rows)
    legend = " ".join(f'<b style="color:var(--{FILLS[k]})">■</b> {escape(name)}' for k, name in enumerate(towers))
    reading = f"Bars: accuracy of the linear probe; whiskers: 95 % interval; dashed line: chance. {legend}"
    about = f"{escape(about)}</p>\n<p>{reading}"
    plot = _plot(conditions, len(towers), chance)
    return report("vgift tower-probe", "What do the features tell apart?", about, [plot], table)


def _plot(conditions: dict[str, list[Row]], towers: int, chance: float) -> str:
    """Returns one SVG: a group of bars for each condition, one bar a tower, and a dashed line at chance."""
    left, wide, each = 190, 600, 14
    high = each * towers + 10
    tall = high * len(conditions) + 24
    shapes: list[Any] = []
    for k, (name, some) in enumerate(conditions.items()):
        middle = k * high + high / 2
        shapes.append(f'<text x="{left - 8}" y="{middle + 4:.0f}" text-anchor="end">{escape(name)}</text>')
        for t, row in enumerate(some):
            y, interval = k * high + 5 + t * each, (row.linear_low, row.linear_high)
            shapes.append(bar(left, wide, y, each - 2, row.linear, interval, FILLS[t], f"{row.linear:.1%}"))
    shapes.append(chance_line(left, wide, tall, chance))
    return plot(left + wide + 80, tall, shapes)
