"""Finds the texts of a record in the host's tokens, to the character, for any template and tokenizer.

A text is enclosed in two private-use characters and sent through the host's text path; its position is where these come
out. Everything between the texts belongs to the template and is the same for all records of the same form. It is
determined once per form, so that the host need not encode each record twice. A record that is not exactly the template
filled with its texts is sent through the host individually.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from ...data.records import IMAGE, is_human, said
from ...errors import VgiftError
from ...hosts.token_text import ESCAPED, TokenText
from .sentences import Span

PRIVATE_USE = range(0xE000, 0xF900)
DROPPED, CHANGED = "left out by the template", "tokenised otherwise with marks around it"


class Unfit(VgiftError):
    """The instruction of a record cannot be supervised. Counted by `reason`; never shown to a user.

    Args:
        reason: a few words from a small set.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def whole(text: str) -> list[Span]:
    """Returns the spans of a text without `<image>`, trimmed of white space."""
    result, start = [], 0
    for part in text.split(IMAGE):
        bare = part.strip()
        if bare:
            first = start + part.index(bare)
            result.append((first, first + len(bare)))
        start += len(part) + len(IMAGE)
    return result


def solid(text: str) -> str:
    """Returns a text without white space, the only characters that templates and tokenizers add or strip."""
    return "".join(text.split())


def marked(record: dict, marks: Sequence[Sequence[Span]]) -> tuple[dict, str, str]:
    """Returns a copy with marks around spans of its texts, the opening mark and the closing mark.

    The marks are characters that do not occur in the record.

    Args:
        record: a LLaVA record; it is not changed.
        marks: for each turn its spans, in ascending order.
    """
    turns = record["conversations"]
    used = {character for turn in turns for character in said(turn) if character >= "\ue000"}
    opening, closing = islice((chr(code) for code in PRIVATE_USE if chr(code) not in used), 2)
    result = []
    for turn, places in zip(turns, marks, strict=True):
        text = said(turn)
        for start, end in reversed(places):
            text = f"{text[:start]}{opening}{text[start:end]}{closing}{text[end:]}"
        result.append({**turn, "value" if "value" in turn else "content": text})
    return {**record, "conversations": result}, opening, closing


def unmarked(text: str, opening: str, closing: str, expected: int) -> tuple[str, list[Span]]:
    """Returns a text without marks and white space, and the spans between the marks in it.

    Raises:
        Unfit: marks are missing or not in order.
    """
    pieces, places = [], []
    length = 0
    for number, part in enumerate(solid(text).split(opening)):
        inside, found, after = part.partition(closing)
        if bool(number) != bool(found) or closing in after:
            raise Unfit(CHANGED)
        if number:
            places.append((length, length + len(inside)))
        pieces += [inside, after]
        length += len(inside) + len(after)
    if len(places) != expected:
        raise Unfit(CHANGED if places else DROPPED)
    return "".join(pieces), places


class Layouts:
    """Finds the texts of records in the host's tokens.

    Args:
        encode: the host's text path, which returns the token ids of a record.
        texts: decodes token ids with the run's tokenizer.
    """

    def __init__(self, encode: Callable[[dict], list[int]], texts: TokenText):
        self.encode, self.texts = encode, texts
        self._between: dict[tuple, list[str] | None] = {}  # {form: text before, between and after the texts}

    def find(self, record: dict, marks: Sequence[Sequence[Span]], seen: str, cut_off: bool) -> list[Span]:
        """Returns the positions of a record's spans in the text of the host's tokens, counted without white space.

        Args:
            record: the record.
            marks: for each turn its spans, in ascending order.
            seen: the text of the host's tokens, without white space.
            cut_off: whether the host may have cut off the end.

        Raises:
            Unfit: the host's text does not match the record.
        """
        texts = [[said(turn)[start:end] for start, end in whole(said(turn))] for turn in record["conversations"]]
        between = self._template(record)
        if between is not None:
            inside = [solid(text) for some in texts for text in some]
            clean = "".join(part for pair in zip(between, inside, strict=False) for part in pair) + between[-1]
            if (size := _agrees(seen, clean, cut_off)) is not None:
                return _up_to(size, list(_placed(record, marks, between, inside)))
        twin, opening, closing = marked(record, marks)
        try:
            clean, places = unmarked(self.texts.text(self.encode(twin)), opening, closing, sum(map(len, marks)))
        except Unfit as unfit:
            asked = solid("".join(text for some, turn in zip(texts, record["conversations"], strict=True)
                                  if is_human(turn) for text in some))  # fmt: skip
            raise Unfit(CHANGED) if unfit.reason == DROPPED and asked in seen else unfit from None
        if (size := _agrees(seen, clean, cut_off)) is None:
            raise Unfit(CHANGED)
        return _up_to(size, places)

    def _template(self, record: dict) -> list[str] | None:
        """Returns the template's text around the texts of records of this form; None if it cannot be determined."""
        form = ("image" in record, "video" in record, *map(_form, record["conversations"]))
        if form not in self._between:
            marks = [whole(said(turn)) for turn in record["conversations"]]
            twin, opening, closing = marked(record, marks)
            try:
                clean, places = unmarked(self.texts.text(self.encode(twin)), opening, closing, sum(map(len, marks)))
            except Unfit:
                self._between[form] = None
            else:
                ends = [0, *(border for place in places for border in place), len(clean)]
                self._between[form] = [clean[ends[k] : ends[k + 1]] for k in range(0, len(ends), 2)]
        return self._between[form]


def _form(turn: dict) -> tuple:
    text = said(turn)
    return is_human(turn), turn.get("from", turn.get("role")), tuple(bool(part.strip()) for part in text.split(IMAGE))


def _agrees(seen: str, clean: str, cut_off: bool) -> int | None:
    """Returns the number of expected characters present; None if the text differs from what was expected."""
    if seen == clean:
        return len(seen)
    characters = seen.rstrip(ESCAPED)  # the cut may split a character
    return len(characters) if cut_off and clean.startswith(characters) else None


def _up_to(size: int, places: Sequence[Span]) -> list[Span]:
    return [(min(start, size), min(end, size)) for start, end in places]


def _placed(record: dict, marks: Sequence[Sequence[Span]], between: list[str], inside: list[str]):
    """Yields the marks, counted in non-white-space characters of the whole text."""
    at, number = len(between[0]), 0  # position and number of the next text
    for turn, places in zip(record["conversations"], marks, strict=True):
        text, rest = said(turn), list(places)
        for start, end in whole(text):
            while rest and rest[0][0] < end:
                first, last = rest.pop(0)
                before = at + len(solid(text[start:first]))
                yield before, before + len(solid(text[first:last]))
            at += len(inside[number]) + len(between[number + 1])
            number += 1
