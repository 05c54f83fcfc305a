"""The gallery page: one tab per task, samples filtered by answer, pictures at full size."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...report.page import embed, render
from ...tasks.catalogue import summary
from ...tasks.task import Params, Sample, Task

Section = tuple[str, Task, list[Sample]]  # title, task, samples
MAX_BUTTONS, MAX_BUTTON_CHARS = 12, 16  # above either, a search field filters the answers


def gallery(sections: Sequence[Section], about: str) -> str:
    """Returns the page as HTML.

    Args:
        sections: the samples, one tab per section.
        about: one sentence on where the samples come from.
    """
    return render("gallery.html", about=about, sections=[_section(*section) for section in sections])


def _section(title: str, task: Task, samples: list[Sample]) -> dict[str, Any]:
    answers = [sample.response for sample in samples]
    return {
        "id": "-".join(re.findall(r"\w+", title)),  # `color, published` becomes color-published
        "title": title,
        "about": summary(type(task)),
        "chance": task.chance,
        "height": max((sample.image.height for sample in samples), default=0),
        "buttons": _buttons(answers),
        "example": answers[0].split(", ")[0][:MAX_BUTTON_CHARS] if answers else "",
        "figures": [_figure(sample) for sample in samples],
    }


def _buttons(answers: list[str]) -> list[tuple[str, int]]:
    """Returns the distinct answers with their counts, numbers first; empty if they are too many or too long."""
    counts = Counter(answers)
    if len(counts) > MAX_BUTTONS or any(len(answer) > MAX_BUTTON_CHARS for answer in counts):
        return []
    ordered = sorted(counts, key=lambda answer: (not answer.isdecimal(), answer.zfill(MAX_BUTTON_CHARS)))
    return [(answer, counts[answer]) for answer in ordered]


def _figure(sample: Sample) -> dict[str, Any]:
    names = " + ".join(Path(source).name for source in sample.sources)
    redrawn = f", {sample.redraws} passed over before" if sample.redraws else ""
    return {
        "picture": embed(sample.image),
        "instruction": sample.instruction,
        "response": sample.response,
        "origin": f"{names} → {sample.image.width}×{sample.image.height}{redrawn}",
        "details": "\n".join([*sample.sources, one_a_line(sample.params)]),
    }


def one_a_line(params: Params) -> str:
    """Returns parameters as JSON with one key per line, so that lists of points stay short."""
    lines = (f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in params.items())
    return "{\n" + ",\n".join(lines) + "\n}"
