"""The results of an audit: one row a solver, one report a task, and all of them as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..report.page import passed_over

LEAK, CLEAN, INFORMATIVE, USELESS, ABSENT = "LEAK", "ok", "informative", "no use", "absent"


@dataclass(frozen=True)
class Row:
    """How one solver did on one task.

    Attributes:
        task: its name.
        solver: its name.
        kind: `cheat` or `cue`.
        chance: accuracy of a blind guess, in [0, 1], as all accuracies.
        accuracy: of the solver on the held-out samples; None where the task has nothing of the kind to see.
        low, high: 95 % interval of the accuracy.
        control: what a cheat is compared with: `chance`, `answer prior` or `shifted photographs`; None for a cue.
        control_accuracy: of the control on the same held-out samples.
        difference: accuracy - control_accuracy.
        difference_low, difference_high: 95 % interval of the difference, paired by sample.
        verdict: `LEAK` or `ok` for a cheat, `informative` or `no use` for a cue, `absent` where there is no accuracy.
    """

    task: str
    solver: str
    kind: str
    chance: float
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    control: str | None = None
    control_accuracy: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    verdict: str = ABSENT


@dataclass(frozen=True)
class Report:
    """What was found about one task.

    Attributes:
        task: its name.
        rows: one a solver.
        split: how many samples and photographs are in each half, whether some photographs are in both, and how many
            were passed over, by reason.
        solved: {leaking solver: numbers of the held-out samples it got most right}.
    """

    task: str
    rows: list[Row]
    split: dict
    solved: dict[str, list[int]] = field(default_factory=dict)


HEADER = ("task", "solver", "kind", "chance", "accuracy", "95 % interval", "control", "", "difference", "95 % interval")
RIGHT = {3, 4, 5, 7, 8, 9}  # columns of numbers, flush right


def table_text(reports: Sequence[Report]) -> str:
    """Returns all rows as an aligned table, and below it how each task was split."""
    lines = [(*HEADER, "verdict")]
    for row in (row for report in reports for row in report.rows):
        measured, compared = ("–", "–"), ("–", "", "–", "–")
        if row.accuracy is not None:
            measured = (f"{row.accuracy:.1%}", f"{row.low:.1%} to {row.high:.1%}")
        if row.control is not None:
            interval = f"{row.difference_low:+.1%} to {row.difference_high:+.1%}"
            compared = (row.control, f"{row.control_accuracy:.1%}", f"{row.difference:+.1%}", interval)
        lines.append((row.task, row.solver, row.kind, f"{row.chance:.1%}", *measured, *compared, row.verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'>' if k in RIGHT else '<'}{width}}}" for k, width in enumerate(widths))
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
