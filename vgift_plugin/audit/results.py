"""What an audit found: a row a solver, a report a task, and all of it as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..report.page import passed_over

LEAK, CLEAN, INFORMATIVE, USELESS, ABSENT = "LEAK", "ok", "informative", "no use", "absent"


@dataclass(frozen=True)
class Row:
    """How one solver did on one task: accuracies in [0, 1]; None where there was nothing of the kind to see."""

    task: str
    solver: str
    kind: str
    chance: float
    accuracy: float | None
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Report:
    """What was found about one task.

    Attributes:
        rows: one a solver.
        split: how many samples and photographs are in each half, whether some are in both, and how many photographs
            were passed over, by reason.
        solved: {leaking solver: numbers of the held-out samples it got most right}.
    """

    task: str
    rows: list[Row]
    split: dict
    solved: dict[str, list[int]] = field(default_factory=dict)


def table_text(reports: Sequence[Report]) -> str:
    """Returns all rows as an aligned table, and below it how each task was split."""
    lines = [("task", "solver", "kind", "chance", "accuracy", "95 % interval", "verdict")]
    for row in (row for report in reports for row in report.rows):
        numbers = ("–", "–")
        if row.accuracy is not None:
            numbers = (f"{row.accuracy:.1%}", f"{row.low:.1%} to {row.high:.1%}")
        lines.append((row.task, row.solver, row.kind, f"{row.chance:.1%}", *numbers, row.verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'>' if k in (3, 4, 5) else '<'}{width}}}" for k, width in enumerate(widths))  # numbers right
    aligned = [form.format(*line).rstrip() for line in lines]
    return "\n".join([*aligned, *(f"{report.task}: {split_words(report.split)}" for report in reports)])


def split_words(split: dict) -> str:
    """Returns a task's split as one line."""
    per = f", {split['items']} items each" if split["items"] > 1 else ""
    passed = f"; {passed_over(split['passed_over'])}" if split.get("passed_over") else ""
    apart = "none in both halves" if split["photographs_apart"] else "too few to keep the halves apart"
    return (
        f"{split['train']:,} samples to learn from, {split['test']:,} held out{per}; "
        f"{split['photographs']:,} photographs, {apart}{passed}"
    )
