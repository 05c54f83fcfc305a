"""The gallery: the very samples that training would see, before they are trusted. Needs neither LLaVA nor torch."""

from __future__ import annotations

import base64
import io
import json
import string
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw

from .config import Flags
from .drawing import font, test_card
from .errors import ConfigError, UnsuitableImage
from .mixing import Tally
from .registry import get_task, task_names
from .seeding import generator
from .sources import read_records
from .streams import find_replay, streams
from .task import Sample, Task

Section = tuple[str, Task, list[Sample]]  # title, task, samples

PAGE = string.Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>vgift preview</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --mark: #2a7f62; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--soft); }
figure img { display: block; width: 100%; height: 18rem; object-fit: contain; background: #8882; }
figcaption { padding: .7rem .9rem; }
.ask { white-space: pre-line; }
.answer { font-weight: 600; color: var(--mark); }
.from, details { font-size: .8rem; opacity: .8; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; }
</style></head><body>
<h1>Self-supervised samples</h1>
<p>$about</p>
$sections
</body></html>
""")


def sections(flags: Flags, image_folder: str, data_path: str | None, n: int, tally: Tally) -> Iterator[Section]:
    """Yields the first n published samples of each task, then of each task asked for its first n samples of epoch 0, as
    training would have them."""
    if n < 1:
        raise ConfigError(f"-n {n}: at least one sample")
    asks = flags.resolve()
    if not flags.wanted:
        raise ConfigError(f"--ssl_tasks is missing; known tasks: {', '.join(task_names())}")
    records = read_records(data_path)
    replay = find_replay(flags, records or (), image_folder)
    if replay is not None:
        for task, positions in replay.positions():
            places = positions[:n].tolist()
            yield f"{task.name}, published", task, [replay.sample(place, records[place]) for place in places]
    for stream in streams(flags, asks, records, image_folder, replay):
        yield stream.task.name, stream.task, [stream(0, j, tally) for j in range(n)]


def preview(flags: dict, image_folder: str, data_path: str | None, n: int, output: str) -> str:
    """Writes the gallery.

    Args:
        flags: {flag: value} as given.
        image_folder: images, searched recursively; with `data_path`, what its paths are relative to.
        data_path: LLaVA records whose images are used, or None for all images in the folder.
        n: samples of each task.
        output: `.html` for one self-contained page, `.png` for one sheet.

    Returns:
        one line for the terminal.

    Raises:
        ConfigError: a flag, a path or the ending of `output` is wrong; nothing was written.
    """
    suffix = Path(output).suffix.lower()
    if suffix not in (".html", ".png"):
        raise ConfigError(f"-o {output}: must end in .html or .png")
    if not Path(output).resolve().parent.is_dir():
        raise ConfigError(f"-o {output}: there is no folder {Path(output).resolve().parent}")
    tally = Tally()
    shown = list(sections(Flags.of(flags), image_folder, data_path, n, tally))
    if suffix == ".html":
        Path(output).write_text(_page(shown, Flags.of(flags)), encoding="utf-8")
    else:
        sheet(shown).save(output)
    redrawn = sum(count for reasons in tally.counts().values() for count in reasons.values())
    words = f"{redrawn} unsuitable image{'s' * (redrawn != 1)} passed over"
    drawn = ", ".join(f"{len(samples)} {title}" for title, _, samples in shown)
    return f"{output}: {drawn} ({words})"


def _page(shown: list[Section], flags: Flags) -> str:
    parts = []
    for title, task, samples in shown:
        figures = "".join(map(_figure, samples))
        head = f"{escape(title)} <small>chance {task.chance:.2%}</small>"
        parts.append(f'<section><h2>{head}</h2><div class="grid">{figures}</div></section>')
    given = {name: value for name, value in flags.as_dict().items() if value is not None}
    about = "The first samples of epoch 0, as training sees them, with " + escape(
        ", ".join(f"--{name} {value}" for name, value in given.items())
    )
    return PAGE.substitute(about=about, sections="\n".join(parts))


def _figure(sample: Sample) -> str:
    buffer = io.BytesIO()
    sample.image.save(buffer, "JPEG", quality=92)
    picture = base64.b64encode(buffer.getvalue()).decode()
    width, height = sample.image.size
    redrawn = f", {sample.redraws} passed over before" if sample.redraws else ""
    return (
        f'<figure><img src="data:image/jpeg;base64,{picture}" alt="{escape(sample.task)} sample">'
        f'<figcaption><div class="ask">{escape(sample.instruction)}</div>'
        f'<div class="answer">{escape(sample.response)}</div>'
        f'<div class="from">{escape(" + ".join(sample.sources))} → {width}×{height}{redrawn}</div>'
        f"<details><summary>drawn parameters</summary><pre>{escape(json.dumps(sample.params))}</pre></details>"
        "</figcaption></figure>"
    )


def sheet(shown: list[Section], columns: int = 4, cell_px: int = 320) -> Image.Image:
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


def describe_tasks(markdown: bool = False) -> str:
    """Returns every task with what it needs, chance level, knobs and one sample, for the terminal or as a table."""
    kinds = [get_task(name) for name in task_names()]
    if markdown:
        rows = ["| task | what it is | images | chance | knobs (default) |", "|---|---|---|---|---|"]
        for kind in kinds:
            knobs = ", ".join(f"`{name}` ({json.dumps(default)})" for name, (default, _) in kind.knobs().items())
            rows.append(f"| `{kind.name}` | {_summary(kind)} | {kind.images} | {kind().chance:.2%} | {knobs} |")
        return "\n".join(rows)
    return "\n\n".join(map(_described, kinds))


def _summary(kind: type[Task]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _described(kind: type[Task]) -> str:
    task = kind()
    lines = [f"{kind.name}   needs {kind.images} image{'s' * (kind.images > 1)}, chance {task.chance:.2%}"]
    lines += textwrap.wrap(_summary(kind), 100, initial_indent="  ", subsequent_indent="  ")
    lines.append("  knobs, set in --ssl_config:")
    for name, (default, help) in kind.knobs().items():
        lines.append(f"    {name + ' = ' + json.dumps(default):<28} {help}")
    lines.append("  a sample:")
    try:
        params = task.draw(generator(0, "tasks", kind.name), [test_card()] * kind.images)
        instruction, response = task.ask(params)
        lines.append(textwrap.indent(f"{instruction}\n→ {response}", "    "))
    except UnsuitableImage as unsuitable:
        lines.append(f"    (the built-in picture does not suit it: {unsuitable.reason})")
    return "\n".join(lines)


def flag_table() -> str:
    """Returns the training flags as the README's table."""
    rows = ["| flag | default | what it does |", "|---|---|---|"]
    for flag in fields(Flags):
        default = "" if flag.default is None else f"`{flag.default}`"
        rows.append(f"| `--{flag.name}` | {default} | {flag.metadata['help']} |")
    return "\n".join(rows)
