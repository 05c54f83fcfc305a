"""Preference files: JSON lines with a header, then one row per image with a better and a worse description.

header {"vgift": "preferences", "version": 1, "template": the chat template, "model": ..., "settings": {...}}
row    {"id", "image": relative to the image folder, "prompt": "<image>\\n" and a neutral question, "chosen",
        "rejected", "branch": how the rejected one was made worse, "corruption": {...} or null,
        "prompt_ids": {"neutral", "preferred", "misleading" or null}, "sampling": {"temperature", "max_new_tokens",
        "seed"}, "cut_off": [chosen, rejected], "degenerate": null, or why the pair cannot be trained on}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.files import read_once
from ...data.records import IMAGE
from ...data.rows import inside
from ...data.strict import json_whole
from ...errors import ConfigError

KIND, VERSION = "preferences", 1
PROMPT, LOWRES, JITTER = BRANCHES = ("prompt", "lowres", "jitter")
EQUAL, EMPTY, CUT_OFF, MARKUP = DEGENERATE = ("equal", "empty", "cut off", "markup")
SHOWN = 5  # mistakes in an error; the count is complete


@dataclass(frozen=True)
class Preferences:
    """The content of a preference file.

    Attributes:
        header: its first line.
        rows: all other lines in order, including degenerate rows; see `usable`.
    """

    header: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def template(self) -> str:
        """The chat template used to generate the descriptions, which training must use too."""
        return self.header["template"]


def usable(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows that can be trained on, i.e. those that are not degenerate."""
    return [row for row in rows if row["degenerate"] is None]


@read_once
def read(path: str | Path) -> Preferences:
    """Returns the content of a preference file.

    Raises:
        ConfigError: it cannot be read, is not a preference file, or has invalid lines; file, line and value are named.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as err:
        raise ConfigError(f"{path}: cannot be read: {err}") from err
    while lines and not lines[-1].strip():
        lines.pop()
    mistakes: list[str] = []
    entries: list[dict[str, Any]] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json_whole(line)
            wrong = _mistakes(entry, HEADER if number == 1 else ROW)
        except ValueError as err:
            wrong = [f"is not JSON ({err}): {line!r:.80}"]
        if wrong and number == 1:
            raise ConfigError(
                f"{path} is no preference file of version {VERSION}, as `vgift stic prefer` writes them:\n"
                f"  line 1: {wrong[0]}"
            )
        if not wrong and number > 1 and lines_of.setdefault(entry["id"], number) != number:
            wrong = [f"id {entry['id']!r} stands on line {lines_of[entry['id']]} already"]
        elif not wrong and number > 1 and (why := _not_usable(entry)):
            wrong = [f"degenerate is null; with these responses it must be {why!r}"]
        mistakes += [f"line {number}: {one}" for one in wrong]
        if not wrong:
            entries.append(entry)
    if mistakes:
        more = [f"… and {len(mistakes) - SHOWN:,} more"] if len(mistakes) > SHOWN else []
        raise ConfigError(
            "\n  ".join([f"{path}: {len(mistakes):,} mistake{'s' * (len(mistakes) != 1)}:", *mistakes[:SHOWN], *more])
        )
    if len(entries) < 2:
        raise ConfigError(f"{path}: holds no {'row' if entries else 'line'}; was `vgift stic prefer` interrupted?")
    return Preferences(entries[0], entries[1:])


def _mistakes(entry: Any, checks: dict[str, tuple[Callable[[Any], bool], str]]) -> list[str]:
    if not isinstance(entry, dict):
        return [f"is not an object with names and values: {entry!r:.80}"]
    wrong = []
    for name, (good, wanted) in checks.items():
        if name not in entry:
            wrong.append(f"{name} is missing")
        elif not good(entry[name]):
            wrong.append(f"{name} is {entry[name]!r:.80}; it must be {wanted}")
    return wrong


def _not_usable(row: dict[str, Any]) -> str | None:
    """Returns why a row marked as usable cannot be trained on, judged by its texts; None if it can.

    LLaVA takes an image token in a response as a second picture, so later rows of the batch would get wrong pictures.
    """
    if row["degenerate"] is not None:
        return None
    texts = [" ".join(row[side].split()) for side in ("chosen", "rejected")]
    if not all(texts):
        return EMPTY
    if texts[0] == texts[1]:
        return EQUAL
    return MARKUP if any(IMAGE in text for text in texts) else None


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _prompt(value: Any) -> bool:
    return _text(value) and value.startswith(f"{IMAGE}\n") and value.count(IMAGE) == 1 and bool(value[8:].strip())


def _name(value: Any) -> bool:
    try:
        return bool(inside(value))
    except ValueError:
        return False


def _ids(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_whole(value.get(name)) for name in ("neutral", "preferred"))
        and (value.get("misleading", "absent") is None or _whole(value.get("misleading")))
    )


def _sampling(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("temperature"), int | float)
        and all(_whole(value.get(name)) for name in ("max_new_tokens", "seed"))
    )


def _two(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, bool) for one in value)


_words = (_text, "text")
HEADER = {
    "vgift": (lambda value: value == KIND, repr(KIND)),
    "version": (lambda value: value == VERSION and not isinstance(value, bool), str(VERSION)),
    "template": (lambda value: _text(value) and bool(value), "the name of a chat template"),
    "model": _words,
    "settings": (lambda value: isinstance(value, dict), "an object"),
}
ROW = {
    "id": (lambda value: _text(value) and bool(value), "text"),
    "image": (_name, "a path below the image folder"),
    "prompt": (_prompt, f"{IMAGE}, a line break and a question, with no other {IMAGE}"),
    "chosen": _words,
    "rejected": _words,
    "branch": (lambda value: value in BRANCHES, f"one of {', '.join(BRANCHES)}"),
    "corruption": (lambda value: value is None or isinstance(value, dict), "an object or null"),
    "prompt_ids": (_ids, "{neutral, preferred, misleading}, whole numbers, the last one or null"),
    "sampling": (_sampling, "{temperature, max_new_tokens, seed}, numbers"),
    "cut_off": (_two, "[true or false, true or false]"),
    "degenerate": (lambda value: value is None or value in DEGENERATE, f"null or one of {', '.join(DEGENERATE)}"),
}
