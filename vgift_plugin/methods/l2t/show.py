"""`vgift labels`: shows which tokens of some records are masked, learned as instruction, or learned as response."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Optional

from ...data.arguments import option
from ...data.files import write_whole
from ...data.records import read_records
from ...errors import ConfigError
from ...hosts import DEFAULT_HOST
from ...report.page import check_outputs, render
from .flags import L2TFlags

MASKED, INSTRUCTION, RESPONSE = "masked", "instruction", "response"
ANSI = {MASKED: "\033[2m{}\033[0m", INSTRUCTION: "\033[1;32m{}\033[0m", RESPONSE: "\033[1;34m{}\033[0m"}
PLAIN = {MASKED: "{}", INSTRUCTION: "⟦{}⟧", RESPONSE: "⟪{}⟫"}


@dataclass(frozen=True)
class Shown:
    """One record as tokens.

    Attributes:
        title: the record's id and its numbers of tokens by kind.
        tokens: (id, text, kind) of each token; a character made of several tokens is in the text of the first one.
    """

    title: str
    tokens: list[tuple[int, str, str]]


@dataclass(frozen=True, kw_only=True)
class ShowLabels(L2TFlags):
    """Show which tokens of some records are masked, learned as instruction, or learned as response.

    Pictures are not read, since no token depends on them.
    """

    UNUSED: ClassVar[tuple[str, ...]] = ("instruct_loss_weight",)
    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift labels --instruct_loss no_template --data_path mix.json \\\n"
        "      --model_name_or_path lmsys/vicuna-7b-v1.5 -n 5 -o labels.html"
    )

    data_path: str = option(help="LLaVA records", metavar="JSON")
    model_name_or_path: str = option(help="whose tokenizer", metavar="NAME")
    version: str = option("v1", "the chat template")
    model_max_length: int = option(2048, "tokens")
    n: int = option(5, "records, spread over the file", short="-n")
    output: Optional[str] = option(None, "also write a page (.html)", short="-o", metavar="FILE")

    def run(self) -> str:
        """See `show`."""
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        given = (self.data_path, self.model_name_or_path, self.n, self.version, self.model_max_length, self.output)
        return show(self, *given, color)


def show(
    flags: Any,
    data_path: str,
    llm: str,
    n: int,
    version: str,
    model_max_length: int,
    output: str | None,
    color: bool,
) -> str:
    """Returns some records as text for the terminal, and writes the page.

    Args:
        flags: an object or a mapping with the flags.
        data_path: LLaVA records.
        llm: name or folder of the model whose tokenizer is used.
        n: number of records, spread evenly over the file.
        version: the chat template.
        model_max_length: in tokens.
        output: the page, `.html`, or None.
        color: whether the text has ANSI colours.

    Raises:
        ConfigError: a flag or a path is invalid, or LLaVA is not installed; nothing was written.
    """
    given = L2TFlags.of(flags)
    if mistakes := given.mistakes():
        raise ConfigError.of(mistakes)
    if n < 1:
        raise ConfigError(f"-n {n}: at least one record")
    if output is not None:
        check_outputs(output)
    records = read_records(data_path)
    if not records:
        raise ConfigError(f"--data_path {data_path}: has no record")
    shown = list(_shown(given, data_path, llm, n, version, model_max_length))
    about = f"--instruct_loss {given.instruct_loss}, --version {version}, tokenizer {llm}; pictures were not read"
    marks = ANSI if color else PLAIN
    if output is not None:
        page = render("labels.html", about=about, records=[_boxes(one) for one in shown])
        write_whole(Path(output), page.encode())
    legend = " ".join(marks[kind].format(kind) for kind in (MASKED, INSTRUCTION, RESPONSE))
    told = [about, legend, *(f"\n{one.title}\n{_text(one, marks)}" for one in shown)]
    return "\n".join(told + ([f"\n{output}: {len(shown)} records"] if output else []))


def _shown(flags: L2TFlags, data_path: str, llm: str, n: int, version: str, model_max_length: int) -> Iterator[Shown]:
    try:
        from ...hosts.dataset import upstream_dataset
        from .training import UNLIMITED, instruction_labels

        base = upstream_dataset(data_path, "", llm, None, version=version, model_max_length=model_max_length)
    except OSError as err:  # raised by transformers, with a long message
        raise ConfigError(f"--model_name_or_path {llm}: has no tokenizer to be read: {err}") from err
    except ImportError as err:
        raise ConfigError(f"vgift labels shows what LLaVA makes of records, and {err.name} is not here") from err
    from ...hosts.token_text import TokenText

    host = DEFAULT_HOST
    records, tokenizer = host.records(base), base.tokenizer
    path = host.text_path(base, tokenizer, model_max_length)
    made = None
    if flags.instruct_loss != "none":
        unlimited = host.text_path(base, tokenizer, UNLIMITED)
        made = instruction_labels(flags, records, tokenizer, lambda k: path(records[k]), host, unlimited)
    pieces = TokenText(tokenizer)
    for k in sorted({k * len(records) // n for k in range(n)}):
        yield _record(k, records[k], path(records[k]), made and made[0], pieces)


def _record(k: int, record: dict, item: dict, labels: Any, pieces: Any) -> Shown:
    before = labels.tally.counts().get("instructions", {}) if labels else {}
    got = labels(item, record) if labels else item
    after = labels.tally.counts().get("instructions", {}) if labels else {}
    ids = item["input_ids"].tolist()
    text, places = pieces.read(ids)
    tokens, reached = [], 0
    for id, (start, end), was, now in zip(ids, places, item["labels"].tolist(), got["labels"].tolist(), strict=True):
        kind = RESPONSE if was != -100 else INSTRUCTION if now != -100 else MASKED
        tokens.append((id, "<image>" if id < 0 else text[max(start, reached) : end], kind))
        reached = max(reached, end)
    counts = {kind: sum(one == kind for *_, one in tokens) for kind in (MASKED, INSTRUCTION, RESPONSE)}
    picture = "a picture" if "image" in record else "no picture"
    why = [f"; instruction left out: {reason}" for reason in after if after[reason] != before.get(reason)]
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return Shown(f"record {k} (id {record.get('id')}, {picture}): {told}{''.join(why)}", tokens)


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() or one == "\n" else f"\\u{ord(one):04x}" for one in text)


def _text(shown: Shown, marks: dict[str, str]) -> str:
    runs = groupby(shown.tokens, key=lambda token: token[2])
    return "".join(marks[kind].format(_printable("".join(text for _, text, _ in run))) for kind, run in runs)


def _boxes(shown: Shown) -> tuple[str, list[tuple[int, str, str]]]:
    """Returns a record's title and tokens as shown on the page."""
    return shown.title, [(id, _printable(text).replace("\n", "↵\n"), kind) for id, text, kind in shown.tokens]
