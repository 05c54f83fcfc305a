"""Writes scripts/demo/samples.png, the picture of the README: samples of all registered tasks with their texts.

    python scripts/readme_picture.py

The photographs come from scikit-image.
"""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path

import skimage
from demo.data import PHOTOGRAPHS
from PIL import Image, ImageDraw

from vgift_plugin.data.shared_file import Tally
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.preview import sections
from vgift_plugin.tasks.drawing import font
from vgift_plugin.tasks.registry import task_names
from vgift_plugin.tasks.task import Sample

OUTPUT = Path(__file__).parent / "demo" / "samples.png"
COLUMNS, SAMPLES, CELL_PX, MARGIN_PX, LINE_PX = 4, 2, 320, 8, 16
LINE_CHARS = 46
MORE = ("hubble_deep_field.jpg", "retina.jpg", "ihc.png")  # same_scene needs eight
GREEN = "#2a7f62"


def main() -> None:
    """Writes the picture, with a heading and two samples for each task."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (*PHOTOGRAPHS, *MORE):
            (Path(folder) / name).symlink_to(Path(skimage.__file__).parent / "data" / name)
        flags = VgiftFlags(ssl_tasks=",".join(task_names()), ssl_seed=21)  # shows photographs with a clear top
        blocks = [
            ([heading(f"{title}   chance {task.chance:.1%}")], [cell(sample) for sample in samples])
            for title, task, samples in sections(flags, folder, None, SAMPLES, Tally())
        ]
    rows = []
    for first in range(0, len(blocks), COLUMNS // SAMPLES):
        beside = blocks[first : first + COLUMNS // SAMPLES]
        rows += [[image for part in parts for image in part] for parts in zip(*beside, strict=True)]
    heights = [max(image.height for image in row) for row in rows]
    canvas = Image.new("RGB", (COLUMNS * CELL_PX, sum(heights)), "white")
    for k, row in enumerate(rows):
        left = 0
        for image in row:
            canvas.paste(image, (left, sum(heights[:k])))
            left += image.width
    colors = canvas.quantize(256, Image.Quantize.FASTOCTREE)
    canvas.quantize(palette=colors).save(OUTPUT, optimize=True)


def heading(text: str) -> Image.Image:
    """Returns a heading as wide as the samples of a task."""
    image = Image.new("RGB", (SAMPLES * CELL_PX, 40), "white")
    ImageDraw.Draw(image).text((MARGIN_PX, 14), text, fill="black", font=font(17))
    return image


def cell(sample: Sample) -> Image.Image:
    """Returns an image of a sample, with instruction and response below its picture."""
    picture = sample.image.copy()
    picture.thumbnail((CELL_PX - 2 * MARGIN_PX, CELL_PX - 2 * MARGIN_PX), Image.Resampling.LANCZOS)
    lines = [part for line in sample.instruction.splitlines() for part in textwrap.wrap(line, LINE_CHARS)]
    top = picture.height + 14
    image = Image.new("RGB", (CELL_PX, top + LINE_PX * (len(lines) + 1) + 16), "white")
    image.paste(picture, ((CELL_PX - picture.width) // 2, MARGIN_PX))
    draw = ImageDraw.Draw(image)
    for k, line in enumerate(lines):
        draw.text((MARGIN_PX, top + k * LINE_PX), line, fill="black", font=font(11))
    draw.text((MARGIN_PX, top + len(lines) * LINE_PX + 2), sample.response, fill=GREEN, font=font(13))
    return image


if __name__ == "__main__":
    main()
