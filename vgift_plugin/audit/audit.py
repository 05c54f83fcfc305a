"""`vgift audit`: the accuracy of solvers that must fail, on held-out photographs, beside chance and their controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Optional

import numpy as np

from .. import __version__
from ..data.arguments import option
from ..data.files import write_whole
from ..data.records import read_records
from ..data.shared_file import Tally
from ..errors import ConfigError
from ..methods.vgift.flags import VgiftFlags
from ..methods.vgift.streams import streams
from ..report.intervals import effective_size, mean_interval, wilson
from ..report.page import check_outputs
from ..tasks.registry import task_names
from ..tasks.task import Sample
from .classifier import guess, table_of
from .controls import ShiftedSource
from .page import audit_page, section
from .parallel import parallel_map
from .results import (
    CLEAN,
    INFORMATIVE,
    LEAK,
    USELESS,
    Report,
    Row,
    table_text,
)
from .solvers import (
    CHANCE,
    CHEAT,
    PRIOR,
    SHIFTED,
    SOLVERS,
    Solver,
    require_sklearn,
)
from .split import Measured, halves, measure, targets_of

LEAST_SAMPLES = 20
SHOWN = 8  # samples of a leak


def _measure_both(
    samples: Callable[[int], Sample], shifted: Callable[[int], Sample], solvers: Sequence[Solver], j: int
) -> tuple[Measured, Measured]:
    """Returns sample j as all solvers see it, and sample j of shifted photographs for those whose control that is."""
    controlled = [solver for solver in solvers if solver.control == SHIFTED]
    plain = measure(samples, solvers, j)
    return plain, measure(shifted, controlled, j) if controlled else Measured([], plain.response, plain.sources)


def _is_right(
    problems: Sequence[tuple[np.ndarray, np.ndarray]], train: np.ndarray, test: np.ndarray, k: int
) -> np.ndarray:
    """Returns which held-out samples are right in the k-th problem, a pair of features and answers, (m,) booleans."""
    table, column = problems[k]
    return guess(table, column, train, test) == column[test]


def examine(
    name: str,
    chance: float,
    samples: Callable[[int], Sample],
    shifted: Callable[[int], Sample],
    n: int,
    threshold: float,
    solvers: Sequence[Solver] = SOLVERS,
    workers: int | None = None,
) -> Report:
    """Measures all solvers on one task.

    Args:
        name: of the task.
        chance: probability in [0, 1] that a blind guess is entirely right. For answers of several items it is that of
            one item, computed as 1 / number of different items.
        samples: j -> sample j.
        shifted: j -> sample j of shifted photographs; see controls.py.
        n: number of samples.
        threshold: by how much a cheat may beat its control; see `compare`.
        solvers: those to measure.
        workers: number of processes; None for one a core. The report does not depend on it.
    """
    both = partial(_measure_both, samples, shifted, solvers)
    plain, moved = zip(*parallel_map(both, range(n), workers, f"audit {name}: samples"), strict=True)
    train, test, groups, apart = halves([one.sources for one in plain])
    problems, columns = [], []  # `columns`: of each solver, then of each control
    for measured in (plain, moved):
        targets = targets_of([one.response for one in measured])
        for rows in zip(*(one.features for one in measured), strict=True):
            table = table_of(rows)
            columns.append(targets.shape[1] if table.shape[1] else 0)
            problems += [(table, column) for column in targets.T[: columns[-1]]]
    targets = targets_of([one.response for one in plain])
    if targets.shape[1] > 1:
        chance = 1 / len(np.unique(targets))
    solve = partial(_is_right, problems, train, test)
    solved = iter(parallel_map(solve, range(len(problems)), workers, f"audit {name}: solvers"))
    right = [np.array([next(solved) for _ in range(items)]).T for items in columns]  # (m, items) each
    split = {"train": len(train), "test": len(test), "items": targets.shape[1], "photographs": int(groups.max()) + 1}
    found = Report(name, [], {**split, "photographs_apart": apart})
    of_controls, prior = iter(right[len(solvers) :]), None
    for solver, correct in zip(solvers, right, strict=False):
        row = Row(name, solver.name, solver.kind, chance)
        control: tuple[str, np.ndarray | None] = (CHANCE, None)
        if solver.control == SHIFTED:
            control = SHIFTED, next(of_controls)
        elif solver.control == PRIOR and prior is not None:
            control = PRIOR, prior
        if correct.size:
            row = compare(row, correct, groups[test], *control, threshold)
        if solver.control == CHANCE and row.verdict == LEAK:
            prior = correct
        if row.verdict == LEAK:
            best = np.argsort(-correct.mean(1), kind="stable")[:SHOWN]
            found.solved[solver.name] = test[best[correct[best].any(1)]].tolist()
        found.rows.append(row)
    return found


def compare(
    row: Row,
    right: np.ndarray,
    groups: np.ndarray,
    control: str,
    control_right: np.ndarray | None,
    threshold: float,
) -> Row:
    """Returns a row with its numbers and its verdict.

    A cheat leaks if it beats both chance and its control by more than the threshold, each by the lower end of a 95 %
    interval: that of its accuracy, and that of the difference to the control. The former guards against a control that
    is below chance by accident. A cue is informative if it beats chance likewise.

    Args:
        row: the names and chance.
        right: (m, items) booleans, the solver's on the held-out samples.
        groups: (m,) numbers of the photographs; samples of one photograph count together.
        control: name of a cheat's control.
        control_right: (m, items) booleans, the control's on the same samples; None for chance.
        threshold: in [0, 1).
    """
    accuracy = float(right.mean())
    low, high = wilson(accuracy, effective_size(right, groups))
    row = replace(row, accuracy=accuracy, low=low, high=high)
    beats_chance = low > row.chance + threshold
    if row.kind != CHEAT:
        return replace(row, verdict=INFORMATIVE if beats_chance else USELESS)
    if control_right is None:  # chance is a constant, so the interval only moves
        of_control = row.chance
        ends: tuple[Any, Any] = (low - row.chance, high - row.chance)
    else:
        of_control = float(control_right.mean())
        apart = groups if len(np.unique(groups)) > 1 else np.arange(len(groups))
        ends = mean_interval(right.mean(1) - control_right.mean(1), apart.tolist())
    return replace(
        row,
        control=control,
        control_accuracy=of_control,
        difference=accuracy - of_control,
        difference_low=ends[0],
        difference_high=ends[1],
        verdict=LEAK if beats_chance and ends[0] > threshold else CLEAN,
    )


def audit(
    flags: dict,
    image_folder: str,
    data_path: str | None = None,
    n: int = 2000,
    output: str = "audit.html",
    json_path: str | None = None,
    threshold: float = 0.03,
    workers: int | None = None,
) -> tuple[str, bool]:
    """Audits the tasks asked for, on the first samples of epoch 0, and writes the page.

    Args:
        flags: {flag: value} as given.
        image_folder: photographs, searched recursively; with `data_path`, what its paths are relative to.
        data_path: LLaVA records whose pictures are used, or None for all in the folder.
        n: samples of each task; one half trains the solvers, the other tests them.
        output: the page, `.html`.
        json_path: where the same rows go as JSON, if anywhere.
        threshold: by how much a cheat may beat its control, in [0, 1): the largest lower end of the 95 % interval of
            the difference that is no leak.
        workers: number of processes; None for one a core. The numbers do not depend on it.

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
        shifted = replace(stream, source=ShiftedSource(stream.source))  # type: ignore[arg-type]
        numbered = partial(stream, 0, on_redraw=tally), partial(shifted, 0)
        report = examine(stream.task.name, stream.task.chance, *numbered, n, threshold, workers=workers)
        report = replace(report, split={**report.split, "passed_over": tally.counts().get(report.task, {})})
        reports.append(report)
        sections.append(section(report, partial(stream, 0)))
    table, clean = table_text(reports), not any(report.solved for report in reports)
    write_whole(Path(output), audit_page(n, asked, sections, table).encode())
    if json_path is not None:
        parts = {
            "splits": {report.task: report.split for report in reports},
            "rows": [asdict(row) for report in reports for row in report.rows],
        }
        given = {name: value for name, value in asked.as_dict().items() if value is not None}
        of = {"vgift-plugin": __version__, "image_folder": image_folder, "data_path": data_path}
        whole = {**of, "flags": given, "n": n, "threshold": threshold, "clean": clean, **parts}
        write_whole(Path(json_path), json.dumps(whole, indent=1).encode())
    passed = f"no cheat's interval begins more than {threshold:.1%} above its control"
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
        0.03, "a cheat leaks if its 95 % intervals begin further above chance and above its control", metavar="X"
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
