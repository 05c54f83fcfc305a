"""What all pages share: templates, embedded pictures, checks of output paths, tables of text.

A page is one HTML file that loads nothing from the network, has a light and a dark theme, and can be printed.
"""

from __future__ import annotations

import base64
import functools
import io
import os
import string
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import ConfigError

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str | Path, /, **values: Any) -> str:
    """Returns a page as HTML.

    Args:
        template: a file name in `templates/`, or the path of a template elsewhere, which may extend and include them.
        values: what the template uses. Text is escaped by the template.

    Raises:
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    folder, name = os.path.split(template)
    return _environment(folder).get_template(name).render(values)


@functools.cache
def _environment(folder: str) -> jinja2.Environment:
    import jinja2  # not needed before a page is written

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES] if folder else TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format  # {{ 0.25|number(".1%") }} is 25.0%
    return environment


@dataclass(frozen=True)
class Picture:
    """A picture for the macro `img` of `macros.html`.

    Attributes:
        url: the JPEG itself, as a data: URL.
        width: in pixels.
        height: in pixels.
    """

    url: str
    width: int
    height: int


def embed(image: Image.Image, quality: int = 92, longest_px: int | None = None) -> Picture:
    """Returns an image as JPEG, to be embedded in a page.

    Args:
        image: RGB.
        quality: of the JPEG, 1 to 95.
        longest_px: images with a longer side are shrunk to it; None keeps the size.
    """
    if longest_px is not None and max(image.size) > longest_px:
        image = image.copy()
        image.thumbnail((longest_px, longest_px))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/jpeg;base64,{data}", image.width, image.height)


# Contrast of text is 4.5 to 1 and more on both grounds. The policy makes "nothing from the network" a fact.
PAGE = string.Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ground: #faf9f7; --card: #fff; --mat: #f1efeb; --ink: #22211f; --soft: #6a6761;
 --line: #e2dfd8; --good: #1f6f56; --bad: #b83a26; --cue: #6b6b86; }
@media screen and (prefers-color-scheme: dark) { :root { --ground: #171716; --card: #20201e; --mat: #191918;
 --ink: #e9e7e2; --soft: #a5a29b; --line: #383632; --good: #74c7a8; --bad: #f08a75; --cue: #a9a9c9; } }
@media print { :root { color-scheme: light; --ground: #fff; --mat: #fff; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 80rem;
 margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; font-weight: 600; line-height: 1.25; letter-spacing: -.01em; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.5rem 0 .2rem; }
p { margin: 0 0 .8rem; max-width: 46rem; }
.soft { color: var(--soft); overflow-wrap: anywhere; }
figure { margin: 0; break-inside: avoid; }
pre { overflow-x: auto; }
$css
</style></head><body>
$body
$script</body></html>
""")


REPORT = """\
body { max-width: 70rem; }
h2 { padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
.plot { overflow-x: auto; } /* in a narrow window it is moved, not shrunk until nobody can read it */
svg { width: 100%; height: auto; min-width: 36rem; max-width: 56rem; }
svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
@media print { h2, h3 { break-after: avoid; } .plot { break-inside: avoid; }
 pre { font-size: 8.5px; white-space: pre-wrap; } } /* paper cannot be moved: 120 letters a line */
"""


def document(title: str, body: str, css: str = "", script: str = "") -> str:
    """Returns a page that needs no other file.

    Args:
        title: plain text.
        body: HTML; whoever makes it has escaped what is not his own.
        css: after the common rules, whose colours it uses: var(--ground), --card, --mat, --ink, --soft, --line, and
            --good, --bad, --cue for bars and verdicts.
        script: JavaScript, run once the body is there. Without it, or where it is switched off, all must be legible.
    """
    script = f"<script>\n{script}</script>\n" if script else ""
    return PAGE.substitute(title=escape(title), body=body, css=css, script=script)


def report(title: str, heading: str, about: str, parts: Sequence[str], table: str, css: str = "") -> str:
    """Returns a page of measurements: what was measured, its parts, then all numbers as the terminal has them.

    Args:
        title: plain text, as the heading and the table.
        heading: the question that is answered.
        about: HTML: what was measured, how to read it.
        parts: HTML.
        table: the terminal's.
        css: beside the rules for plots that such pages share.
    """
    body = f"<h1>{escape(heading)}</h1>\n<p>{about}</p>\n" + "\n".join(parts)
    return document(title, f"{body}\n<h2>All numbers</h2><pre>{escape(table)}</pre>", REPORT + css)


def plot(wide: int, tall: int, shapes: Sequence[str]) -> str:
    """Returns shapes as one SVG of so many units."""
    return f'<div class="plot"><svg viewBox="0 0 {wide} {tall}" role="img">{"".join(shapes)}</svg></div>'


def bar(
    left: int, wide: int, y: int, thick: int, share: float, interval: tuple[float, float], fill: str, words: str
) -> str:
    """Returns a bar of a share in [0, 1] with the whisker of its interval and words after it, in units of `plot`."""
    low, high = (left + wide * one for one in interval)
    return (
        f'<rect x="{left}" y="{y}" width="{wide * share:.1f}" height="{thick}" '
        f'style="fill:var(--{fill})" opacity=".75"/>'
        f'<path d="M{low:.1f} {y + thick // 2}H{high:.1f}" stroke="currentColor" stroke-width="2"/>'
        f'<text x="{high + 8:.1f}" y="{y + round(0.8 * thick)}">{escape(words)}</text>'
    )


def chance_line(left: int, wide: int, tall: int, chance: float) -> str:
    """Returns the dashed line at chance across all bars, named below them."""
    at = left + wide * chance
    return (
        f'<path d="M{at:.1f} 0V{tall - 18}" stroke="currentColor" stroke-dasharray="4 3"/>'
        f'<text x="{at:.1f}" y="{tall - 4}" text-anchor="middle">chance {chance:.1%}</text>'
    )


def picture(image: Image.Image, alt: str, quality: int = 92, longest_px: int | None = None) -> str:
    """Returns an <img> that holds the picture itself, as JPEG.

    Args:
        image: RGB.
        alt: plain text for those who do not see it.
        quality: of the JPEG, 1 to 95.
        longest_px: pictures with a longer side are shrunk to it; None keeps every pixel.
    """
    if longest_px is not None and max(image.size) > longest_px:
        image = image.copy()
        image.thumbnail((longest_px, longest_px))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" {size} alt="{escape(alt)}" loading="lazy">'


def flag_words(flags: Any) -> str:
    """Returns the flags that are not at their defaults as text: `--ssl_tasks rotation, --ssl_ratio 0.05`.

    Args:
        flags: flags with `changed() -> {name: value}`.
    """
    return ", ".join(f"--{name} {value}" for name, value in flags.changed().items())


def check_outputs(page: str, *others: str | None) -> None:
    """Checks that a page and other files can be written, before anything is computed.

    Raises:
        ConfigError: the page does not end in .html, or see `check_writable`.
    """
    if Path(page).suffix.lower() != ".html":
        raise ConfigError(f"-o {page}: must end in .html")
    check_writable(page, *others)


def check_writable(*paths: str | None) -> None:
    """Checks that files can be written. None is skipped.

    Raises:
        ConfigError: a folder is missing or not writable, a path exists and is not a regular file, or two paths are one
            file.
    """
    given = list(filter(None, paths))
    resolved = [Path(path).resolve() for path in given]
    for k, (path, file) in enumerate(zip(given, resolved, strict=True)):
        if file in resolved[:k]:
            raise ConfigError(f"{path} is named for two files, one of which would be lost")
        if not file.parent.is_dir():
            raise ConfigError(f"there is no folder {file.parent} for {path}")
        if file.exists() and not file.is_file():
            raise ConfigError(f"{path} exists and is not a regular file; name another one")
        try:
            with tempfile.TemporaryFile(dir=file.parent), file.open("ab") if file.exists() else nullcontext():
                pass
        except OSError as err:
            raise ConfigError(f"{path} cannot be written: {err.strerror}") from err


def passed_over(reasons: Mapping[str, int]) -> str:
    """Returns how many images were skipped and redrawn, by reason: `passed over: 3 unreadable, 2 near-grey`."""
    return "passed over: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())


def aligned(lines: list[tuple[str, ...]], left: int = 1) -> str:
    """Returns rows as a table for the terminal: the first `left` columns left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'<' if k < left else '>'}{width}}}" for k, width in enumerate(widths))
    return "\n".join(form.format(*line).rstrip() for line in lines)
