"""`vgift stic describe`: writes LLaVA records with the model's own description of the picture before the question."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...data.arguments import option
from ...data.jobs import FileJob
from ...data.photos import fingerprint, first_readable
from ...data.records import IMAGE, picture_name, read_records, why_not_one_picture
from ...data.seeding import generator, permute
from ...errors import ConfigError
from ...hosts.checkpoint import Checkpoint
from .asking import Asking, listed
from .prefer import SEEDS, cut_off_hint, degenerate, open_chosen
from .prompts import NEUTRAL, described, with_image

TOO_LONG = "too long"  # with its description, for the model's context, so answers would be cut off


@dataclass(frozen=True, kw_only=True)
class Describe(Asking):
    """Write LLaVA records with the model's own description of the picture before the question.

    The records are the first n, in a seeded order, of those with one readable picture. The model describes the picture
    (prompted by one of the neutral questions), and the description is inserted between image token and question; the
    answers do not change. If a description is empty, cut off, contains a marker of the template, or makes the record
    too long, the record is written unchanged, counted and listed. Ranks and interruptions are handled as in `Prefer`.
    """

    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift stic describe --model_path CKPT --data_path mix.json --image_folder DIR -n 5000 \\\n"
        "      -o described.json\n\n"
        "Run it again to go on after an interruption; run it under torchrun to share the work between GPUs."
    )

    data_path: str = option(help="LLaVA records, of which some are taken", metavar="JSON")

    def run(self) -> str:
        """Returns a summary for the terminal.

        Raises:
            ConfigError: a setting, a path or the checkpoint is not usable, or it was begun with other settings.
        """
        found, device, load = self.find()
        records = read_records(self.data_path)
        fit, of_no_use = candidates(records)
        if not fit:
            why = "; ".join(f"{reason}: {count:,}" for reason, count in of_no_use.items())
            raise ConfigError(
                f"--data_path {self.data_path}: none of its {len(records):,} records can be described ({why})"
            )
        worked_on = {"records": fingerprint(map(json.dumps, records))}
        settings = self.settings(found, device, worked_on, (*NEUTRAL, described("", "")))

        def choose() -> tuple[list[int], dict[str, str]]:
            order = (fit[permute(k, len(fit), self.seed, "stic", "records")] for k in range(len(fit)))
            chosen, passed_over = first_readable(
                ((k, f"{self.image_folder}/{picture_name(records[k])}") for k in order), self.n
            )
            told = {_named(records, k): reason for k, reason in passed_over.items()}
            if not chosen:
                raise ConfigError(f"--image_folder {self.image_folder}: no picture can be used{listed('found', told)}")
            return chosen, told

        with FileJob(self.output, settings) as job:
            chosen, passed_over = job.agree("list", choose)

            def compute(block: range) -> list[dict[str, Any]]:
                positions = [chosen[k] for k in block]
                return write(load(), self.image_folder, positions, [records[k] for k in positions], **self.sampling)

            items = job.complete("descriptions", len(chosen), compute, block_size=self.batch_size)
            if items is None:
                return job.left("descriptions", len(chosen))
            made, as_it_was, words = [], {}, []
            for k, item in zip(chosen, items, strict=True):
                if item["as_it_was"]:
                    made.append(records[k])
                    as_it_was[_named(records, k)] = item["as_it_was"]
                else:
                    made.append(with_description(records[k], item["description"]))
                    words.append(len(item["description"].split()))
            told: dict[str, Any] = {
                "records": len(made),
                "described": len(words),
                "words": float(np.mean(words)) if words else None,
            }
            told |= {"as_they_were": as_it_was, "passed_over": passed_over, "of_no_use": of_no_use}
            job.write(json.dumps(made, indent=1) + "\n", told)
        return f"{self.output}: {summary(told, self.n)}"


def candidates(records: Sequence[dict]) -> tuple[list[int], dict[str, int]]:
    """Returns the positions of the records that can be described, and {reason: number of other records}."""
    reasons = [_unfit(record) for record in records]
    counts = Counter(reason for reason in reasons if reason is not None)
    return [k for k, reason in enumerate(reasons) if reason is None], dict(counts)


def _unfit(record: dict) -> str | None:
    if (reason := why_not_one_picture(record)) is not None:
        return reason
    turns = record["conversations"]
    if [turn.get("from") for turn in turns] != [("human", "gpt")[k % 2] for k in range(len(turns))] or len(turns) % 2:
        return "turns are not human and gpt in alternation"
    return None if IMAGE in turns[0]["value"] else f"{IMAGE} is not in the first question"


def _named(records: Sequence[dict], position: int) -> str:
    """Returns text that identifies a record by position, since ids may repeat in mixtures."""
    record = records[position]
    return f"record {position} (id {record.get('id')}): {picture_name(record)}"


def write(
    checkpoint: Checkpoint,
    folder: str,
    positions: Sequence[int],
    records: Sequence[dict],
    seed: int,
    temperature: float,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """Returns for each {"description", "prompt": index in NEUTRAL, "as_it_was": why it stays unchanged, or null}."""
    drawn = []
    for position in positions:
        rng = generator(seed, "stic", "describe", position)
        drawn.append((int(rng.integers(len(NEUTRAL))), int(rng.integers(SEEDS))))
    pictures = [open_chosen(folder, picture_name(record) or "") for record in records]
    items = [checkpoint.item(picture, NEUTRAL[k]) for picture, (k, _) in zip(pictures, drawn, strict=True)]
    replies = checkpoint.replies(items, max_new_tokens, temperature, [own for _, own in drawn])
    rows = []
    for record, picture, (prompt, _), reply in zip(records, pictures, drawn, replies, strict=True):
        reason = degenerate(checkpoint, reply)
        if reason is None and not checkpoint.fits(checkpoint.encode(with_description(record, reply.text), picture)):
            reason = TOO_LONG
        rows.append({"description": reply.text, "prompt": prompt, "as_it_was": reason})
    return rows


def with_description(record: dict, description: str) -> dict:
    """Returns a copy of a record with the description in front of its first question."""
    record = copy.deepcopy(record)
    first = record["conversations"][0]
    first["value"] = with_image(described(description, first["value"].replace(IMAGE, "").strip()))
    return record


def summary(told: dict[str, Any], n: int) -> str:
    """Returns a report for the terminal."""
    few = f" (of {n:,} asked for: no more have one picture that can be read)" if told["records"] < n else ""
    words = "" if told["words"] is None else f" in {told['words']:.0f} words on average"
    lines = f"{told['records']:,} records{few}, {told['described']:,} of them described{words}"
    if told["of_no_use"]:
        lines += "\nrecords of no use here: "
        lines += ", ".join(f"{reason} {count:,}" for reason, count in told["of_no_use"].items())
    lines += listed("chosen, and written as they were", told["as_they_were"])
    lines += cut_off_hint(told["as_they_were"].values(), told["records"])
    return lines + listed("pictures passed over", told["passed_over"])
