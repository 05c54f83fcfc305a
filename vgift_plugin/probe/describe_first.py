"""Describe first, then answer: does a model do better with its own description of the picture before the question?

STIC's way to ask (arXiv 2405.19716, "describe and respond"), the picture shown both times; its own table has benchmarks
that fall by it. The plain answers stand beside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..data.records import IMAGE
from ..errors import UnsuitableImage
from ..hosts.checkpoint import Checkpoint
from ..methods.stic.describe import with_description
from ..methods.stic.prompts import NEUTRAL
from ..report.intervals import effective_size, mean_interval, wilson
from ..tasks.task import tidy
from .task_accuracy import MARGIN
from .visual_contribution import RIGHT, Measured

PLAIN, DESCRIBED = "plain", "described"
LONGEST = 256  # tokens of a description
SHORT = 3  # words: answers up to it are compared with the model's own
NOT = "not_described"  # why a record has no described answer
EQUAL = "equals_answer"
FIELDS = ("description", DESCRIBED, EQUAL, NOT)  # added to a row


def ask(checkpoint: Checkpoint, chosen: Measured, block: range) -> list[dict[str, Any]]:
    """Returns the rows of `Measured.measure`, with what describing first makes of them.

    A measured row gets `description`, `described`: mean log p per answer token with it, and, where the first answer is
    short, `equals_answer`: {"plain": does the model's reply equal it?, "described"}; or `not_described`: why there is
    none.
    """
    rows = chosen.measure(checkpoint, block)
    told = [row for row in rows if "left_out" not in row]
    kept: list[tuple[dict[str, Any], dict, Image.Image]] = []
    for row in told:
        record = chosen.record(row["number"])
        if IMAGE not in record["conversations"][0]["value"]:
            row[NOT] = "the picture is not in the first question"
            continue
        try:
            kept.append((row, record, chosen.open(row["number"])))
        except UnsuitableImage as unsuitable:
            row[NOT] = unsuitable.reason
    if not kept:
        return rows
    said = checkpoint.generate([checkpoint.item(picture, NEUTRAL[0]) for _, _, picture in kept], LONGEST)
    items = []
    for (row, record, picture), description in zip(kept, said, strict=True):
        row["description"] = description
        if not description or checkpoint.marker_in(description):
            row[NOT] = "an empty description" if not description else "a description with a marker of the template"
            continue
        again = checkpoint.encode(with_description(record, description), picture)
        items.append((row, record, checkpoint.encode(record, picture), again))
    if not items:
        return rows
    for (row, _, _, _), found in zip(items, checkpoint.log_likelihood([again for *_, again in items]), strict=True):
        if found.tokens < row["tokens"]:
            row[NOT] = "answers lie outside the model's context"
        else:
            row[DESCRIBED] = found.mean
    short = [(row, _answer(record), *both) for row, record, *both in items if len(_answer(record).split()) <= SHORT]
    for k, way in enumerate((PLAIN, DESCRIBED)) if short else ():
        asked = [both[k] for _, _, *both in short]
        limits = [checkpoint.answer_length(item) + MARGIN for item in asked]
        for (row, answer, *_), reply in zip(short, checkpoint.generate(asked, limits), strict=True):
            row.setdefault(EQUAL, {})[way] = tidy(reply).casefold() == tidy(answer).casefold()
    return rows


def _answer(record: dict) -> str:
    turns = record["conversations"]
    return turns[1]["value"] if len(turns) > 1 else ""


def tabulate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what measured rows say about describing first.

    Returns:
        {"n", "plain": mean log p per token, "described": the same, "gain", "low", "high" (95 %), "not_described": {why:
        count}, "short": {"n", "plain": {"accuracy", "low", "high"}, "described": ...} or null}
    """
    own = [row for row in rows if DESCRIBED in row]
    result: dict[str, Any] = {"n": len(own), NOT: dict(Counter(row[NOT] for row in rows if NOT in row)), "short": None}
    if own:
        before, after = (np.array([row[name] for row in own]) for name in (RIGHT, DESCRIBED))
        low, high = mean_interval(after - before, [row["image"] for row in own])
        result |= {PLAIN: float(before.mean()), DESCRIBED: float(after.mean())}
        result |= {"gain": float((after - before).mean()), "low": low, "high": high}
    short = [row for row in own if EQUAL in row]
    if short:
        result["short"] = {"n": len(short)}
        pictures = np.unique([row["image"] for row in short], return_inverse=True)[1]
        for way in (PLAIN, DESCRIBED):
            right = np.array([row[EQUAL][way] for row in short])
            accuracy = float(right.mean())
            low, high = wilson(accuracy, effective_size(right[:, None], pictures))
            result["short"][way] = {"accuracy": accuracy, "low": low, "high": high}
    return result


def table(result: dict[str, Any]) -> str:
    """Returns the results for the terminal."""
    lines = ["describe first, then answer (the model's own greedy description, the picture shown both times)"]
    if result["n"]:
        interval = "–" if result["low"] is None else f"{result['low']:+.3f} to {result['high']:+.3f}"
        lines.append(
            f"  log p per token of {result['n']:,} records: plain {result[PLAIN]:.3f}, described "
            f"{result[DESCRIBED]:.3f}; gain {result['gain']:+.3f}, 95 % interval {interval}"
        )
    if result["short"] is not None:
        told = "; ".join(
            f"{way} {one['accuracy']:.1%} ({one['low']:.1%} to {one['high']:.1%})"
            for way, one in ((way, result["short"][way]) for way in (PLAIN, DESCRIBED))
        )
        lines.append(f"  replies equal to the {result['short']['n']:,} answers of {SHORT} words or fewer: {told}")
    lines += [f"  not described: {reason} {count:,}" for reason, count in result[NOT].items()]
    return "\n".join(lines)
