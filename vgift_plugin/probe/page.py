"""The pages of `vgift probe`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ..data.records import IMAGE, top_folder
from ..methods.vgift.stream import Stream
from ..report.page import bar, chance_line, picture, plot, report
from . import task_accuracy as sights
from . import visual_contribution as needs

MISTAKES = 12
LISTED, PICTURED = 100, 12  # records that need their picture least
BINS = 40
STYLE = """\
figure { font-size: .85rem; border: 1px solid var(--line); border-radius: 8px; overflow: hidden;
 background: var(--card); }
figure img { display: block; width: 100%; height: 14rem; object-fit: contain; background: var(--mat); }
figcaption { padding: .6rem .8rem; overflow-wrap: anywhere; } figcaption p { margin: 0 0 .5rem; white-space: pre-line; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .8rem; margin: 0; } dt { color: var(--soft); }
dd { margin: 0; } .right { color: var(--good); font-weight: 600; } .wrong { color: var(--bad); font-weight: 600; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .1rem .8rem .1rem 0; }
"""
PICTURE_PX = 320


def sights_page(
    made: Sequence[Stream], results: dict[str, Any], rows: dict[str, list[dict]], about: str, table: str
) -> str:
    """Returns the page of tasks: how each fares in the three ways, and the worst mistakes, painted again."""
    parts = []
    for stream in made:
        name = stream.task.name
        figures = [_mistake(stream, row) for row in sights.worst(rows[name], MISTAKES)]
        wrong = sum(row["scores"][sights.SIGHTED] < 1 for row in rows[name])
        told = f"The worst of {wrong:,} mistakes" if figures else "No mistake"
        grid = f'<div class="grid">{"".join(figures)}</div>'
        parts.append(f"<section><h2>{escape(name)}</h2>{_bars(results[name])}<h3>{told}</h3>{grid}</section>")
    words = (
        "Each question is asked with its picture (sighted), with a grey square (blind), and with another sample's "
        "picture (shuffled), and each reply is compared with the question's own answer. A model that looks is above "
        "chance sighted and at chance otherwise. Whiskers: 95 % interval; dashed line: chance."
    )
    return report("vgift probe", "Does the model look?", escape(f"{about}. {words}"), parts, table, STYLE)


def _bars(result: dict[str, Any]) -> str:
    left, wide, high = 90, 560, 26
    tall, shapes = high * len(sights.WAYS) + 24, []
    for k, way in enumerate(sights.WAYS):
        y, one = k * high + 6, result[way]
        fill = "good" if way == sights.SIGHTED else "cue"
        shapes.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{way}</text>')
        accuracy, interval = one["accuracy"], (one["low"], one["high"])
        shapes.append(bar(left, wide, y, 16, accuracy, interval, fill, f"{accuracy:.1%}"))
    shapes.append(chance_line(left, wide, tall, result["chance"]))
    return plot(left + wide + 70, tall, shapes)


def _mistake(stream: Stream, row: dict[str, Any]) -> str:
    lines = [f'<dt>answer</dt><dd class="right">{escape(row["answer"])}</dd>']
    for way in sights.WAYS:
        mark = "right" if row["scores"][way] == 1 else "wrong"
        lines.append(f'<dt>{way}</dt><dd class="{mark}">{escape(row["replies"][way]) or "(nothing)"}</dd>')
    shown = picture(stream(0, row["number"]).image, f"{stream.task.name} sample", longest_px=PICTURE_PX)
    words = f"<p>{escape(row['question'])}</p><dl>{''.join(lines)}</dl>"
    return f"<figure>{shown}<figcaption>{words}</figcaption></figure>"


def needs_page(
    chosen: needs.Needs, results: dict[str, Any], measured: Sequence[dict[str, Any]], about: str, table: str
) -> str:
    """Returns the page of a data set: histograms of the gains, and the records that need their picture least.

    Args:
        chosen: the records.
        results: what they say, by the first folder of their pictures.
        measured: their rows, the least gain against a blank picture first.
        about: what was probed.
        table: all numbers.
    """
    parts = []
    for kind in needs.AGAINST:
        heading = f"The right picture against a {kind} one"
        parts.append(f"<h2>{heading}</h2>{_histogram([needs.gains(row)[kind] for row in measured])}")
    figures = "".join(_record(chosen, row) for row in measured[:PICTURED])
    rows = "".join(_line(row) for row in measured[:LISTED])
    head = "".join(f"<th>{name}</th>" for name in ("id", "picture", "against blank", "against wrong", "tokens"))
    parts.append(
        f'<h2>Records that need their picture least</h2><div class="grid">{figures}</div>'
        f"<h3>The first {min(LISTED, len(measured)):,} of {len(measured):,}</h3><table><tr>{head}</tr>{rows}</table>"
    )
    words = (
        "How much likelier is a token of the reference answer with the record's own picture than with a grey square "
        "(blank) or another record's picture (wrong), in nats: at 0 or below, the answer does not need the picture."
    )
    heading = "Does this data need its pictures?"
    return report("vgift probe", heading, escape(f"{about}. {words}"), parts, table, STYLE)


def _histogram(values: Sequence[float]) -> str:
    """Returns one SVG; the lowest and highest 1 % are in the outermost bars. 0 is the end of a bar, and in it."""
    low, high = np.percentile(values, [1, 99])
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = -1.0, 1.0
    size = (high - low) / BINS
    # The cut at 1 % must not carry a value across 0, where bars change their colour.
    first, last = min(np.floor(low / size), -int(min(values) <= 0)), max(np.ceil(high / size), int(max(values) > 0))
    edges = size * np.arange(first, last + 1)
    low, high = float(edges[0]), float(edges[-1])
    counts = np.histogram(-np.clip(values, low, high), -edges[::-1])[0][::-1]
    left, wide, tall = 10, 640, 180
    step, shapes = wide / len(counts), []
    for k, count in enumerate(counts):
        height = tall * count / counts.max()
        fill = "good" if edges[k] + edges[k + 1] > 0 else "bad"
        told = f"<title>{edges[k]:.3f} to {edges[k + 1]:.3f}: {count:,}</title>"
        box = f'x="{left + k * step:.1f}" y="{tall - height:.1f}" width="{step - 1:.1f}" height="{height:.1f}"'
        shapes.append(f'<rect {box} style="fill:var(--{fill})" opacity=".75">{told}</rect>')
    for value in (low, 0.0, high):
        at = left + wide * (value - low) / (high - low)
        anchor = "start" if value == low else "end" if value == high else "middle"
        if value == 0:
            shapes.append(f'<path d="M{at:.1f} 0V{tall}" stroke="currentColor" stroke-dasharray="4 3"/>')
        elif min(at - left, left + wide - at) == 0 and abs(value) < 0.1 * (high - low):
            continue  # too near to the 0 to be read
        shapes.append(f'<text x="{at:.1f}" y="{tall + 16}" text-anchor="{anchor}">{value:.2g}</text>')
    shapes.append(f'<text x="{left + wide / 2}" y="{tall + 34}" text-anchor="middle">nats a token</text>')
    return plot(left + wide + 10, tall + 40, shapes)


def _line(row: dict[str, Any]) -> str:
    gains = needs.gains(row)
    cells = (row["id"], row["image"], *(f"{gains[kind]:+.3f}" for kind in needs.AGAINST), row["tokens"])
    return f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>"


def _record(chosen: needs.Needs, row: dict[str, Any]) -> str:
    turns = chosen.record(row["number"])["conversations"]
    said = "".join(
        f"<p{'' if turn.get('from') == 'human' else ' class=right'}>{escape(_short(turn['value']))}</p>"
        for turn in turns[:4]
    )
    gains, folder = needs.gains(row), top_folder(row["image"])
    numbers = "".join(f"<dt>against {kind}</dt><dd>{gains[kind]:+.3f}</dd>" for kind in needs.AGAINST)
    named = f"<dt>id</dt><dd>{escape(str(row['id']))}</dd><dt>from</dt><dd>{escape(folder or '–')}</dd>"
    words = f"{said}<dl>{named}{numbers}</dl>"
    shown = picture(chosen.open(row["number"]), str(row["id"]), longest_px=PICTURE_PX)
    return f"<figure>{shown}<figcaption>{words}</figcaption></figure>"


def _short(text: str, longest: int = 240) -> str:
    text = text.replace(IMAGE, "").strip()
    return text if len(text) <= longest else text[: longest - 1] + "…"
