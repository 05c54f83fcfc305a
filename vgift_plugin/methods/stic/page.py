"""`vgift stic preview`: shows the pairs of a preference file side by side, with the differences marked."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, ClassVar

from ...data.arguments import option
from ...data.files import write_whole
from ...data.photo import open_photo
from ...errors import ConfigError, UnsuitableImage
from ...report.page import check_outputs, embed, render
from .corruption import corrupt
from .prefer import report
from .preferences import BRANCHES, IMAGE, Preferences, read

MAX_PX = 360
Segment = tuple[str, str]  # EQUAL or DIFFERENT, text
EQUAL, DIFFERENT = "equal", "different"


@dataclass(frozen=True, kw_only=True)
class PreviewPairs:
    """Show the pairs of a preference file side by side, with the differences marked."""

    EXAMPLE: ClassVar[str] = "example:\n  vgift stic preview prefs.jsonl --image_folder DIR -n 4 -o pairs.html"

    preferences: str = option(help="a file of `vgift stic prefer`", positional=True, metavar="FILE")
    image_folder: str = option(help="what its image paths are relative to", metavar="DIR")
    n: int = option(12, "pairs of each branch", short="-n")
    output: str = option(help="the page, .html", short="-o", metavar="FILE")

    def run(self) -> str:
        """See `preview_preferences`."""
        return preview_preferences(self.preferences, self.image_folder, self.n, self.output)


def preview_preferences(path: str, image_folder: str, n: int, output: str) -> str:
    """Writes the page.

    Args:
        path: a file written by `vgift stic prefer`.
        image_folder: the folder that its image paths are relative to.
        n: number of pairs shown per branch; the counts are over all pairs.
        output: the page, `.html`.

    Returns:
        one line for the terminal.

    Raises:
        ConfigError: the file or a path is invalid, or an image cannot be read; nothing was written.
    """
    mistakes = [f"-n {n}: at least one pair"] if n < 1 else []
    mistakes += [] if Path(image_folder).is_dir() else [f"--image_folder {image_folder}: there is no such folder"]
    if mistakes:
        raise ConfigError.of(mistakes)
    check_outputs(output)
    found = read(path)
    chosen = [row for branch in BRANCHES for row in [row for row in found.rows if row["branch"] == branch][:n]]
    page = render(
        "preferences.html", path=path, pairs=[_pair(row, image_folder, path) for row in chosen], **_counts(found)
    )
    write_whole(Path(output), page.encode())
    counts = Counter(row["branch"] for row in chosen)
    shown = ", ".join(f"{counts[branch]} {branch}" for branch in BRANCHES)
    return f"{output}: {shown}, of {len(found.rows):,} pairs"


def _counts(found: Preferences) -> dict[str, Any]:
    counts = report(found.rows, {})
    reasons = Counter(counts["degenerate"].values())
    return {
        "counts": counts,
        "kept_out": ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common()) or "none",
        "model": found.header["model"],
        "chat_template": found.template,
    }


def _pair(row: dict[str, Any], folder: str, path: str) -> dict[str, Any]:
    name, params = row["image"], row["corruption"]
    try:
        image = open_photo(os.path.join(folder, name), upright=False)
        corrupted = None if params is None else embed(corrupt(image, params), longest_px=MAX_PX)
    except (UnsuitableImage, ValueError) as err:
        raise ConfigError(f"{path}: {name} in --image_folder {folder}: {err}") from err
    chosen, rejected = marked(row["chosen"], row["rejected"])
    return {
        "image": name,
        "question": row["prompt"].replace(IMAGE, "").strip(),
        "degenerate": row["degenerate"],
        "clean": embed(image, longest_px=MAX_PX),
        "corrupted": corrupted,
        "branch": row["branch"],
        "how": f"misleading question {row['prompt_ids']['misleading']}" if params is None else _words(params),
        "chosen": chosen,
        "rejected": rejected,
    }


def _words(params: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items() if name != "kind")


def marked(chosen: str, rejected: str) -> tuple[list[Segment], list[Segment]]:
    """Returns both texts as segments of equal and different words; segments are joined by a space.

    `a cat sat` and `a dog sat` give [(equal, a), (different, cat), (equal, sat)], and the same with dog.
    """
    left, right = chosen.split(" "), rejected.split(" ")
    segments: tuple[list[Segment], list[Segment]] = [], []
    for tag, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for side, words in zip(segments, (left[a:b], right[c:d]), strict=True):
            if words:
                side.append((EQUAL if tag == "equal" else DIFFERENT, " ".join(words)))
    return segments
