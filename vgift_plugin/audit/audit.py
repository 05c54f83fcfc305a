"""`vgift audit`: how far solvers get that must fail, on held-out photographs, beside the computed chance."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Optional

import numpy as np

from .. import __version__
from ..data.arguments import option
from ..data.records import read_records
from ..data.tally import Tally
from ..errors import ConfigError
from ..methods.vgift.flags import VgiftFlags
from ..methods.vgift.streams import streams
from ..report.intervals import effective_size, wilson
from ..report.page import check_outputs
from ..tasks.registry import task_names
from ..tasks.task import Sample
from .page import audit_page, section
from .results import (
    ABSENT,
    CLEAN,
    INFORMATIVE,
    LEAK,
    USELESS,
    Report,
    Row,
    table_text,
)
from .solvers import (
    CHEAT,
    SOLVERS,
    Solver,
    guess,
    require_sklearn,
    table_of,
)

LEAST_SAMPLES = 20
LEAST_PHOTOS = 10  # in each half; with fewer, a photograph may be in both
SHOWN = 8  # samples of a leak


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
    check_outputs(output, json_path)
    if n < LEAST_SAMPLES:
        raise ConfigError(f"-n {n}: at least {LEAST_SAMPLES} samples of each task")
    if not 0 <= threshold < 1:
        raise ConfigError(f"--threshold {threshold:g}: must be 0 or more and below 1")
    asked = VgiftFlags.of(flags)
    asks = asked.tasks()
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
        report = replace(report, split={**report.split, "passed_over": tally.counts().get(report.task, {})})
        reports.append(report)
        sections.append(section(report, lambda j, stream=stream: stream(0, j)))
    table, clean = table_text(reports), not any(report.solved for report in reports)
    Path(output).write_text(audit_page(n, asked, sections, table), encoding="utf-8")
    if json_path is not None:
        parts = {
            "splits": {report.task: report.split for report in reports},
            "rows": [asdict(row) for report in reports for row in report.rows],
        }
        given = {name: value for name, value in asked.as_dict().items() if value is not None}
        of = {"vgift-plugin": __version__, "image_folder": image_folder, "data_path": data_path}
        whole = {**of, "flags": given, "n": n, "threshold": threshold, "clean": clean, **parts}
        Path(json_path).write_text(json.dumps(whole, indent=1), encoding="utf-8")
    passed = f"no cheat's interval begins more than {threshold:.1%} above chance"
    return f"{table}\n{output}: {passed if clean else 'some answers leak, see LEAK'}", clean


@dataclass(frozen=True, kw_only=True)
class Audit:
    """How far solvers get that do not look, on your photographs; needs scikit-learn, neither LLaVA nor torch."""

    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift audit --ssl_tasks rotation,color,correspondence --image_folder DIR -n 2000 -o audit.html\n\n"
        "Exit status 1 where a task leaks."
    )

    image_folder: str = option(help="images; with --data_path what its paths are relative to", metavar="DIR")
    data_path: Optional[str] = option(
        None, "LLaVA records whose images are used, instead of all in the folder", metavar="JSON"
    )
    ssl_tasks: str = option(help="tasks to audit, such as rotation,color")
    ssl_config: Optional[str] = option(None, "YAML or JSON file with the tasks' knobs", metavar="FILE")
    ssl_pairs: Optional[str] = option(None, "pairs of photographs, for tasks that take pairs", metavar="FILE")
    seed: int = option(0, "of the samples", metavar="N")
    n: int = option(2000, "samples of each task", short="-n", metavar="N")
    output: str = option("audit.html", "the page", short="-o", metavar="FILE")
    json: Optional[str] = option(None, "the same rows as JSON", metavar="FILE")
    threshold: float = option(
        0.03, "a cheat leaks where the lower end of its 95 % interval is further above chance", metavar="X"
    )

    def run(self) -> tuple[str, int]:
        """See `audit`; exit status 1 where a task leaks."""
        flags = {
            "ssl_tasks": self.ssl_tasks,
            "ssl_config": self.ssl_config,
            "ssl_pairs": self.ssl_pairs,
            "ssl_seed": self.seed,
        }
        files = self.image_folder, self.data_path, self.n, self.output, self.json
        table, clean = audit(flags, *files, self.threshold)
        return table, 0 if clean else 1
