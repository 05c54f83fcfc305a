"""The sheet: samples and their words as one picture, to be pasted somewhere."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ...tasks.drawing import font
from ...tasks.task import Sample, Task


def sheet(shown: Sequence[tuple[str, Task, list[Sample]]], columns: int = 4, cell_px: int = 320) -> Image.Image:
    """Returns all samples on one white sheet, task after task, row by row, with their words below them."""
    rows = []
    for title, task, samples in shown:
        text = f"{title}   chance {task.chance:.1%}"
        head = Image.new("RGB", (max(cell_px, 16 + int(font(17).getlength(text))), 40), "white")
        ImageDraw.Draw(head).text((8, 14), text, fill="black", font=font(17))
        rows.append([head])
        rows += [
            [_cell(sample, cell_px) for sample in samples[start : start + columns]]
            for start in range(0, len(samples), columns)
        ]
    heights = [max(cell.height for cell in row) for row in rows]
    width = max(cell_px * max(map(len, rows)), *(row[0].width for row in rows))
    canvas = Image.new("RGB", (width, sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            canvas.paste(cell, (column * cell_px, top))
        top += height
    return canvas


def _cell(sample: Sample, width: int, most_lines: int = 8) -> Image.Image:
    """Returns one sample with its words below it, as high as they need."""
    picture = sample.image.copy()
    picture.thumbnail((width - 16, width - 16), Image.Resampling.LANCZOS)
    lines = [part for line in sample.instruction.splitlines() for part in textwrap.wrap(line, 46)]
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], "…"]
    below, line_px = picture.height + 14, 16
    cell = Image.new("RGB", (width, below + line_px * (len(lines) + 1) + 16), "white")
    cell.paste(picture, ((width - picture.width) // 2, 8))
    draw = ImageDraw.Draw(cell)
    for k, line in enumerate(lines):
        draw.text((8, below + k * line_px), line, fill="black", font=font(11))
    draw.text((8, below + len(lines) * line_px + 2), sample.response, fill="#2a7f62", font=font(13))
    return cell
