"""`vgift audit`: how far solvers get that must fail, on held-out photographs, beside the computed chance."""

from __future__ import annotations

import base64
import io
import json
import math
import string
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from ..config import Flags
from ..errors import ConfigError
from ..mixing import Tally
from ..registry import task_names
from ..sources import read_records
from ..streams import streams
from ..task import Sample
from .solvers import CHEAT, SOLVERS, Solver, guess, require_sklearn, table_of

LEAST_SAMPLES = 20
LEAST_PHOTOS = 10  # in each half; with fewer, a photograph may be in both
SHOWN = 8  # samples of a leak
LEAK, CLEAN, INFORMATIVE, USELESS, ABSENT = "LEAK", "ok", "informative", "no use", "absent"

PAGE = string.Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>vgift audit</title>
<style>
:root { color-scheme: light dark; --line: #8884; --bad: #c0392b; --good: #2a7f62; --cue: #7a7a8c; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
svg { width: 100%; height: auto; } svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem; }
figure { margin: 0; font-size: .8rem; } figure img { width: 100%; height: 10rem; object-fit: contain; }
pre { overflow-x: auto; }
</style></head><body>
<h1>What can be answered without looking?</h1>
<p>$about</p>
<p>A <em>cheat</em> sees nothing of what the picture shows and must stay at chance; a <em>cue</em> sees a little of it
and may beat chance. Bars: accuracy on held-out photographs; whiskers: 95 % interval; dashed line: chance.</p>
$sections
<h2>All numbers</h2><pre>$table</pre>
</body></html>
""")


@dataclass(frozen=True)
class Row:
    """How one solver did on one task: accuracies in [0, 1]; None where there was nothing of the kind to see."""

    task: str
    solver: str
    kind: str
    chance: float
    accuracy: float | None
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Report:
    """What was found about one task.

    Attributes:
        rows: one a solver.
        split: how many samples and photographs are in each half, and whether some are in both.
        solved: {leaking solver: numbers of the held-out samples it got most right}.
    """

    task: str
    rows: list[Row]
    split: dict
    solved: dict[str, list[int]] = field(default_factory=dict)


def wilson(accuracy: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share seen in n independent trials: 0.5 of 100 gives (0.404, 0.596)."""
    middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def effective_size(right: np.ndarray, groups: np.ndarray) -> float:
    """Returns how many independent trials (m, items) answers are worth when those of one photograph go together.

    Args:
        right: booleans.
        groups: (m,) numbers of the photographs.

    Returns:
        right.size or less; with one item and no photograph twice, exactly m.
    """
    off = right - right.mean()
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], off.sum(1))
    spread = (off**2).sum()
    return right.size / max(1.0, (sums**2).sum() / spread) if spread else float(len(np.unique(groups)))


def targets_of(responses: Sequence[str]) -> np.ndarray:
    """Returns the answers as (n, items) strings, each column one classification.

    `A-3, B-1` has two items, 3 and 1; an answer in one piece is one. So is everything where the answers differ in how
    many pieces they have.
    """
    pieces = [[piece.rpartition("-")[2] for piece in response.split(", ")] for response in responses]
    if len({len(some) for some in pieces}) > 1 or len(pieces[0]) == 1:
        pieces = [[response] for response in responses]
    return np.array(pieces)


def halves(sources: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Splits samples by the photographs they were made of, in the order in which these came first.

    Args:
        sources: the paths of each sample's photographs.

    Returns:
        (train, test, group of each sample, apart): indices; whether no photograph is in both halves. Where too few
        photographs are there for that (10 a half), the first half of the samples trains and the second tests.
    """
    parent: dict[str, str] = {}

    def root(path: str) -> str:
        while parent.setdefault(path, path) != path:
            path = parent[path]
        return path

    named = [paths or (f"sample {k}",) for k, paths in enumerate(sources)]
    for first, *others in named:
        for other in others:
            parent[root(other)] = root(first)
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(root(paths[0]), len(numbers)) for paths in named])
    ends = np.cumsum(np.bincount(groups))
    border = int(np.searchsorted(ends, len(groups) / 2)) + 1  # groups below it train
    apart = border >= LEAST_PHOTOS and len(ends) - border >= LEAST_PHOTOS
    in_train = groups < border if apart else np.arange(len(groups)) < len(groups) // 2
    return np.flatnonzero(in_train), np.flatnonzero(~in_train), groups, apart


def examine(
    name: str,
    chance: float,
    samples: Callable[[int], Sample],
    n: int,
    threshold: float,
    solvers: Sequence[Solver] = SOLVERS,
) -> Report:
    """Measures all solvers on one task.

    Args:
        name: of the task.
        chance: that a blind guess is entirely right, in [0, 1]; for answers of several items that of one item is used,
            one in as many as there are different ones.
        samples: j -> sample j, made anew each time it is asked for.
        n: how many.
        threshold: how far above chance the lower end of a cheat's interval may lie.
        solvers: who tries.
    """
    from tqdm import tqdm

    seen: list[list[np.ndarray]] = [[] for _ in solvers]
    responses, sources = [], []
    for j in tqdm(range(n), desc=f"audit {name}: samples", unit="", leave=False):
        sample = samples(j)  # seen at once and let go: 2,000 pictures would not fit
        for rows, solver in zip(seen, solvers, strict=True):
            rows.append(solver.see(sample))
        responses.append(sample.response)
        sources.append(sample.sources)
    targets = targets_of(responses)
    train, test, groups, apart = halves(sources)
    if targets.shape[1] > 1:
        chance = 1 / len(np.unique(targets))
    rows, solved = [], {}
    for solver, raw in zip(tqdm(solvers, desc=f"audit {name}: solvers", unit="", leave=False), seen, strict=True):
        table = table_of(raw)
        if not table.shape[1]:
            rows.append(Row(name, solver.name, solver.kind, chance, None, None, None, ABSENT))
            continue
        right = np.stack([guess(table, column, train, test) == column[test] for column in targets.T], axis=1)
        accuracy = float(right.mean())
        low, high = wilson(accuracy, effective_size(right, groups[test]))
        beats = low > chance + threshold
        verdict = (LEAK if beats else CLEAN) if solver.kind == CHEAT else (INFORMATIVE if beats else USELESS)
        rows.append(Row(name, solver.name, solver.kind, chance, accuracy, low, high, verdict))
        if verdict == LEAK:
            best = np.argsort(-right.mean(1), kind="stable")[:SHOWN]
            solved[solver.name] = test[best[right[best].any(1)]].tolist()
    split = {"train": len(train), "test": len(test), "items": targets.shape[1], "photographs": int(groups.max()) + 1}
    return Report(name, rows, {**split, "photographs_apart": apart}, solved)


def audit(
    flags: dict,
    image_folder: str,
    data_path: str | None = None,
    n: int = 2000,
    output: str = "audit.html",
    json_path: str | None = None,
    threshold: float = 0.03,
) -> tuple[str, bool]:
    """Audits the tasks asked for, on the first samples of epoch 0, and writes the page.

    Args:
        flags: {flag: value} as given.
        image_folder: photographs, searched recursively; with `data_path`, what its paths are relative to.
        data_path: LLaVA records whose pictures are used, or None for all in the folder.
        n: samples of each task; one half trains the solvers, the other tests them.
        output: the page, `.html`.
        json_path: where the same rows go as JSON, if anywhere.
        threshold: how far above chance the lower end of a cheat's 95 % interval may lie, in [0, 1).

    Returns:
        (table for the terminal, whether no cheat leaks).

    Raises:
        ConfigError: a flag or a path is wrong, or scikit-learn is missing; nothing was written.
    """
    if Path(output).suffix.lower() != ".html":
        raise ConfigError(f"-o {output}: must end in .html")
    for path in filter(None, (output, json_path)):
        if not Path(path).resolve().parent.is_dir():
            raise ConfigError(f"there is no folder {Path(path).resolve().parent} for {path}")
    if n < LEAST_SAMPLES:
        raise ConfigError(f"-n {n}: at least {LEAST_SAMPLES} samples of each task")
    if not 0 <= threshold < 1:
        raise ConfigError(f"--threshold {threshold:g}: must be 0 or more and below 1")
    asked = Flags.of(flags)
    asks = asked.resolve()
    if not asks:
        raise ConfigError(f"--ssl_tasks is missing; known tasks: {', '.join(task_names())}")
    require_sklearn()
    made = streams(asked, asks, read_records(data_path), image_folder, None)
    tally = Tally()
    reports, sections = [], []
    for stream in made:
        report = examine(
            stream.task.name, stream.task.chance, lambda j, stream=stream: stream(0, j, tally), n, threshold
        )
        reports.append(report)
        sections.append(_section(report, lambda j, stream=stream: stream(0, j)))
    table, clean = table_text(reports), not any(report.solved for report in reports)
    given = {name: value for name, value in asked.as_dict().items() if value is not None}
    about = escape(f"{n:,} samples a task with " + ", ".join(f"--{name} {value}" for name, value in given.items()))
    Path(output).write_text(
        PAGE.substitute(about=about, sections="\n".join(sections), table=escape(table)), encoding="utf-8"
    )
    if json_path is not None:
        parts = {
            "splits": {report.task: report.split for report in reports},
            "rows": [asdict(row) for report in reports for row in report.rows],
        }
        whole = {"flags": given, "n": n, "threshold": threshold, "clean": clean, **parts}
        Path(json_path).write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return f"{table}\n{output}: " + ("no cheat beats chance" if clean else "some answers leak, see LEAK"), clean


def table_text(reports: Sequence[Report]) -> str:
    """Returns all rows as an aligned table, and below it how each task was split."""
    lines = [("task", "solver", "kind", "chance", "accuracy", "95 % interval", "verdict")]
    for row in (row for report in reports for row in report.rows):
        numbers = ("–", "–")
        if row.accuracy is not None:
            numbers = (f"{row.accuracy:.1%}", f"{row.low:.1%} to {row.high:.1%}")
        lines.append((row.task, row.solver, row.kind, f"{row.chance:.1%}", *numbers, row.verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'>' if k in (3, 4, 5) else '<'}{width}}}" for k, width in enumerate(widths))  # numbers right
    aligned = [form.format(*line).rstrip() for line in lines]
    return "\n".join([*aligned, *(f"{report.task}: {_split_words(report.split)}" for report in reports)])


def _split_words(split: dict) -> str:
    per = f", {split['items']} items each" if split["items"] > 1 else ""
    apart = "none in both halves" if split["photographs_apart"] else "too few to keep the halves apart"
    return (
        f"{split['train']:,} samples to learn from, {split['test']:,} held out{per}; "
        f"{split['photographs']:,} photographs, {apart}"
    )


def _section(report: Report, samples: Callable[[int], Sample]) -> str:
    """Returns a task's part of the page; the samples of a leak are painted again for it."""
    parts = [f"<h2>{escape(report.task)}</h2><p>{escape(_split_words(report.split))}</p>{_bars(report)}"]
    for solver, numbers in report.solved.items():
        figures = "".join(_figure(samples(j)) for j in numbers)
        parts.append(f'<h3>Solved by {escape(solver)} alone</h3><div class="grid">{figures}</div>')
    return f"<section>{''.join(parts)}</section>"


def _bars(report: Report) -> str:
    """Returns one SVG: a bar a solver, its interval, and a dashed line at chance."""
    left, wide, high = 190, 600, 26
    tall = high * len(report.rows) + 24
    shapes = []
    for k, row in enumerate(report.rows):
        y = k * high + 6
        shapes.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(row.solver)}</text>')
        if row.accuracy is None:
            shapes.append(f'<text x="{left + 8}" y="{y + 13}">nothing of the kind to see</text>')
            continue
        fill = "bad" if row.verdict == LEAK else "good" if row.kind == CHEAT else "cue"
        low, end, bar = (left + wide * share for share in (row.low, row.high, row.accuracy))
        shapes.append(
            f'<rect x="{left}" y="{y}" width="{bar - left:.1f}" height="16" style="fill:var(--{fill})" opacity=".75"/>'
            f'<path d="M{low:.1f} {y + 8}H{end:.1f}" stroke="currentColor" stroke-width="2"/>'
            f'<text x="{end + 8:.1f}" y="{y + 13}">{row.accuracy:.1%} {escape(row.verdict)}</text>'
        )
    at = left + wide * report.rows[0].chance
    shapes.append(f'<path d="M{at:.1f} 0V{tall - 18}" stroke="currentColor" stroke-dasharray="4 3"/>')
    shapes.append(f'<text x="{at:.1f}" y="{tall - 4}" text-anchor="middle">chance {report.rows[0].chance:.1%}</text>')
    return f'<svg viewBox="0 0 {left + wide + 130} {tall}" role="img">{"".join(shapes)}</svg>'


def _figure(sample: Sample) -> str:
    small, buffer = sample.image.copy(), io.BytesIO()
    small.thumbnail((240, 240))
    small.save(buffer, "JPEG", quality=88)
    picture = base64.b64encode(buffer.getvalue()).decode()
    words = f"{sample.response} ({sample.image.width}×{sample.image.height})"
    return (
        f'<figure><img src="data:image/jpeg;base64,{picture}" alt="{escape(sample.task)} sample">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )
