"""The structure of training records: turns, texts and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import overload

from ..errors import ConfigError
from .strict import NESTED, require_text

IMAGE = "<image>"  # marks the place of the picture in a conversation
HUMAN = frozenset({"human", "user"})


def picture_name(record: dict) -> str | None:
    """Returns the name of a record's one picture, which forks may write as a list; None for none or several."""
    image = record.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    return image if isinstance(image, str) else None


def picture_names(record: dict) -> list[str]:
    """Returns the names of a record's pictures as they stand there; none, one or several."""
    image = record.get("image")
    return list(image) if isinstance(image, list) else [image] if image else []


def top_folder(name: str) -> str:
    """Returns the first folder of a relative path, which names the data set: `coco` for `coco/train2017/1.jpg`."""
    parts = [part for part in Path(name).parts if part != "."]
    return parts[0] if len(parts) > 1 and parts[0] not in ("..", "/") else ""


def why_not_one_picture(record: dict) -> str | None:
    """Returns why a record does not have exactly one picture and one `<image>` in its conversation; None if it does."""
    if not record.get("image"):
        return "no picture"
    if picture_name(record) is None:
        return "several pictures"
    turns = record.get("conversations")
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns
    ):
        return "no conversation"
    places = sum(turn["value"].count(IMAGE) for turn in turns)
    return None if places == 1 else f"{IMAGE} stands {places} times"


@overload
def read_records(data_path: str) -> list[dict]: ...
@overload
def read_records(data_path: str | None) -> list[dict] | None: ...
def read_records(data_path: str | None) -> list[dict] | None:
    """Returns the LLaVA records of a JSON file; None if no path is given.

    Raises:
        ConfigError: the file cannot be read, is not a list of records, or is empty.
    """
    if data_path is None:
        return None
    try:
        text = Path(data_path).read_text(encoding="utf-8")
        records = json.loads(text)
        require_text(text, records)
    except RecursionError:
        raise ConfigError(f"--data_path {data_path}: cannot be read: {NESTED}") from None
    except (OSError, ValueError) as err:
        raise ConfigError(f"--data_path {data_path}: cannot be read: {err}") from err
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ConfigError(f"--data_path {data_path}: is not a list of LLaVA records")
    if not records:
        raise ConfigError(f"--data_path {data_path}: holds no record")
    return records


def human_texts(record: dict) -> list[str]:
    """Returns the texts of a record's human turns; forks may use the keys `role` and `content`."""
    turns = record.get("conversations") or ()
    return [said(turn) for turn in turns if is_human(turn)]


def is_human(turn: dict) -> bool:
    """Returns whether a turn is the human's."""
    return turn.get("from", turn.get("role")) in HUMAN


def said(turn: dict) -> str:
    """Returns the text of a turn."""
    return turn.get("value", turn.get("content")) or ""


def has_picture(record: dict) -> bool:
    """Returns whether a record has a picture, by the keys that LLaVA and its forks check."""
    return "image" in record or "video" in record
