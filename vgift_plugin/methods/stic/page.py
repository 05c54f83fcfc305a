"""`vgift preview --preferences`: the pairs of a preference file, side by side, what differs marked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from typing import Any

from ...data.files import write_whole
from ...data.photos import open_photo
from ...errors import ConfigError, UnsuitableImage
from ...report.page import check_outputs, document, picture
from .corruption import corrupt
from .prefer import report
from .preferences import BRANCHES, IMAGE, Preferences, read

SHOWN_PX = 360
STYLE = """\
body { max-width: 86rem; }
.counts td, .counts th { text-align: right; padding: .1rem 1.2rem .1rem 0; font-weight: normal; }
.counts th { color: var(--soft); } .counts :first-child { text-align: left; }
article { border: 1px solid var(--line); border-radius: 8px; background: var(--card); margin: 1.25rem 0; padding: 1rem;
 break-inside: avoid; }
h2 { margin: 0 0 .8rem; overflow-wrap: anywhere; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem; }
img { display: block; max-width: 100%; height: auto; background: var(--mat); }
.tiny img { width: 100%; image-rendering: pixelated; } /* as large as the clean one */
h3 { font-size: 1rem; margin: .8rem 0 .3rem; } .chosen h3 { color: var(--good); } .rejected h3 { color: var(--bad); }
.said { white-space: pre-line; overflow-wrap: anywhere; }
mark { color: inherit; background: none; text-decoration: underline 2px; text-underline-offset: 3px; }
.chosen mark { text-decoration-color: var(--good); } .rejected mark { text-decoration-color: var(--bad); }
.kept-out { color: var(--bad); }
"""


def preview_preferences(path: str, image_folder: str, n: int, output: str, others: Sequence[str]) -> str:
    """Writes the page.

    Args:
        path: what `vgift stic prefer` wrote.
        image_folder: what its photographs are relative to.
        n: how many pairs of each branch are shown; all are counted.
        output: the page, `.html`.
        others: flags that were given and have no place here.

    Returns:
        one line for the terminal.

    Raises:
        ConfigError: the file, a path or a flag is wrong, or a photograph cannot be read; nothing was written.
    """
    mistakes = [f"--{name} has no place beside --preferences" for name in others]
    mistakes += [f"-n {n}: at least one pair"] if n < 1 else []
    mistakes += [] if Path(image_folder).is_dir() else [f"--image_folder {image_folder}: there is no such folder"]
    if mistakes:
        raise ConfigError.of(mistakes)
    check_outputs(output)
    found = read(path)
    chosen = [row for branch in BRANCHES for row in [row for row in found.rows if row["branch"] == branch][:n]]
    articles = "\n".join(_article(row, image_folder, path) for row in chosen)
    body = f"<h1>What the model is to prefer</h1>{_about(found, path)}{articles}"
    write_whole(Path(output), document("vgift preview", body, STYLE).encode())
    counts = Counter(row["branch"] for row in chosen)
    shown = ", ".join(f"{counts[branch]} {branch}" for branch in BRANCHES)
    return f"{output}: {shown}, of {len(found.rows):,} pairs"


def _about(found: Preferences, path: str) -> str:
    told = report(found.rows, {})
    why = Counter(told["degenerate"].values())
    kept = ", ".join(f"{reason} {count:,}" for reason, count in why.most_common()) or "none"
    lines = "".join(
        f"<tr><td>{branch}</td><td>{one['rows']:,}</td><td>{one['usable']:,}</td>"
        + "".join(f"<td>{count:.0f}</td>" for count in one["words"] or ())
        + "</tr>"
        for branch, one in told["branches"].items()
    )
    heads = ("made worse by", "pairs", "usable", "words preferred", "words dispreferred")
    return (
        f'<p class="soft">{escape(path)}: {told["rows"]:,} pairs by {escape(found.header["model"])}, chat template '
        f"{escape(found.template)}. {told['usable']:,} can be learned from; kept out: {kept}. Both descriptions are "
        "trained on the clean picture and the neutral question. What only one of them says is underlined.</p>"
        f'<table class="counts"><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>{lines}</table>'
    )


def _article(row: dict[str, Any], folder: str, path: str) -> str:
    name = row["image"]
    try:
        image = open_photo(os.path.join(folder, name), upright=False)
        worse = None if row["corruption"] is None else corrupt(image, row["corruption"])
    except (UnsuitableImage, ValueError) as err:
        raise ConfigError(f"{path}: {name} in --image_folder {folder}: {err}") from err
    shown = f"<div>{picture(image, name, longest_px=SHOWN_PX)}</div>"
    if worse is not None:
        wide = round(image.width * min(1, SHOWN_PX / max(image.size)))
        small = f"{name}, made worse"
        shown += f'<div class="tiny" style="width:{wide}px">{picture(worse, small, longest_px=SHOWN_PX)}</div>'
    ids = row["prompt_ids"]
    how = f"misleading question {ids['misleading']}" if worse is None else _words(row["corruption"])
    good, bad = marked(row["chosen"], row["rejected"])
    out = f'<p class="kept-out">kept out of training: {row["degenerate"]}</p>' if row["degenerate"] else ""
    neutral = escape(row["prompt"].replace(IMAGE, "").strip())
    return (
        f'<article><h2>{escape(name)}</h2>{out}<p class="soft">{neutral}</p>'
        f'<div class="pictures">{shown}</div><div class="pair">'
        f'<div class="chosen"><h3>preferred</h3><div class="said">{good}</div></div>'
        f'<div class="rejected"><h3>dispreferred: {escape(row["branch"])}, {escape(how)}</h3>'
        f'<div class="said">{bad}</div></div></div></article>'
    )


def _words(params: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items() if name != "kind")


def marked(chosen: str, rejected: str) -> tuple[str, str]:
    """Returns both texts as HTML, the words that only one of them has in <mark>."""
    left, right = (text.split(" ") for text in (chosen, rejected))
    parts: tuple[list[str], list[str]] = [], []
    for kind, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for side, words in zip(parts, (left[a:b], right[c:d]), strict=True):
            if words:
                said = escape(" ".join(words))
                side.append(said if kind == "equal" else f"<mark>{said}</mark>")
    return tuple(" ".join(side) for side in parts)
