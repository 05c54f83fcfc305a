"""Sentences of instructions: their positions, and their counts in a corpus. Imports neither torch nor a host."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from tqdm import tqdm

from ...data.records import IMAGE, human_texts

ENDS = ".?!:。？！"
# Every alternative starts with one of a few characters: a look-behind would take four times as long.
BOUNDARY = re.compile(rf"[.?!:]\s+|[\r\n]+|[。？！]|{IMAGE}")

Span = tuple[int, int]


def spans(text: str) -> list[Span]:
    """Returns the sentences of a text as (start, end) in characters, without surrounding white space.

    A sentence ends at a line break, after `.`, `?`, `!` or `:` followed by white space, after their full-width forms,
    and at `<image>`: `<image>\\nWho is it? Answer: Ann.` has the sentences `Who is it?`, `Answer:`, `Ann.`
    """
    result, start = [], 0
    for end, after in [*_cuts(text), (len(text), len(text))]:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if start < end:
            result.append((start, end))
        start = after
    return result


def _cuts(text: str) -> Iterator[Span]:
    for match in BOUNDARY.finditer(text):
        at = match.start()
        yield at + (text[at] in ENDS), match.end()


def count(records: Sequence[dict], chunk: int = 20_000) -> tuple[Counter[str], int]:
    """Returns the number of human turns that contain each sentence, and the number of all human turns.

    Args:
        records: LLaVA records.
        chunk: number of records processed at once; equal texts among them are split only once.
    """
    counter: Counter[str] = Counter()
    turns, rest = 0, iter(records)
    with tqdm(total=len(records), desc="sentences of instructions", unit=" records", disable=None) as progress:
        while some := list(islice(rest, chunk)):
            texts = Counter(text for record in some for text in human_texts(record))
            turns += texts.total()
            _add(counter, texts.items())
            progress.update(len(some))
    return counter, turns


def _add(counter: Counter[str], texts: Iterable[tuple[str, int]]) -> None:
    get = counter.get
    for text, times in texts:
        for sentence in {text[start:end] for start, end in spans(text)}:
            counter[sentence] = get(sentence, 0) + times
