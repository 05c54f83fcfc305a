"""The pages of `vgift probe`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.records import IMAGE, top_folder
from ..methods.vgift.stream import Stream
from ..report.page import embed, render
from . import task_accuracy as accuracy
from . import visual_contribution as contribution

MISTAKES = 12
LISTED, PICTURED = 100, 12  # records that need their picture least
BINS = 40
PICTURE_PX = 320


def tasks_page(
    made: Sequence[Stream], results: dict[str, Any], rows: dict[str, list[dict]], about: str, table: str
) -> str:
    """Returns the page on tasks: accuracy in the three ways of asking, and the worst mistakes with their pictures.

    Args:
        made: the samples of each task.
        results: {task: accuracies}, see `accuracy.tabulate`.
        rows: {task: answered samples}.
        about: what was probed.
        table: all numbers.
    """
    tasks = []
    for stream in made:
        name = stream.task.name
        tasks.append(
            {
                "name": name,
                "chance": results[name]["chance"],
                "bars": [_bar(way, results[name][way]) for way in accuracy.WAYS],
                "wrong": sum(row["scores"][accuracy.SIGHTED] < 1 for row in rows[name]),
                "figures": [_mistake(stream, row) for row in accuracy.worst(rows[name], MISTAKES)],
            }
        )
    return render("task_accuracy.html", about=about, tasks=tasks, table=table)


def _bar(way: str, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "label": way,
        "share": result["accuracy"],
        "low": result["low"],
        "high": result["high"],
        "fill": "good" if way == accuracy.SIGHTED else "cue",
        "text": f"{result['accuracy']:.1%}",
    }


def _mistake(stream: Stream, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "picture": embed(stream(0, row["number"]).image, longest_px=PICTURE_PX),
        "question": row["question"],
        "answer": row["answer"],
        "replies": [(way, row["replies"][way], row["scores"][way] == 1) for way in accuracy.WAYS],
    }


def records_page(chosen: contribution.Measured, measured: Sequence[dict[str, Any]], about: str, table: str) -> str:
    """Returns the page on a data set: histograms of the gains, and the records that need their picture least.

    Args:
        chosen: the records.
        measured: rows of the records, the least gain against a blank picture first.
        about: what was probed.
        table: all numbers.
    """
    return render(
        "visual_contribution.html",
        about=about,
        histograms={
            kind: _histogram([contribution.gains(row)[kind] for row in measured]) for kind in contribution.AGAINST
        },
        figures=[_record(chosen, row) for row in measured[:PICTURED]],
        rows=[{**row, "gains": contribution.gains(row)} for row in measured[:LISTED]],
        total=len(measured),
        table=table,
    )


def _histogram(values: Sequence[float]) -> dict[str, Any]:
    """Returns bars and ticks. 0 is always an edge between bars, which change their colour there.

    Values below the 1st and above the 99th percentile are counted in the outermost bars.
    """
    low, high = np.percentile(values, [1, 99])
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = -1.0, 1.0
    size = (high - low) / BINS
    # Clipping must not move a value across 0.
    first, last = min(np.floor(low / size), -int(min(values) <= 0)), max(np.ceil(high / size), int(max(values) > 0))
    edges = size * np.arange(first, last + 1)
    low, high = float(edges[0]), float(edges[-1])
    counts = np.histogram(-np.clip(values, low, high), -edges[::-1])[0][::-1]  # negated: upper edges belong to bars
    bars = [
        {"low": start, "high": end, "count": count, "share": count / counts.max(), "fill": "good" if end > 0 else "bad"}
        for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    anchors = {0.0: "middle", low: "start", high: "end"}  # where low or high is 0, one tick
    ticks = [
        {"value": value, "at": (value - low) / (high - low), "anchor": anchor}
        for value, anchor in anchors.items()
        if value == 0 or abs(value) >= 0.1 * (high - low)  # closer to 0 the texts would overlap
    ]
    return {"bars": bars, "ticks": ticks}


def _record(chosen: contribution.Measured, row: dict[str, Any]) -> dict[str, Any]:
    turns = chosen.record(row["number"])["conversations"]
    return {
        "picture": embed(chosen.open(row["number"]), longest_px=PICTURE_PX),
        "id": row["id"],
        "folder": top_folder(row["image"]) or "–",
        "turns": [(_short(turn["value"]), turn.get("from") == "human") for turn in turns[:4]],
        "gains": contribution.gains(row),
    }


def _short(text: str, longest: int = 240) -> str:
    text = text.replace(IMAGE, "").strip()
    return text if len(text) <= longest else text[: longest - 1] + "…"
