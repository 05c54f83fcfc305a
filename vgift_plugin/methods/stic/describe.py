"""`vgift stic describe`: LLaVA records with the model's own description of their picture before the question."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Optional

import numpy as np

from ...data.arguments import option
from ...data.files import write_whole
from ...data.photos import fingerprint
from ...data.records import IMAGE, picture_name, read_records, why_not_one_picture
from ...data.seeding import generator, permute
from ...errors import ConfigError
from ...hosts.checkpoint import Checkpoint
from .prefer import SEEDS, cut_off_hint, degenerate, open_chosen
from .prompts import NEUTRAL, described, with_image
from .work import Asking, first_readable, listed, write_report

TOO_LONG = "too long"  # with its description, for the model's context: answers would be cut off


def describe(
    model_path: str,
    data_path: str,
    image_folder: str,
    output: str,
    *,
    model_base: str | None = None,
    n: int = 5000,
    temperature: float = 0.2,
    max_new_tokens: int = 1024,
    seed: int = 0,
    batch_size: int = 8,
    device: str | None = None,
    conv_mode: str | None = None,
) -> str:
    """Writes LLaVA records with descriptions, a JSON list that upstream's own script trains on, and a report beside it.

    The records are the first n, in a seeded order, of those with one picture that can be read. The picture is described
    (one of the neutral questions), and the description stands between image token and question; answers stay. Where a
    description is empty, cut off, holds a marker of the template, or makes the record too long, the record is written
    as it was, counted and listed. Ranks, interruptions and arguments are as in `prefer`.

    Returns:
        what was done, for the terminal.

    Raises:
        ConfigError: a setting, a path or the checkpoint is not usable, or it was begun with other settings.
    """
    asking = Asking(
        model_path, model_base, conv_mode, image_folder, n, temperature, max_new_tokens, seed, batch_size, device
    )
    found = asking.find()
    records = read_records(data_path)
    fit, of_no_use = candidates(records)
    if not fit:
        why = "; ".join(f"{reason}: {count:,}" for reason, count in of_no_use.items())
        raise ConfigError(f"--data_path {data_path}: none of its {len(records):,} records can be described ({why})")
    worked_on = {"records": fingerprint(map(json.dumps, records))}
    work, settings, _, load = asking.begin(*found, output, worked_on, (*NEUTRAL, described("", "")))

    def choose() -> dict[str, Any]:
        order = (fit[permute(k, len(fit), seed, "stic", "records")] for k in range(len(fit)))
        chosen, passed_over = first_readable(((k, f"{image_folder}/{picture_name(records[k])}") for k in order), n)
        told = {_named(records, k): reason for k, reason in passed_over.items()}
        if not chosen:
            raise ConfigError(f"--image_folder {image_folder}: no picture can be used{listed('found', told)}")
        return {"chosen": chosen, "passed_over": told}

    agreed = work.agree(choose)
    chosen = agreed["chosen"]

    def ask(block: range) -> list[dict[str, Any]]:
        positions = [chosen[k] for k in block]
        return write(load(), image_folder, positions, [records[k] for k in positions], **asking.sampling)

    rows = work.complete(len(chosen), batch_size, ask, "descriptions")
    if rows is None:
        return work.left()
    made = [
        records[k] if row["as_it_was"] else with_description(records[k], row["description"])
        for k, row in zip(chosen, rows, strict=True)
    ]
    as_it_was = {_named(records, k): row["as_it_was"] for k, row in zip(chosen, rows, strict=True) if row["as_it_was"]}
    words = [len(row["description"].split()) for row in rows if not row["as_it_was"]]
    told = {"records": len(made), "described": len(words), "words": float(np.mean(words)) if words else None}
    told |= {"as_they_were": as_it_was, "passed_over": agreed["passed_over"], "of_no_use": of_no_use}
    write_report(output, told, settings)
    write_whole(Path(output), (json.dumps(made, indent=1) + "\n").encode())
    return f"{output}: {summary(told, n)}"


def candidates(records: Sequence[dict]) -> tuple[list[int], dict[str, int]]:
    """Returns the positions of the records that can be described, and {why not: how many others}."""
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
    """Returns what tells a record apart: ids may stand twice in mixtures."""
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
    """Returns {"description", "prompt": which of NEUTRAL, "as_it_was": why the record stays so, or null} for each."""
    drawn = []
    for position in positions:
        rng = generator(seed, "stic", "describe", position)
        drawn.append((int(rng.integers(len(NEUTRAL))), int(rng.integers(SEEDS))))
    pictures = [open_chosen(folder, picture_name(record)) for record in records]
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
    """Returns a copy of a record whose first question has the description in front; its answers are as they were."""
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


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Write LLaVA records with the model's own description of their picture before the question."""

    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift stic describe --model_path CKPT --data_path mix.json --image_folder DIR -n 5000 \\\n"
        "      -o described.json\n\n"
        "Run it again to go on after an interruption; run it under torchrun to share the work between GPUs."
    )

    data_path: str = option(help="LLaVA records, of which some are taken", metavar="JSON")
    model_path: str = option(help="a LLaVA: folder, or name on the Hub", metavar="CKPT")
    image_folder: str = option(help="what image paths are relative to", metavar="DIR")
    output: str = option(help="FILE.parts and FILE.report.json appear beside it", short="-o", metavar="FILE")
    model_base: Optional[str] = option(None, "what a LoRA adapter or a projector was trained on", metavar="BASE")
    n: int = option(5000, "records", short="-n", metavar="N")
    temperature: float = option(0.2, "of sampling; 0 takes the likeliest token", metavar="T")
    max_new_tokens: int = option(1024, "where descriptions are cut off, and then not used", metavar="N")
    seed: int = option(0, "of choices, prompts and tokens", metavar="N")
    batch_size: int = option(8, "descriptions at once", metavar="N")
    device: Optional[str] = option(
        None, "cuda, cpu or cuda:1; default: this rank's GPU where there is one", metavar="D"
    )
    conv_mode: Optional[str] = option(
        None,
        "the chat template the model was trained with; default: as LLaVA's evaluation chooses, else v1",
        metavar="NAME",
    )

    def run(self) -> str:
        """See `describe`."""
        return describe(**{one.name: getattr(self, one.name) for one in fields(self)})
