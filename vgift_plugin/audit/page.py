"""The page of an audit: one plot a task, samples that a leaking cheat got right, and all numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from ..methods.vgift.flags import Flags
from ..report.page import (
    bar,
    chance_line,
    flag_words,
    picture,
    plot,
    report,
)
from ..tasks.task import Sample
from .results import LEAK, Report, split_words
from .solvers import CHEAT, SOLVERS

FIGURE_PX = 240
STYLE = """\
.grid { grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
figure { font-size: .8rem; } figure img { width: 100%; height: 10rem; object-fit: contain; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; } dd { margin: 0; }
"""
READING = """A <em>cheat</em> sees nothing, or next to nothing, of what the picture shows, and must not beat its
control. A <em>cue</em> sees some of the content and may beat chance. The control of a cheat that sees no pixels is
chance, or the most frequent answer where that beats chance. The control of the JPEG grid is the same solver on samples
of the same photographs after each was shifted by a few pixels: the content stays, the grid begins anywhere. LEAK: the
95 % intervals of the accuracy and of its difference to the control begin above chance and above zero by more than the
threshold. Bars: accuracy on held-out photographs; whiskers: 95 % interval; dashed line: chance."""


def audit_page(n: int, flags: Flags, sections: Sequence[str], table: str) -> str:
    """Returns the page of n samples a task: the tasks' sections, then the terminal's table."""
    about = f"{escape(f'{n:,} samples a task with {flag_words(flags)}')}</p>\n<p>{READING}"
    seen = "".join(f"<dt>{escape(one.name)}</dt><dd>{escape(one.about)}</dd>" for one in SOLVERS)
    sections = [*sections, f"<section><h2>What each solver sees</h2><dl>{seen}</dl></section>"]
    return report("vgift audit", "What can be answered without looking?", about, sections, table, STYLE)


def section(found: Report, samples: Callable[[int], Sample]) -> str:
    """Returns a task's part of the page; samples of a leak are made again for it."""
    parts = [f"<h2>{escape(found.task)}</h2><p>{escape(split_words(found.split))}</p>{_bars(found)}"]
    for solver, numbers in found.solved.items():
        figures = "".join(_figure(samples(j)) for j in numbers)
        parts.append(f'<h3>Solved by {escape(solver)} alone</h3><div class="grid">{figures}</div>')
    return f"<section>{''.join(parts)}</section>"


def _bars(found: Report) -> str:
    """Returns one SVG: a bar and an interval a solver, and a dashed line at chance."""
    left, wide, high = 190, 600, 26
    tall = high * len(found.rows) + 24
    shapes = []
    for k, row in enumerate(found.rows):
        y = k * high + 6
        shapes.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(row.solver)}</text>')
        if row.accuracy is None:
            shapes.append(f'<text x="{left + 8}" y="{y + 13}">nothing of the kind to see</text>')
            continue
        fill = "bad" if row.verdict == LEAK else "good" if row.kind == CHEAT else "cue"
        words = f"{row.accuracy:.1%} {row.verdict}"
        if row.control is not None:
            words += f" (control {row.control_accuracy:.1%})"
        shapes.append(bar(left, wide, y, 16, row.accuracy, (row.low, row.high), fill, words))
    shapes.append(chance_line(left, wide, tall, found.rows[0].chance))
    return plot(left + wide + 230, tall, shapes)


def _figure(sample: Sample) -> str:
    words = f"{sample.response} ({sample.image.width}×{sample.image.height})"
    image = picture(sample.image, f"{sample.task} sample", quality=88, longest_px=FIGURE_PX)
    return f"<figure>{image}<figcaption>{escape(words)}</figcaption></figure>"
