"""The page of `vgift audit`: a bar chart for each task, samples that a leaking solver got right, all numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..methods.vgift.flags import VgiftFlags
from ..report.page import embed, flag_words, render
from ..tasks.task import Sample
from .results import LEAK, Report, Row, split_words
from .solvers import CHEAT, SOLVERS

PICTURE_PX = 240
Section = dict[str, Any]  # a task's values in the template


def audit_page(n: int, flags: VgiftFlags, sections: Sequence[Section], table: str) -> str:
    """Returns the page.

    Args:
        n: number of samples of each task.
        flags: the audit's flags.
        sections: see `section`.
        table: all numbers.
    """
    about = f"{n:,} samples a task with {flag_words(flags)}"
    solvers = {solver.name: solver.about for solver in SOLVERS}
    return render("audit.html", about=about, tasks=sections, solvers=solvers, table=table)


def section(found: Report, samples: Callable[[int], Sample]) -> Section:
    """Returns a task's part of the page.

    Args:
        found: the task's results.
        samples: returns a sample by its number; samples that a leaking solver got right are painted again.
    """
    return {
        "name": found.task,
        "split": split_words(found.split),
        "chance": found.rows[0].chance,
        "bars": [_bar(row) for row in found.rows],
        "solved": {solver: [_figure(samples(j)) for j in numbers] for solver, numbers in found.solved.items()},
    }


def _bar(row: Row) -> dict[str, Any]:
    absent, control = row.accuracy is None, ""
    if row.control is not None:
        control = f" (control {row.control_accuracy:.1%})"
    return {
        "label": row.solver,
        "share": row.accuracy,
        "low": row.low,
        "high": row.high,
        "fill": "bad" if row.verdict == LEAK else "good" if row.kind == CHEAT else "cue",
        "text": "nothing of the kind to see" if absent else f"{row.accuracy:.1%} {row.verdict}{control}",
    }


def _figure(sample: Sample) -> dict[str, Any]:
    return {
        "picture": embed(sample.image, quality=88, longest_px=PICTURE_PX),
        "alt": f"{sample.task} sample",
        "text": f"{sample.response} ({sample.image.width}×{sample.image.height})",
    }
