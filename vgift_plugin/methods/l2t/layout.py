"""Where the texts of a record stand in what the host makes of it, to the character, for any template and tokenizer.

Two private-use characters are set around a text and sent through the host's own text path: where they come out, there
it is. What then lies between the texts is the template's, the same for all records of the same form. It is learned once
a form, so that the host need not word and tokenise each record twice; a record that is not exactly the template with
its texts in the gaps is sent through the host by itself.
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
    """This record's instruction cannot be supervised; `reason` is what is counted. Never reaches a user.

    Args:
        reason: a few words out of a small set.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def whole(text: str) -> list[Span]:
    """Returns where a text lies besides the picture's place, without white space around it."""
    result, start = [], 0
    for part in text.split(IMAGE):
        bare = part.strip()
        if bare:
            first = start + part.index(bare)
            result.append((first, first + len(bare)))
        start += len(part) + len(IMAGE)
    return result


def solid(text: str) -> str:
    """Returns a text without white space: templates and tokenizers add and strip it, and no other character."""
    return "".join(text.split())


def marked(record: dict, marks: Sequence[Sequence[Span]]) -> tuple[dict, str, str]:
    """Returns the record with spans of its texts set between two characters that stand nowhere in it.

    Args:
        record: a LLaVA record; it is not changed.
        marks: of each turn, in order, spans in ascending order.
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
        Unfit: not all marks came back, each pair after the other.
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
    """Finds the texts of records in what the host made of them.

    Args:
        encode: the host's text path: turns a record into its token ids.
        texts: of the run's tokenizer.
    """

    def __init__(self, encode: Callable[[dict], list[int]], texts: TokenText):
        self.encode, self.texts = encode, texts
        self._between: dict[tuple, list[str] | None] = {}  # {form: what stands before, between and after the texts}

    def find(self, record: dict, marks: Sequence[Sequence[Span]], seen: str, cut_off: bool) -> list[Span]:
        """Returns where spans of a record stand in what the host made of it, counted without white space.

        Args:
            record: the record.
            marks: of each turn, spans in ascending order.
            seen: the text of the host's tokens, without white space.
            cut_off: whether the host may have left out its end.

        Raises:
            Unfit: the record does not come out as it went in.
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
        """Returns what the template puts around the texts of records of this form; None where that cannot be told."""
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
    """Returns how many characters of what was expected are there; None where others are."""
    if seen == clean:
        return len(seen)
    characters = seen.rstrip(ESCAPED)  # the cut may go through the middle of one
    return len(characters) if cut_off and clean.startswith(characters) else None


def _up_to(size: int, places: Sequence[Span]) -> list[Span]:
    return [(min(start, size), min(end, size)) for start, end in places]


def _placed(record: dict, marks: Sequence[Sequence[Span]], between: list[str], inside: list[str]):
    """Yields the marks, counted in characters of the whole that are no white space."""
    at, number = len(between[0]), 0  # where the next text begins, and which it is
    for turn, places in zip(record["conversations"], marks, strict=True):
        text, rest = said(turn), list(places)
        for start, end in whole(text):
            while rest and rest[0][0] < end:
                first, last = rest.pop(0)
                before = at + len(solid(text[start:first]))
                yield before, before + len(solid(text[first:last]))
            at += len(inside[number]) + len(between[number + 1])
            number += 1
