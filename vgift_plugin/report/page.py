"""Functions shared by all pages: templates, embedded pictures, checks of output paths, text tables.

A page is one HTML file that loads nothing from the network, has a light and a dark theme, and can be printed.
"""

from __future__ import annotations

import base64
import functools
import io
import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
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
        template: a file name in `templates/`, or the path of another template, which may extend and include those.
        values: the template's variables. Text is escaped by the template.

    Raises:
        jinja2.UndefinedError: the template uses a variable that is not given.
    """
    folder, name = os.path.split(template)
    page = _environment(folder).get_template(name).render(values)
    return page.encode(errors="backslashreplace").decode()  # file names need not be valid text


@functools.cache
def _environment(folder: str) -> jinja2.Environment:
    import jinja2  # only needed to write a page

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
        url: the JPEG, as a data: URL.
        width: in pixels.
        height: in pixels.
    """

    url: str
    width: int
    height: int


def embed(image: Image.Image, quality: int = 92, longest_px: int | None = None) -> Picture:
    """Returns an image as JPEG for embedding in a page.

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


def flag_words(flags: Any) -> str:
    """Returns the flags that differ from their defaults as text: `--ssl_tasks rotation, --ssl_ratio 0.05`.

    Args:
        flags: flags with `changed() -> {name: value}`.
    """
    return ", ".join(f"--{name} {value}" for name, value in flags.changed().items())


def check_outputs(page: str, *others: str | None) -> None:
    """Checks that a page and other files can be written.

    Raises:
        ConfigError: the page does not end in .html; or see `check_writable`.
    """
    if Path(page).suffix.lower() != ".html":
        raise ConfigError(f"-o {page}: must end in .html")
    check_writable(page, *others)


def check_writable(*paths: str | None) -> None:
    """Checks that files can be written. None is skipped.

    Raises:
        ConfigError: a folder is missing or not writable, a path exists and is not a regular file, or two paths name
            the same file.
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
    """Returns text on how many images were skipped, by reason: `passed over: 3 unreadable, 2 near-grey`."""
    return "passed over: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())


def aligned(lines: list[tuple[str, ...]], left: int = 1) -> str:
    """Returns rows as a text table with the first `left` columns left-aligned and the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'<' if k < left else '>'}{width}}}" for k, width in enumerate(widths))
    return "\n".join(form.format(*line).rstrip() for line in lines)
