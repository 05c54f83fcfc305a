"""`vgift bench`: what a mixed sample costs beside an ordinary one, on the user's own photographs and machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .data.photos import open_photo
from .data.records import picture_name, read_records
from .data.seeding import generator
from .errors import ConfigError
from .hosts.upstream import upstream_dataset
from .hosts.view import OneRecordView
from .methods.vgift.flags import Flags
from .methods.vgift.mixing import Stream
from .methods.vgift.streams import streams
from .tasks.registry import task_names


@dataclass(frozen=True)
class Row:
    """One line of the table: two medians, taken in turn, in the same process.

    Attributes:
        row: what was measured, against what.
        ours_ms: median, milliseconds.
        baseline_ms: median, milliseconds.
        target: the greatest ratio wanted; None where it is only told.
    """

    row: str
    ours_ms: float
    baseline_ms: float
    target: float | None = None

    @property
    def value(self) -> float:
        """The ratio."""
        return self.ours_ms / self.baseline_ms


def in_turn(ours: Sequence[Callable[[], Any]], baseline: Sequence[Callable[[], Any]]) -> tuple[float, float]:
    """Runs one of each in turn; returns the medians in milliseconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in zip(ours, baseline, strict=True):
        for work, kept in zip(pair, times, strict=True):
            start = time.perf_counter()
            work()
            kept.append(time.perf_counter() - start)
    return statistics.median(times[0]) * 1e3, statistics.median(times[1]) * 1e3


def through_the_host(stream: Stream, base: Any, n: int) -> Row:
    """Measures whole samples, from files to tensors, against ordinary ones of the same photographs."""
    view, root = OneRecordView(base), stream.source.root
    first = {picture_name(record): k for k, record in reversed(list(enumerate(base.list_data_dict)))}
    made = [stream(0, j) for j in range(n)]
    ordinary = [base.list_data_dict[first[sample.sources[0].removeprefix(root).lstrip("/")]] for sample in made]
    times = in_turn(
        [lambda j=j: view(stream(0, j), "bench") for j in range(n)],
        [lambda record=record: base[first[picture_name(record)]] for record in ordinary],
    )
    return Row(f"{stream.task.name}, file to tensors / an ordinary sample", *times)


def generation(stream: Stream, n: int) -> Row:
    """Measures draw, render and ask on decoded photographs against decoding them."""
    task, made = stream.task, [stream(0, j) for j in range(n)]
    photos = [
        [open_photo(path, longest_px=task.longest_px) for path in sample.sources] for sample in made
    ]  # as drawn on

    def generate(j: int) -> None:
        params = task.draw(generator(stream.seed, "sample", task.name, 0, j, made[j].redraws), photos[j])
        task.render(photos[j], params)
        task.ask(params)

    def decode(path: str) -> None:
        with Image.open(path) as image:
            image.convert("RGB")

    times = in_turn(
        [lambda j=j: generate(j) for j in range(n)], [lambda s=sample: decode(s.sources[0]) for sample in made]
    )
    return Row(f"{task.name}, draw + render + ask / decode", *times)


def measure(
    flags: dict, data_path: str, image_folder: str, llm: str, tower: str | None, n: int, steps_per_s: float, batch: int
) -> str:
    """Returns the table, and how many workers a GPU needs.

    Args:
        flags: {flag: value} as given.
        data_path: LLaVA records.
        image_folder: what their pictures are relative to.
        llm: whose tokenizer.
        tower: whose image processor; None is CLIP's own at 336 px.
        n: samples of each task.
        steps_per_s: optimizer steps a second to be kept up with.
        batch: samples a step on one GPU.

    Raises:
        ConfigError: flags or files are not usable, or there is no LLaVA here.
    """
    given = Flags.of(flags)
    asks = given.resolve()
    if not asks:
        raise ConfigError(f"--ssl_tasks is missing; known tasks: {', '.join(task_names())}")
    records = read_records(data_path)
    try:
        base = upstream_dataset(data_path, image_folder, llm, tower)
    except ImportError as err:
        raise ConfigError(f"vgift bench measures LLaVA's own data loading, and {err.name} is not here") from err
    made = streams(given, asks, records, image_folder, None)
    rows = [through_the_host(stream, base, n) for stream in made] + [generation(stream, n) for stream in made]
    share = given.ssl_ratio / (1 + given.ssl_ratio)
    ordinary = statistics.mean(row.baseline_ms for row in rows[: len(made)])
    mixed = statistics.mean(row.ours_ms for row in rows[: len(made)])
    cost_ms = (1 - share) * ordinary + share * mixed
    need = steps_per_s * batch * cost_ms / 1e3
    plain = steps_per_s * batch * ordinary / 1e3
    return (
        f"{table(rows)}\n{steps_per_s:g} steps/s of {batch} samples on one GPU need {need:.1f} workers "
        f"({plain:.1f} without samples; {share:.1%} of all are self-supervised)"
    )


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a table: ours, baseline, ratio, target."""
    width = max(len(row.row) for row in rows)
    lines = [f"{'':<{width}}  {'ours':>10}  {'baseline':>10}  {'ratio':>7}  target"]
    for row in rows:
        target = "" if row.target is None else f"≤ {row.target:g}{'' if row.value <= row.target else '  MISSED'}"
        times = f"{row.ours_ms:>7.2f} ms  {row.baseline_ms:>7.2f} ms"
        lines.append(f"{row.row:<{width}}  {times}  {row.value:>7.3f}  {target}".rstrip())
    return "\n".join(lines)
