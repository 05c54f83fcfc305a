"""Does a model use the picture? Each question is asked three times: with its picture, with none, and with another's."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ..data.records import top_folder
from ..hosts.checkpoint import Checkpoint
from ..methods.vgift.stream import Stream
from ..report.intervals import effective_size, wilson
from ..report.page import aligned, passed_over
from ..tasks.task import Sample, Task

SIGHTED, BLIND, SHUFFLED = WAYS = ("sighted", "blind", "shuffled")
GREY = Image.new("RGB", (336, 336), (128, 128, 128))  # the same picture and size for every question
MARGIN = 8  # extra tokens that a reply may have over the answer, so that replies that are too long count as wrong
FOLDERS_SHOWN = 12


def shown(samples: Sequence[Sample], others: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Returns the samples for each way of asking, which differ only in their pictures."""
    whole = (0, 0, *GREY.size)
    return {
        SIGHTED: list(samples),
        BLIND: [replace(sample, image=GREY, boxes=(whole,) * len(sample.boxes)) for sample in samples],
        SHUFFLED: [one.with_pictures_of(other) for one, other in zip(samples, others, strict=True)],
    }


def ask(checkpoint: Checkpoint, stream: Stream, block: range, n: int) -> list[dict[str, Any]]:
    """Asks a checkpoint some samples of a task.

    Args:
        checkpoint: the checkpoint.
        stream: the samples.
        block: their numbers, consecutive.
        n: number of all samples; sample j is shown the picture of sample j + 1, the last one that of the first.

    Returns:
        a JSON-able row for each: its photographs, the reasons of redraws, question, answer, and the replies and scores
        of the three ways.
    """
    passed: list[list[str]] = [[] for _ in block]

    def draw(j: int, reasons: list[str]) -> Sample:
        return stream(0, j, lambda task, reason: reasons.append(reason))

    samples = [draw(j, reasons) for j, reasons in zip(block, passed, strict=True)]
    others = [*samples[1:], stream(0, (block[-1] + 1) % n)]
    replies = {}
    for way, pictures in shown(samples, others).items():
        items = [checkpoint.sample(sample) for sample in pictures]
        limits = [checkpoint.answer_length(item) + MARGIN for item in items]
        replies[way] = checkpoint.generate(items, limits)
    folder = stream.source.root
    rows = []
    for k, (j, sample) in enumerate(zip(block, samples, strict=True)):
        told = {way: replies[way][k] for way in WAYS}
        row = {"number": j, "photographs": [os.path.relpath(one, folder) for one in sample.sources]}
        row["passed_over"] = passed[k]
        row |= {"question": sample.instruction, "answer": sample.response, "replies": told}
        rows.append(row | {"scores": scores(stream.task, told, sample.params)})
    return rows


def scores(task: Task, replies: dict[str, str], params: dict) -> dict[str, float]:
    """Returns the scores of the replies, in [0, 1], all against the sample's own answer."""
    return {way: task.score(reply, params) for way, reply in replies.items()}


def tabulate(rows: Sequence[dict[str, Any]], chance: float) -> dict[str, Any]:
    """Returns statistics of the rows of one task.

    Returns:
        {"n", "chance", "sighted": {"accuracy", "low", "high", "mean_score"}, "blind": ..., "shuffled": ...,
        "passed_over": {reason: number of redraws}, "folders": {first folder of the photograph: {"n", "sighted":
        accuracy, ...}}}. An answer is correct if its score is 1. The 95 % interval is Wilson's, with answers on one
        photograph treated as correlated.
    """
    score = np.array([[row["scores"][way] for way in WAYS] for row in rows])
    first = [row["photographs"][0] for row in rows]
    photographs, folders = np.unique(first, return_inverse=True)[1], np.array(list(map(top_folder, first)))
    right = score == 1
    result: dict[str, Any] = {"n": len(rows), "chance": chance}
    for k, way in enumerate(WAYS):
        accuracy = float(right[:, k].mean())
        low, high = wilson(accuracy, effective_size(right[:, k : k + 1], photographs))
        result[way] = {"accuracy": accuracy, "low": low, "high": high, "mean_score": float(score[:, k].mean())}
    result["passed_over"] = dict(Counter(reason for row in rows for reason in row.get("passed_over", ())).most_common())
    result["folders"] = {
        str(name): {"n": int(own.sum()), **{way: float(right[own, k].mean()) for k, way in enumerate(WAYS)}}
        for name, own in ((name, folders == name) for name in np.unique(folders))
    }
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the results of all tasks as a text table."""
    lines = [("task", "chance", *(column for way in WAYS for column in (way, "95 % interval")), "n")]
    for name, one in results.items():
        cells = [(f"{one[way]['accuracy']:.1%}", f"{one[way]['low']:.1%} to {one[way]['high']:.1%}") for way in WAYS]
        lines.append((name, f"{one['chance']:.1%}", *(cell for pair in cells for cell in pair), f"{one['n']:,}"))
        if any(one[way]["mean_score"] != one[way]["accuracy"] for way in WAYS):
            means = [(f"{one[way]['mean_score']:.1%}", "") for way in WAYS]
            lines.append(("  mean score", "", *(cell for pair in means for cell in pair), ""))
        folders = sorted(one["folders"].items(), key=lambda item: -item[1]["n"])
        for folder, part in folders[:FOLDERS_SHOWN] if len(folders) > 1 else ():
            shares = [(f"{part[way]:.1%}", "") for way in WAYS]
            lines.append(
                (f"  {folder or '(no folder)'}", "", *(cell for pair in shares for cell in pair), f"{part['n']:,}")
            )
        if len(folders) > FOLDERS_SHOWN:
            lines.append((f"  … and {len(folders) - FOLDERS_SHOWN} more folders", *[""] * (len(lines[0]) - 1)))
    passed = [f"{name}: {passed_over(one['passed_over'])}" for name, one in results.items() if one["passed_over"]]
    return "\n".join([aligned(lines), *passed])


def worst(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Returns the worst mistakes: lowest score with the picture, ties broken by the highest score without it."""
    wrong = [row for row in rows if row["scores"][SIGHTED] < 1]
    return sorted(wrong, key=lambda row: (row["scores"][SIGHTED], -row["scores"][BLIND], -row["scores"][SHUFFLED]))[
        :count
    ]
