"""Task templates: sentences that occur in so many instructions that they say nothing about the picture.

L2T (arXiv 2503.22215) excludes high-frequency sentences of instructions from the loss; its threshold is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.arguments import option
from ...data.files import read_once, write_whole
from ...data.photos import fingerprint
from ...data.records import read_records, said
from ...data.strict import json_whole
from ...errors import ConfigError
from .sentences import count, spans

TOLD = 5  # mistakes of a file listed in an error
MIN_SHARE, MIN_COUNT = 0.001, 20  # of human turns; the paper does not give its values


@dataclass(frozen=True)
class Template:
    """A sentence that is a template, and the number of human turns that contain it (0 if not counted)."""

    sentence: str
    count: int = 0


@dataclass(frozen=True)
class Templates:
    """The templates of a corpus, most frequent first.

    Attributes:
        entries: the sentences.
        turns: number of human turns; 0 if not counted.
        about: the settings used to find them, as written to and read from a file.
    """

    entries: tuple[Template, ...]
    turns: int
    about: dict

    def sentences(self) -> frozenset[str]:
        """Returns the sentences without counts."""
        return frozenset(entry.sentence for entry in self.entries)

    def fingerprint(self) -> str:
        """Returns the number and hash of the sentences, independent of order and counts."""
        return fingerprint(sorted(self.sentences()))

    def as_json(self) -> str:
        """Returns the content of an editable file: settings first, then one line per template."""
        about = json.dumps({"about": {**self.about, "human_turns": self.turns}}, ensure_ascii=False, indent=1)
        lines = (
            json.dumps(
                {"count": entry.count, "share": round(entry.count / max(1, self.turns), 6), "sentence": entry.sentence},
                ensure_ascii=False,
            )
            for entry in self.entries
        )
        body = ",".join(f"\n  {line}" for line in lines)
        return f'{about[:-2]},\n "templates": [{body}\n ]\n}}\n'

    def table(self, shown: int = 20) -> str:
        """Returns a text table of the most frequent templates."""
        if not self.entries:
            return f"no sentence is a template ({self.turns:,} human turns)"
        lines = [f"{'count':>10}  {'share':>7}  sentence"]
        for one in self.entries[:shown]:
            lines.append(f"{one.count:>10,}  {one.count / max(1, self.turns):>7.2%}  {one.sentence}")
        more = len(self.entries) - shown
        return "\n".join(lines + ([f"… and {more:,} more"] if more > 0 else []))


def find(records: Sequence[dict], share: float, least: int) -> Templates:
    """Returns the sentences that occur in at least `share` of all human turns, and in at least `least` turns.

    Args:
        records: LLaVA records.
        share: above 0, at most 1.
        least: number of turns; in small sets it prevents templates by chance.
    """
    counter, turns = count(records)
    threshold = max(least, share * turns)
    found = [Template(sentence, times) for sentence, times in counter.items() if times >= threshold]
    found.sort(key=lambda one: (-one.count, one.sentence))
    return Templates(tuple(found), turns, {"min_share": share, "min_count": least})


def parse(text: str, where: str) -> Templates:
    """Returns the templates in a file's content, written by `vgift templates` or a plain list of sentences.

    Raises:
        ConfigError: the content is invalid; the file and the invalid entries are named.
    """
    try:
        content = json_whole(text)
    except ValueError as err:
        raise ConfigError(f"{where}: is no JSON: {err}") from err
    about = content.get("about", {}) if isinstance(content, dict) else {}
    entries = content.get("templates") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not isinstance(about, dict):
        raise ConfigError(
            f'{where}: must be {{"templates": [...]}} as `vgift templates` writes it, or a list of sentences'
        )
    found, mistakes = [], []
    for number, entry in enumerate(entries, 1):
        one = {"sentence": entry} if isinstance(entry, str) else entry
        sentence = one.get("sentence") if isinstance(one, dict) else None
        times = one.get("count", 0) if isinstance(one, dict) else 0
        if not isinstance(sentence, str) or type(times) is not int:
            mistakes.append(
                f'{where}: entry {number} is {shortened(entry)}, not {{"count": 7, "sentence": "…"}} or a sentence'
            )
        elif spans(sentence) != [(0, len(sentence))]:
            parts = [sentence[start:end] for start, end in spans(sentence)]
            mistakes.append(
                f"{where}: entry {number}, {sentence!r}, is not one sentence; write an entry each for {parts}"
            )
        else:
            found.append(Template(sentence, times))
    if len(mistakes) > TOLD:  # a corpus given by mistake would have hundreds of thousands
        mistakes[TOLD:] = [f"{where}: and {len(mistakes) - TOLD:,} more entries"]
    if mistakes:
        raise ConfigError.of(mistakes)
    turns = about.get("human_turns", 0)
    settings = {name: value for name, value in about.items() if name != "human_turns"}
    return Templates(tuple(found), turns if type(turns) is int else 0, settings)


def shortened(entry: object) -> str:
    """Returns an entry of a file in at most 81 characters."""
    text = repr(entry)
    return text if len(text) <= 80 else f"{text[:80]}…"


@read_once
def read(path: str) -> Templates:
    """Returns the templates of a file; see `parse`.

    Raises:
        ConfigError: it cannot be read, or is malformed.
    """
    try:
        return parse(Path(path).read_text(encoding="utf-8"), f"--instruct_templates {path}")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"--instruct_templates {path}: cannot be read: {err}") from err


@dataclass(frozen=True)
class FindTemplates:
    """`vgift templates`: find the task templates among the instructions, for --instruct_templates."""

    data_path: str = option(help="LLaVA records", metavar="JSON")
    output: str = option(help="templates.json", short="-o", metavar="FILE")
    min_share: float = option(
        MIN_SHARE, "a sentence in at least this share of all human turns is a template, above 0 to 1"
    )
    min_count: int = option(MIN_COUNT, "and in at least this many human turns")

    def run(self) -> str:
        """Writes the templates found in LLaVA records; returns text for the terminal.

        Raises:
            ConfigError: a flag or a path is not usable; nothing was written.
        """
        mistakes = []
        if not 0 < self.min_share <= 1:
            mistakes.append(
                f"--min_share {self.min_share:g}: must be above 0 and at most 1, a share of all human turns"
            )
        if self.min_count < 1:
            mistakes.append(f"--min_count {self.min_count}: must be at least 1")
        if mistakes:
            raise ConfigError.of(mistakes)
        if not Path(self.output).resolve().parent.is_dir():
            raise ConfigError(f"-o {self.output}: there is no folder {Path(self.output).resolve().parent}")
        records = read_records(self.data_path)
        for number, record in enumerate(records):
            turns = record.get("conversations", [])
            if not isinstance(turns, list) or not all(
                isinstance(turn, dict) and isinstance(said(turn), str) for turn in turns
            ):
                raise ConfigError(
                    f"--data_path {self.data_path}: record {number} has no turns like LLaVA's: {str(turns)[:80]}"
                )
        templates = find(records, self.min_share, self.min_count)
        try:
            write_whole(Path(self.output), templates.as_json().encode())
        except OSError as err:
            raise ConfigError(f"-o {self.output}: cannot be written: {err.strerror}") from err
        found = f"{len(templates.entries):,} templates of {templates.turns:,} human turns"
        return f"{templates.table()}\n{self.output}: {found}"
