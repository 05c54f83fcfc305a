"""Strict JSON and YAML: duplicate keys, which most parsers resolve silently, are errors."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NESTED = "is nested too deeply"


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return result


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_decoder = json.JSONDecoder(object_pairs_hook=_unique)


def json_value(text: str, start: int = 0) -> tuple[Any, int]:
    """Returns the JSON value that begins at `start`, and where it ends.

    Raises:
        ValueError: it is not JSON, has a duplicate key, or is nested too deeply.
    """
    try:
        value, end = _decoder.raw_decode(text, start)
    except RecursionError:
        raise ValueError(NESTED) from None
    require_text(text[start:end], value)
    return value, end


def require_text(text: str, value: Any) -> None:
    """Raises ValueError if a value, parsed from JSON text, has a string that is no text: half of a surrogate pair."""
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
        except UnicodeEncodeError as err:
            raise ValueError(
                f"it holds half of a surrogate pair, {err.object[err.start]!r}, which is no text"
            ) from None


def json_whole(text: str) -> Any:
    """Returns the JSON value of a text that holds nothing else; see `json_value`."""
    value, end = json_value(text, len(text) - len(text.lstrip()))
    if text[end:].strip():
        raise ValueError(f"there is more text after the JSON value: {text[end:].strip()!r:.60}")
    return value


def read_settings(path: str | Path) -> Any:
    """Returns the content of a settings file: JSON if its name ends in `.json`, YAML otherwise.

    Raises:
        OSError, ValueError: it cannot be read, is malformed, has a duplicate key, or is nested too deeply.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json_whole(text)
    return _yaml(text)


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # of `<<: *anchor`
            names = [str(self.construct_object(key, deep=True)) for key in own]
            if len(set(names)) < len(names):
                raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as err:
        raise ValueError(" ".join(str(err).split())) from err
    except RecursionError:
        raise ValueError(NESTED) from None
